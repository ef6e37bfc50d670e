"""Vocabularies without a ``tokenizer.json``: ``vocab.txt``, and ``vocab.json`` with ``merges.txt``.

These files have only pieces and merges. The other components follow from the tokenizer class
(``files/tokenizer_classes.py``). The functions of this file return them in the format of ``tokenizer.json``, so that
one reader builds every tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.tokenize.files.sidecar import Json, Sidecar, read_json
from pellucid.tokenize.vocabulary import distinct_ids


def read_vocab_txt(path: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.txt``: BERT's pieces, one per line, with the stages of a known class."""
    config = sidecar.config
    if config.get("do_basic_tokenize", True) is not True or config.get("never_split"):
        raise UnsupportedModel(
            "tokenizer_config.json: do_basic_tokenize=false and never_split are not implemented"
        )
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    tokens = lines[:-1] if lines[-1] == "" else lines
    if not tokens:
        raise FileFormatError(path, "vocab.txt", "the vocabulary is empty")
    vocab = distinct_ids(tokens, path, "vocab.txt")
    return {
        "added_tokens": sidecar.added_to(vocab),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": bool(config.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": sidecar.names()["unk_token"]},
    }


def read_vocab_json(folder: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.json`` and ``merges.txt``: byte-level BPE with the stages of a known class."""
    known = sidecar.known
    assert known is not None
    vocab = read_ids(folder / "vocab.json")
    lines = _text(folder / "merges.txt").split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    space = bool(sidecar.config.get("add_prefix_space", known.adds_space))
    level = {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": known.trims_offsets}
    return {
        "added_tokens": sidecar.added_to(vocab),
        "normalizer": {"type": known.form} if known.form else None,
        "pre_tokenizer": byte_level_split(known.pattern) if known.pattern else level,
        "post_processor": level,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }


def read_ids(path: Path) -> dict[str, int]:
    """Piece → id of a ``vocab.json``. Raises :class:`FileFormatError`."""
    ids = dict(read_json(path))
    for piece, index in ids.items():
        if type(index) is not int:
            raise FileFormatError(path, "vocab.json", f"the id of {brief(piece)} is {brief(index)}")
    return ids


def byte_level_split(pattern: str) -> Json:
    """The pre-tokenizer that splits at the matches of a pattern, for byte-level BPE."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {"type": "ByteLevel", "use_regex": False}]}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as bad:
        raise FileFormatError(path, "text", "not UTF-8", bad.start) from None
