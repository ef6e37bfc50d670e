"""Block formats: the encodings of weights in files.

A format consists of two layouts. The block layout is the positions of the bits of values and scales in a file
(``kernels/matmul/layouts.py``). The packed layout is the lossless form for the kernels
(``kernels/matmul/layouts.py``). Decoding, packing and the matrix products follow from these two layouts.
"""
