"""Operations on UTF-8 text: the compiled stages of a tokenizer."""
