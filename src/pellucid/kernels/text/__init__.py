"""Operations on UTF-8 text: the compiled stages of a tokenizer.

added.py        finds added tokens
rewrite.py      normalizers: replacement of characters
normalize.py    normalizers: Unicode normalization forms
split.py        pre-tokenizers: splits where a pattern matches
apart.py        cuts pre-tokens between characters that are adjacent in no piece of the vocabulary
pieces.py       the common part of the kernels of the model stage
merge.py        BPE, with the loop in ``merge_loop.py`` and its ``heap.py``
unigram.py      Unigram
wordpiece.py    WordPiece
words.py        finds the pieces of a vocabulary by their bytes
"""
