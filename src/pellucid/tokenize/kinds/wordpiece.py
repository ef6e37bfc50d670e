"""WordPiece: words cut greedily into the longest pieces (Devlin et al. 2019, BERT; Schuster & Nakajima 2012).

A piece that continues a word is spelled ``##ing``. A word that cannot be covered is the unknown token as a
whole. Files: ``tokenizer.json``, or ``vocab.txt`` with ``tokenizer_config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize.added import AddedToken, AddedTokens
from pellucid.tokenize.base import Tokenizer
from pellucid.tokenize.decode import WordPieceDecoder
from pellucid.tokenize.huggingface import Parts
from pellucid.tokenize.normalize import Bert
from pellucid.tokenize.postprocess import A, B, Template
from pellucid.tokenize.pretokenize import BertSplit
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

JSON_MODEL = "WordPiece"


class WordPiece:
    """The model stage: one word → ids. Words of more than ``longest`` characters are ``unknown``."""

    def __init__(self, ids: Mapping[str, int], unknown: int, prefix: str = "##", longest: int = 100) -> None:
        self._ids, self._unknown, self._prefix, self._longest = ids, unknown, prefix, longest
        self._reach = max(map(len, ids), default=0)

    def __call__(self, piece: str) -> list[int]:
        if len(piece) > self._longest:
            return [self._unknown]
        ids: list[int] = []
        start = 0
        while start < len(piece):
            prefix = self._prefix if start else ""
            for stop in range(min(len(piece), start + self._reach), start, -1):
                found = self._ids.get(prefix + piece[start:stop])
                if found is not None:
                    ids.append(found)
                    start = stop
                    break
            else:
                return [self._unknown]
        return ids


def claims(parts: Parts) -> bool:
    """Whether a ``tokenizer.json`` with this type of model is of this kind."""
    return True


def from_json(parts: Parts) -> WordPiece:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(
        parts.model, "model", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"
    )
    prefix = parts.text(model, "continuing_subword_prefix", "##")
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or longest < 1:
        raise FileFormatError(parts.path, "model.max_input_chars_per_word", f"{longest!r} is not a length")
    return WordPiece(parts.vocab, parts.id_of(model["unk_token"], "model.unk_token"), prefix, longest)


def from_vocab_txt(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from ``vocab.txt`` and the contents of ``tokenizer_config.json``."""
    names = {
        key: config.get(f"{key}_token", f"[{key.upper()}]") for key in ("unk", "sep", "pad", "cls", "mask")
    }
    if config.get("do_basic_tokenize", True) is not True or config.get("never_split"):
        raise UnsupportedModel(
            "tokenizer_config.json: do_basic_tokenize=false and never_split are not implemented"
        )
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as bad:
        raise FileFormatError(path, "text", "not UTF-8", bad.start) from None
    tokens = [token.rstrip("\r") for token in (tokens[:-1] if tokens[-1] == "" else tokens)]
    special = set(names.values())
    types = [int(TokenType.CONTROL if token in special else TokenType.NORMAL) for token in tokens]
    vocabulary = Vocabulary(tokens, types, path, "vocab.txt")
    for key in ("unk", "sep", "cls"):
        if names[key] not in vocabulary.ids:
            raise FileFormatError(path, f"{key}_token", f"{names[key]!r} is not in the vocabulary")
    unknown, cls, sep = (vocabulary.ids[names[key]] for key in ("unk", "cls", "sep"))
    lowercase = bool(config.get("do_lower_case", True))
    accents = config.get("strip_accents")
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(
            AddedToken(i, vocabulary.tokens[i], special=True) for i in sorted(vocabulary.special_ids)
        ),
        normalized_added=AddedTokens(()),
        normalizer=Bert(
            cjk=bool(config.get("tokenize_chinese_chars", True)),
            strip_accents=lowercase if accents is None else bool(accents),
            lowercase=lowercase,
        ),
        pre_tokenizer=BertSplit(),
        model=WordPiece(vocabulary.ids, unknown),
        post_processor=Template(((cls, 0), (A, 0), (sep, 0)), ((cls, 0), (A, 0), (sep, 0), (B, 1), (sep, 1))),
        decoder=WordPieceDecoder(vocabulary.tokens, "##", cleanup=True),
        named_tokens={f"{key}_token": name for key, name in names.items() if name in vocabulary.ids},
    )
