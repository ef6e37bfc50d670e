"""Text to token ids and back.

``load_tokenizer(...)`` gives a :class:`Tokenizer`; its stages are the files of this folder:

    added.py        tokens that are matched whole in the raw text normalize.py    text → text
    (``stages/precompiled_charsmap.py``: SentencePiece's rules; ``unicode.py``: properties of characters) pretokenize.py
    text → pieces (``patterns/published.py``: the published patterns) kinds/          piece → ids, one file per kind of
    vocabulary (``merges.py``: the BPE loop) postprocess.py  special tokens around the sequence (``encoding.py``: what
    comes out, windows, padding) decode.py       ids → text, at once or as a stream template.py     a conversation →
    text (``conversation.py``: its messages, checked; ``template_process.py``,
                    ``template_worker.py``: the process that runs the template)
    explain.py      what each of them did

There are three ways through them: in Python, in Python with the places in the original text (``aligned.py``), and as
compiled code (``compiled_encoder.py`` of ``compiled/pipeline.py``, ``tables.py``, ``automaton.py`` and
``compiled/rewrite_table.py``).

Where a tokenizer comes from (``load.py``): ``folder.py`` finds the file, ``huggingface.py`` with
``files/json_components.py`` reads ``tokenizer.json``, ``files/legacy.py`` what came before it, ``sentencepiece.py``
models, ``gguf.py`` GGUF's fields; ``files/sidecar.py`` the small files beside them. ``parsed_cache.py`` keeps what
reading a large one came to.
"""

from __future__ import annotations

from pellucid.tokenize.encoding import Encoding, Padding, Truncation
from pellucid.tokenize.load import load_tokenizer
from pellucid.tokenize.stages.decode import StreamDecoder
from pellucid.tokenize.tokenizer import Tokenizer

__all__ = ["Encoding", "Padding", "StreamDecoder", "Tokenizer", "Truncation", "load_tokenizer"]
