"""Block formats: how weights are stored in files, one file of ``formats/`` a format.

A module there holds one or more ``Format``s (``format.py``). A format is data: how the bits of a block's values and
scales lie in a file (``kernels/matmul/block_layout.py``), and the packed layout that keeps them without loss
(``kernels/matmul/packed_layout.py``). Decoding, packing and the matrix products follow from those two.
"""
