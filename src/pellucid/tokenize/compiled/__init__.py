"""The stages of a tokenizer as compiled code.

compiled_pipeline.py   calls the kernels of all stages, without the GIL
compiled_stages.py     all stages except the model
compiled_model.py      the model stage
workspace.py           the memory of a call, and the texts in it
tables.py              tables of the vocabulary
rewrite_table.py       a normalizer as tables
form_tables.py         a Unicode normalization form as tables
"""
