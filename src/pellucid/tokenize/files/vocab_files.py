"""Vocabularies without a ``tokenizer.json``: ``vocab.txt``, ``vocab.json`` with ``merges.txt``, and byte-level
vocabularies whose pieces have ranks instead of merges (tiktoken's files and Mistral's ``tekken.json``).

The first two have only pieces and merges; the other components follow from the tokenizer class
(``files/tokenizer_classes.py``). The rank of a pair is the rank of its concatenation. A ``tekken.json`` has a pattern
and special tokens. A tiktoken file has only ranks: its pattern and special tokens are looked up by the digest of the
ranks, by the model folder, and by the name of the file. The functions of this file return the contents of a
``tokenizer.json``, so that one reader builds every tokenizer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief, shown
from pellucid.tokenize.files.sidecar import Json, Sidecar, parse_json, read_json
from pellucid.tokenize.merges import BY_RANK
from pellucid.tokenize.patterns import published
from pellucid.tokenize.stages.decode import byte_letters
from pellucid.tokenize.vocabulary import distinct_ids


def read_vocab_txt(path: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.txt``: BERT's pieces, one per line, with the stages of a known class."""
    config = sidecar.config
    if config.get("do_basic_tokenize", True) is not True or config.get("never_split"):
        raise UnsupportedModel("tokenizer_config.json: do_basic_tokenize=false and never_split are not implemented")
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


def read_vocab_json(path: Path, sidecar: Sidecar) -> Json:
    """Reads ``vocab.json`` and ``merges.txt``: byte-level BPE with the stages of a known class."""
    known = sidecar.known
    assert known is not None
    vocab = read_ids(path)
    lines = _text(path.with_name("merges.txt")).split("\n")
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


# Number of bytes at the start of a file that identify its format.
HEAD = 1 << 16
MAX_TOKENS = 1 << 22


def is_tiktoken(head: bytes) -> bool:
    """True if a file that begins with ``head`` has tiktoken's form: a piece in base64 and its rank on each line."""
    piece, space, rank = head.partition(b"\n")[0].rstrip(b"\r").partition(b" ")
    try:
        return bool(space) and rank.isdigit() and bool(base64.b64decode(piece, validate=True))
    except binascii.Error:
        return False


def is_tekken(head: bytes) -> bool:
    """True if a file that begins with ``head`` is a ``tekken.json``, by the fields of its ``config``."""
    config, number = rb'"config"\s*:\s*\{', rb'"default_num_special_tokens"\s*:'
    return all(re.search(field, head) for field in (config, number))


