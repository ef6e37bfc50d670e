"""The stages of a tokenizer as compiled code: their tables, and the pipeline that calls the kernels."""
