"""Matrix products: packed weights, activation blocks, and the products of both.

file_layout.py     where the bits of a block are in a file, as data
pack.py            unpacks the bits of a file's blocks and packs them into the packed layout
packed_layout.py   the packed layout: 16 rows, interleaved
operands.py        packed weights → the operands of products
quantize.py        activations → activation blocks
division.py        which thread computes what of an output
product.py         what all products have in common
int8.py            quantised weights times activation blocks
int8_tiles.py      the same for many tokens, on tile registers
int8_scaled.py     their float side: exact integer sums, scaled
floats.py          floating-point weights times floats
experts.py         products of experts, each with the rows that chose it
by_head.py         products of heads, each with a matrix of its own
"""