def read_tiktoken(data: bytes, path: Path, sidecar: Sidecar) -> Json:
    """The contents of a tiktoken file. Raises :class:`FileFormatError`, :class:`UnsupportedModel`."""
    letters, vocab, lines = byte_letters(), dict[str, int](), dict[int, bytes]()
    for at, line in enumerate(data.split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line:
            continue
        piece, _, rank = line.partition(b" ")
        spelled = "".join([letters[byte] for byte in _decoded(piece, path, f"line {at}")])
        if not rank.isdigit() or len(rank) > 10 or not spelled:
            raise FileFormatError(path, f"line {at}", f"{brief(line[:60])} is not a piece and a rank")
        if spelled in vocab:
            raise FileFormatError(path, f"line {at}", f"{brief(piece[:40])} is listed twice")
        vocab[spelled] = int(rank)
        lines[int(rank)] = line
    digest = hashlib.sha256(b"".join(b"%s\n" % lines[rank] for rank in sorted(lines))).hexdigest()
    known = _known(digest, len(vocab), path, sidecar)
    added = {token["content"]: token for token in sidecar.added_to(vocab)}
    for name, index in known.special(len(vocab)).items():
        added.setdefault(name, _control(index, name))
    return _by_rank(vocab, list(added.values()), known.pattern)


def _known(digest: str, count: int, path: Path, sidecar: Sidecar) -> published.TiktokenRanks:
    """The pattern and the special tokens of ranks, by their digest, then by the folder, then by the file name."""
    every = published.TIKTOKEN
    same = {name: ranks for name, ranks in every.items() if ranks.digest == digest}
    stated = {sidecar.model_type, sidecar.kind} - {None}
    listed = same or every
    if matching := [ranks for ranks in listed.values() if stated.intersection(ranks.stated)]:
        return matching[0]
    if (named := listed.get(path.name.partition(".")[0])) is not None:
        return named
    if same:
        return next(iter(same.values()))
    raise UnsupportedModel(
        f"{path.name}: {count:,} ranks of no published vocabulary, and no file names the pattern that cuts texts: name "
        f"the file after one of {', '.join(sorted(every))}"
    )


TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""The special tokens of files that do not list them (mistral-common, ``Tekkenizer``)."""


def read_tekken(data: bytes, path: Path, sidecar: Sidecar) -> Json:
    """The contents of a ``tekken.json``: special tokens first, then pieces up to ``default_vocab_size`` ids.

    Source: mistral-common, ``Tekkenizer``. Raises :class:`FileFormatError`.
    """
    spec = parse_json(data, path)
    config, listed, pieces = spec.get("config"), spec.get("special_tokens"), spec.get("vocab")
    if not isinstance(config, dict) or not isinstance(pieces, list) or not isinstance(listed, list | None):
        raise FileFormatError(path, "config, special_tokens, vocab", "not an object and two arrays")
    size, special = (_number(config, key, path) for key in ("default_vocab_size", "default_num_special_tokens"))
    if not special <= size <= special + len(pieces):
        problem = f"is {size:,}, for {special:,} special tokens and {len(pieces):,} pieces"
        raise FileFormatError(path, "config.default_vocab_size", problem)
    if not isinstance(pattern := config.get("pattern"), str):
        raise FileFormatError(path, "config.pattern", f"expected a string, found {brief(pattern)}")
    letters, vocab = byte_letters(), dict[str, int]()
    for at, entry in enumerate(pieces[: size - special]):
        if not isinstance(entry, dict) or entry.get("rank") != at or not isinstance(entry.get("token_bytes"), str):
            raise FileFormatError(path, f"vocab[{at}]", f"{brief(entry)} has no rank {at} and token_bytes")
        encoded = entry["token_bytes"].encode()
        spelled = "".join([letters[byte] for byte in _decoded(encoded, path, f"vocab[{at}]")])
        if not spelled or spelled in vocab:
            raise FileFormatError(path, f"vocab[{at}]", f"{brief(entry['token_bytes'])} is empty or listed twice")
        vocab[spelled] = special + at
    names = _special_names(listed, special, path)
    added = [_control(index, name) | {"special": control} for index, (name, control) in enumerate(names)]
    contents = _by_rank(vocab, added, pattern)
    begin = sidecar.named.get("bos_token")
    if begin not in dict(names):
        return contents
    around = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    token = {"id": begin, "ids": [[name for name, _ in names].index(begin)], "tokens": [begin]}
    template = {"type": "TemplateProcessing", "single": around, "pair": [*around, *second]}
    return {**contents, "post_processor": {**template, "special_tokens": {begin: token}}}


def tekken_sidecar(sidecar: Sidecar) -> Sidecar:
    """The sidecar files with the usual named tokens of a ``tekken.json`` as defaults."""
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return replace(sidecar, named=usual | dict(sidecar.named))


def _special_names(listed: list[Any] | None, count: int, path: Path) -> list[tuple[str, bool]]:
    """The name of each special token, and True for a control token."""
    names: list[tuple[str, bool]] = [(name, True) for name in TEKKEN_SPECIAL] if listed is None else []
    for at, token in enumerate(listed or ()):
        if not isinstance(token, dict) or token.get("rank") != at or not isinstance(token.get("token_str"), str):
            raise FileFormatError(path, f"special_tokens[{at}]", f"{brief(token)} has no rank {at} and token_str")
        names.append((token["token_str"], bool(token.get("is_control", True))))
    if len(names) > count or len(dict(names)) != len(names):
        problem = f"{len(names):,} tokens: at most {count:,} are allowed, with different names"
        raise FileFormatError(path, "special_tokens", problem)
    return [*names, *((f"<SPECIAL_{at}>", True) for at in range(len(names), count))]


def _number(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise FileFormatError(path, f"config.{key}", f"{brief(value)} is not a number from 0 to {MAX_TOKENS:,}")
    return value


def _decoded(piece: bytes, path: Path, where: str) -> bytes:
    try:
        return base64.b64decode(piece, validate=True)
    except binascii.Error:
        raise FileFormatError(path, where, f"{shown(repr(piece[:40]))} is not base64") from None


def _control(index: int, name: str) -> dict[str, Any]:
    return {"id": index, "content": name, "special": True, "normalized": False}


def _by_rank(vocab: Mapping[str, int], added: Sequence[Json], pattern: str) -> dict[str, Any]:
    return {
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "pre_tokenizer": byte_level_split(pattern),
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": dict(vocab), "merges": BY_RANK, "ignore_merges": True},
    }
