"""Operations on UTF-8 text: what the stages of a tokenizer are compiled to.

added.py        finds added tokens
rewrite.py      normalizers: replaces characters
normalize.py    normalizers: Unicode normalization forms
split.py        pre-tokenizers: splits where a pattern matches
apart.py        cuts pre-tokens where no piece of the vocabulary goes on
pieces.py       what the kernels of the model stage have in common
merge.py        BPE, with the loop in ``merge_loop.py`` and its ``heap.py``
unigram.py      Unigram
wordpiece.py    WordPiece
words.py        the pieces of a vocabulary by their bytes
"""
