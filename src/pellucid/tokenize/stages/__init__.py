"""The stages in Python, except the model: added tokens, normalizer, pre-tokenizer, post-processor and decoder."""
