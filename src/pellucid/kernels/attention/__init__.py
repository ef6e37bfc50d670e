"""Attention over the paged key/value cache, and the layout of keys and values in a page.

attention.py        the operation: its formula, its reference, and its tiles
disentangled.py     attention whose scores also depend on vectors of relative positions
position_tables.py  writes the keys and queries of relative positions
rows.py             the queries of a tile, and the tokens that the queries attend to
walk.py             walks over the pages of a tile: scores, softmax, weighted values
page_loops.py       the loops for one page and any number of rows
tiles.py            the inner loops, including softmax
bf16_tiles.py       the inner loops over bfloat16 pages
work_split.py       the distribution of tiles over threads
cache_write.py      writes new keys and values to their pages
kv_layout.py        the layout of a page
"""
