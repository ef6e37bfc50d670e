"""The stages of a tokenizer as compiled code.

pipeline.py        calls the kernels of all stages, without the GIL
stages.py          all stages except the model
model.py           the model stage
texts.py           the texts that the stages read and write
tables.py          tables of the vocabulary
rewrite_table.py   a normalizer as tables
form_tables.py     a Unicode normalization form as tables
"""
