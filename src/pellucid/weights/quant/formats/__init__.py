"""The block formats. They are discovered, not listed.

floats.py                    F32, F16, BF16
q4_0.py, q5_0.py, q8_0.py    blocks of 32 values with a scale
q4_1.py, q5_1.py             blocks of 32 values with a scale and a minimum
q2_k.py, q3_k.py, q6_k.py    blocks of 256 values in sub-blocks of 16
q4_k.py                      Q4_K, Q5_K: blocks of 256 values in sub-blocks of 32
iq4.py                       IQ4_NL, IQ4_XS: 4-bit indices into a table
mxfp4.py                     MXFP4: 4-bit floating point with a scale that is a power of two
"""
