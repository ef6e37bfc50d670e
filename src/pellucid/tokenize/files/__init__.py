"""The file formats of tokenizers.

tokenizer_json.py    checked access to a ``tokenizer.json``
json_components.py   its components → stages
json_decoder.py      its decoder
json_tokenizer.py    the whole file → a tokenizer
sentencepiece.py     SentencePiece ``.model`` files
gguf_fields.py       the fields of GGUF files
vocab_files.py       ``vocab.txt``, ``vocab.json`` with ``merges.txt``
tiktoken.py          tiktoken's ranks, ``tekken.json``
sidecar.py           the small files next to a tokenizer
"""
