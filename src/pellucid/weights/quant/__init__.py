"""Block formats: the encodings of weights in files.

format.py     a block format as data
registry.py   the known formats, by name
formats/      the formats, one file per format or family
to_q8_0.py    floats → Q8_0 blocks

A format consists of two layouts. The block layout is the positions of the bits of values and scales in a file
(``kernels/matmul/file_layout.py``). The packed layout is the lossless form for the kernels
(``kernels/matmul/packed_layout.py``). Decoding, packing and the matrix products follow from these two layouts.
"""
