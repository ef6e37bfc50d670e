"""Text to token ids and back.

``load_tokenizer(...)`` returns a :class:`Tokenizer`. A text passes through its stages in this order:

    stage           file                    in → out
    added tokens    stages/pretokenize.py   raw text → text and added tokens, which are matched whole
    normalizer      stages/normalize.py     text → text (stages/precompiled_charsmap.py: SentencePiece's rules)
    pre-tokenizer   stages/pretokenize.py   text → pre-tokens (patterns/published.py: the published patterns)
    model           kinds/                  pre-token → ids, the kinds of vocabulary
    post-processor  stages/postprocess.py   ids → ids with special tokens around them
    decoder         stages/decode.py        ids → text, all at once or as a stream
"""

from __future__ import annotations

from pellucid.tokenize.encoding import Encoding, Padding, Truncation
from pellucid.tokenize.load import load_tokenizer
from pellucid.tokenize.stages.decode import StreamDecoder
from pellucid.tokenize.tokenizer import Tokenizer

__all__ = ["Encoding", "Padding", "StreamDecoder", "Tokenizer", "Truncation", "load_tokenizer"]
