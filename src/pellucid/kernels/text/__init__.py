"""Operations on UTF-8 text: what the stages of a tokenizer are compiled to."""
