"""Text to token ids and back.

``load_tokenizer(checkpoint)`` gives a :class:`Tokenizer`; its stages are the files of this folder:

    added.py        tokens that are matched whole in the raw text
    normalize.py    text → text
    pretokenize.py  text → pieces (``patterns.py``: the published patterns)
    kinds/          piece → ids, one file per kind of vocabulary (``merges.py``: the BPE loop)
    compiled.py     the two stages above as compiled code (``automaton.py``: patterns as tables; ``unicode.py``)
    postprocess.py  special tokens around the sequence
    decode.py       ids → text, at once or as a stream
    template.py     a conversation → text
"""

from __future__ import annotations

from pellucid.tokenize.base import Tokenizer
from pellucid.tokenize.decode import StreamDecoder
from pellucid.tokenize.load import load_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "load_tokenizer"]
