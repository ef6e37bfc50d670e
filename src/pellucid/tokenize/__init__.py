"""Text to token ids and back.

``load_tokenizer(...)`` returns a :class:`Tokenizer`. A text passes through its stages in this order:

    stage           file                    in → out
    added tokens    stages/added_tokens.py  raw text → text and added tokens, which are matched whole
    normalizer      stages/normalize.py     text → text (stages/precompiled_charsmap.py: SentencePiece's rules)
    pre-tokenizer   stages/pretokenize.py   text → pre-tokens (patterns/published.py: the published patterns)
    model           kinds/                  pre-token → ids, one file per kind of vocabulary
    post-processor  stages/postprocess.py   ids → ids with special tokens around them
    decoder         stages/decode.py        ids → text, all at once or as a stream

The modules:

    tokenizer.py         the public class: decode, languages, chat templates
    text_encoder.py      its base with the methods that encode texts and pairs of texts
    encoder.py           the stages run in Python: the plain path, and the aligned path, which keeps offsets
    compiled_encoder.py  the stages run as compiled code
    encoding.py          an encoded text with offsets; truncation and padding
    masks.py             the masks of a text
    token_table.py       the tokens of an encoded text, as columns
    vocabulary.py        id ↔ piece, and token types
    piece_ids.py         piece → id of a large vocabulary, without a dictionary
    tokenizer_model.py   the base class of the model stage
    merges.py            the BPE merge loop
    unicode.py           properties of characters, at a fixed version of Unicode
    explain.py           the result of each stage for a text, as data
    load.py              model or path → Tokenizer: GGUF metadata, or the files of a folder
    model_folder.py      picks the tokenizer file of a model folder, and its reader
    instruct.py          decides whether a model answers messages or continues text
    kind.py              the declaration in a file of kinds/, and the discovery of the kinds
    parsed_cache.py      the on-disk cache of parsed large vocabularies

The folders:

    stages/    the stages above except the model, and aligned.py: a text with its origin in the original text
    patterns/  Oniguruma's syntax → a pattern tree → a matcher in Python or an automaton's table
    kinds/     the kinds of vocabulary: byte-level BPE, SentencePiece BPE, Unigram, WordPiece, words, characters, bytes
    files/     the file formats: tokenizer.json, vocab.txt, SentencePiece, tiktoken, GGUF fields, and sidecar files
    compiled/  the tables and calls of the compiled stages; the kernels are in pellucid/kernels/text
    chat/      conversations → text, by chat templates that run in a process of their own
"""

from __future__ import annotations

from pellucid.tokenize.encoding import Encoding, Padding, Truncation
from pellucid.tokenize.load import load_tokenizer
from pellucid.tokenize.stages.decode import StreamDecoder
from pellucid.tokenize.tokenizer import Tokenizer

__all__ = ["Encoding", "Padding", "StreamDecoder", "Tokenizer", "Truncation", "load_tokenizer"]
