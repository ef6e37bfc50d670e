"""The stages of a tokenizer as compiled code."""
