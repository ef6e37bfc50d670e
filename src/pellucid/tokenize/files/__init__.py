"""The file formats of tokenizers: tokenizer.json, legacy files, SentencePiece models, GGUF fields, sidecar files."""
