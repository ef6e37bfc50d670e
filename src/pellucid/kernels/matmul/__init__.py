"""Matrix products: packed weights, activation blocks, and the products of both.

file_layout.py     where the bits of a block are in a file, as data
pack.py            packs weights from their stored formats into the packed layout
pack_blocks.py     how one block is packed
packed_layout.py   the packed layout: 16 rows, interleaved
operands.py        packed weights → the operands of products
quantize.py        activations → activation blocks
division.py        which thread computes what of an output
product.py         what all products have in common
int8.py            quantised weights times activation blocks
int8_exact.py      its integer side: exact sums
int8_scaled.py     its float side: exact sums, scaled
many_tokens.py     the same for many tokens, for which weights are unpacked once
int8_vectors.py    how their products are added on vector registers
int8_tiles.py      how they are added on tile registers
floats.py          floating-point weights times floats
experts.py         products of experts, each with the rows that chose it
by_head.py         products of heads, each with a matrix of its own
"""
