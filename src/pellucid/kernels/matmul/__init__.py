"""Matrix products: packed weights, activation blocks, and the products of both.

file_layout.py     the places of a block's bits in a file, as data
pack.py            packs weights from their stored formats into the packed layout
pack_blocks.py     emits the code that packs one block
packed_layout.py   the packed layout: 16 rows, interleaved
operands.py        packed weights → the operands of products
quantize.py        activations → activation blocks
quantize_four.py   emits the quantization of four blocks at a time
partition.py       divides an output among threads
product.py         the common part of all products
int8.py            quantized weights times activation blocks
int8_exact.py      integer part of int8.py: exact sums
int8_scaled.py     float part of int8.py: exact sums, scaled
many_tokens.py     integer products of many tokens: weights are unpacked once
int8_vectors.py    adds products of many tokens on vector registers
int8_pairs.py      products of many tokens with 8-bit weights on 512-bit registers
int8_tiles.py      adds products of many tokens on tile registers
floats.py          floating-point weights times floats; ``bf16.py``: both in bfloat16
experts.py         products of experts, each with the rows that chose it
by_head.py         products of heads, each with its own matrix
"""
