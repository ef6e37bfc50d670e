"""The file formats of tokenizers.

tokenizer_json.py        checked access to a ``tokenizer.json``
json_components.py       its components → stages
json_decoder.py          its decoder
json_tokenizer.py        the whole file → a tokenizer
sentencepiece.py         SentencePiece ``.model`` files
sentencepiece_layout.py  the ids of a SentencePiece file in models that number the pieces differently
gguf_fields.py           the fields of GGUF files
vocab_files.py           ``vocab.txt``, ``vocab.json`` with ``merges.txt``
tokenizer_classes.py     what the tokenizer classes of transformers add to their vocabulary files
languages.txt            the languages of translation models
tiktoken.py              tiktoken's ranks, ``tekken.json``
sidecar.py               the small files next to a tokenizer
"""
