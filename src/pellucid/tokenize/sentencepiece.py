"""SentencePiece ``.model`` files: a ``ModelProto`` in the wire format of Protocol Buffers.

In: the file. Out: a :class:`Tokenizer` that gives SentencePiece's own ids and offsets. The fields are those of
google/sentencepiece, ``sentencepiece_model.proto``; the wire format is that of protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.messages import brief
from pellucid.tokenize.added import AddedToken, AddedTokens
from pellucid.tokenize.base import Model, Tokenizer
from pellucid.tokenize.beside import Beside
from pellucid.tokenize.charsmap import CharsMap, SentencePiece
from pellucid.tokenize.decode import SentencePieceDecoder
from pellucid.tokenize.kinds.char import Chars
from pellucid.tokenize.kinds.sentencepiece_bpe import CharBPE, byte_pieces
from pellucid.tokenize.kinds.unigram import Unigram, rounded
from pellucid.tokenize.kinds.wordlevel import WordLevel
from pellucid.tokenize.merges import ScoreRanks
from pellucid.tokenize.postprocess import Template
from pellucid.tokenize.pretokenize import BEFORE_SPACES, PreTokenizer
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

MOST_PIECES = 1 << 22
TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}


@dataclass
class Spec:
    """What of a model file matters to encoding and decoding; the rest says how it was trained."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    trainer: Mapping[int, Any] = field(default_factory=dict)
    normalizer: Mapping[int, Any] = field(default_factory=dict)
    denormalizer: Mapping[int, Any] = field(default_factory=dict)


def from_file(path: Path, beside: Beside | None = None, bos: bool = False, eos: bool = False) -> Tokenizer:
    """A tokenizer from a ``.model`` file; ``bos`` and ``eos`` are put around texts if wanted, by default as by
    SentencePiece: nothing is. ``beside`` are the small files of its folder. Raises FileFormatError, UnsupportedModel.
    """
    spec = read(path.read_bytes(), path)
    if beside is not None:
        _add(spec, beside, path)
    vocabulary = Vocabulary(spec.pieces, spec.types, path, "pieces")
    named = {name: vocabulary.ids.get(_named(spec, number, usual)) for number, usual, name in _NAMES}
    for wanted, name in ((bos, "bos"), (eos, "eos")):
        if wanted and named[name] is None:
            raise FileFormatError(path, f"{name}_piece", "not in the vocabulary, but to be put around texts")
    around = Template.around([named["bos"]] if bos else [], [named["eos"]] if eos else [])  # type: ignore[list-item]
    arguments: dict[str, Any] = {
        "bos_id": named["bos"],
        "eos_ids": frozenset(index for index in (named["eos"],) if index is not None),
        "named_tokens": {f"{name}_token": vocabulary.tokens[i] for name, i in named.items() if i is not None},
    }
    if beside is not None:
        theirs = beside.arguments(vocabulary)
        arguments["chat_template"] = theirs["chat_template"]
        arguments["eos_ids"] |= theirs["eos_ids"]
        arguments["named_tokens"] = {**arguments["named_tokens"], **theirs["named_tokens"]}
    return from_spec(spec, vocabulary, path, post_processor=around, **arguments)


_NAMES = ((46, "<s>", "bos"), (47, "</s>", "eos"), (45, "<unk>", "unk"), (48, "<pad>", "pad"))
"""What names a piece in the trainer's spec, what it is by default, and how it is called here."""


def _named(spec: Spec, number: int, usual: str) -> str:
    value = spec.trainer.get(number)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else usual


def _add(spec: Spec, beside: Beside, path: Path) -> None:
    """Append the tokens that a folder adds to the pieces of its file."""
    for token in sorted(beside.added, key=lambda token: token["id"]):
        if token["content"] in spec.pieces:
            continue
        if token["id"] != len(spec.pieces):
            problem = (
                f"{brief(token['content'])} has id {token['id']}, but the next free one is {len(spec.pieces)}"
            )
            raise FileFormatError(path, "added tokens", problem)
        spec.pieces.append(token["content"])
        spec.scores.append(0.0)
        spec.types.append(int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED))


def from_spec(spec: Spec, vocabulary: Vocabulary, path: Path, **arguments: Any) -> Tokenizer:
    """A tokenizer from what a model file says; ``arguments`` are those of :class:`Tokenizer` that it does not give."""
    if len(unknown := vocabulary.of_type(TokenType.UNKNOWN)) != 1:
        raise FileFormatError(path, "pieces", f"{len(unknown)} of them are of type UNKNOWN; it must be one")
    normal, user = spec.normalizer, vocabulary.of_type(TokenType.USER_DEFINED)
    kind = spec.trainer.get(3, 1)
    suffix = bool(spec.trainer.get(24, 0))
    if spec.denormalizer.get(2):
        raise UnsupportedModel(f"{path.name}: denormalizer_spec with a character map is not implemented")
    dummy, extra = bool(normal.get(3, 1)), bool(normal.get(4, 1))
    kept = [vocabulary.tokens[index] for index in user]
    values = byte_pieces(vocabulary, path, "pieces")
    model = _model(spec, vocabulary, kind, unknown[0], values, path)
    surface = spec.trainer.get(44, b" \xe2\x81\x87 ").decode("utf-8", "replace")
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(
            AddedToken(index, vocabulary.tokens[index], special=True)
            for index in vocabulary.of_type(TokenType.CONTROL)
        ),
        # Pieces of the user are matched where SentencePiece matches them, in the normalised text; a Unigram model has
        # them compete with all others, and for words they are nothing special.
        normalized_added=AddedTokens(
            AddedToken(index, vocabulary.tokens[index]) for index in (user if kind in (2, 4) else ())
        ),
        normalizer=SentencePiece(
            CharsMap.from_bytes(normal.get(2, b""), path, "normalizer_spec.precompiled_charsmap"),
            dummy_prefix=dummy,
            remove_extra=extra,
            escape=bool(normal.get(5, 1)),
            suffix=suffix,
            kept=kept,
        ),
        pre_tokenizer=PreTokenizer(),
        model=model,
        decoder=SentencePieceDecoder(vocabulary.tokens, values, dummy or extra, extra, {unknown[0]: surface}),
        **arguments,
    )


def _model(
    spec: Spec, vocabulary: Vocabulary, kind: int, unknown: int, values: Mapping[int, int], path: Path
) -> Model:
    """The model stage of a type of model; ``values`` are the bytes that ids stand for."""
    pieces = vocabulary.ids_but(*SPECIAL_TYPES, TokenType.BYTE, TokenType.UNUSED)
    byte_ids = {byte: index for index, byte in values.items()}
    if kind == 1:
        normal = [spec.scores[at] for at, type_ in enumerate(spec.types) if type_ == TokenType.NORMAL]
        # SentencePiece 0.2.3, whatever the file says; earlier ones took the greatest score of all for the first 0.1.
        always = {
            index: rounded(0.1 * len(vocabulary.tokens[index].encode()) - 0.1)
            for index in vocabulary.of_type(TokenType.USER_DEFINED)
        }
        lowest = rounded(min(normal, default=0.0))
        return Unigram(pieces, spec.scores, unknown, byte_ids, lowest, always, exactly=True)
    if kind == 2:
        if unused := vocabulary.of_type(TokenType.UNUSED):
            raise UnsupportedModel(
                f"{path.name}: BPE with pieces of type UNUSED, as {brief(vocabulary.tokens[unused[0]])}, is not "
                "implemented"
            )
        pairs = ScoreRanks(vocabulary.tokens, pieces, spec.scores, by_score_alone=True)
        return CharBPE(vocabulary.tokens, pieces, pairs, byte_ids, unknown, exactly=True)
    if kind == 3:
        return WordLevel(pieces, unknown, BEFORE_SPACES)
    if kind == 4:
        return Chars(vocabulary.tokens, pieces, byte_ids, unknown, exactly=True)
    raise UnsupportedModel(
        f"{path.name}: model_type {kind} is not known; known are {', '.join(TYPES.values())}"
    )


def read(data: bytes, path: Path) -> Spec:
    """The fields of a model file. Raises :class:`FileFormatError` for one that is none, or is damaged."""
    spec = Spec()
    for number, value in _message(data, path, "ModelProto"):
        if number == 1:
            _piece(spec, _bytes(value, path, "pieces"), path)
        elif number in (2, 3, 5):
            name = {2: "trainer", 3: "normalizer", 5: "denormalizer"}[number]
            setattr(spec, name, dict(_message(_bytes(value, path, name), path, f"{name}_spec")))
    for name, wanted in (
        ("trainer", {3: int, 24: int, 44: bytes}),
        ("normalizer", {2: bytes, 3: int, 4: int, 5: int}),
    ):
        for number, kind in wanted.items():
            if number in getattr(spec, name) and not isinstance(getattr(spec, name)[number], kind):
                raise FileFormatError(path, f"{name}_spec", f"field {number} is not of type {kind.__name__}")
    return spec


def _piece(spec: Spec, data: bytes, path: Path) -> None:
    at = len(spec.pieces)
    where = f"pieces[{at}]"
    if at >= MOST_PIECES:
        raise FileFormatError(path, "pieces", f"more than {MOST_PIECES:,}")
    fields = dict(_message(data, path, where))
    try:
        piece = _bytes(fields.get(1, b""), path, where).decode()
    except UnicodeDecodeError:
        raise FileFormatError(path, where, "not UTF-8") from None
    score, kind = fields.get(2, 0.0), fields.get(3, 1)
    if not piece:
        raise FileFormatError(path, where, "the piece is empty")
    if not isinstance(score, float) or not isfinite(score):
        raise FileFormatError(
            path, where, f"the score of {brief(piece)} is {brief(score)}, not a finite number"
        )
    if not isinstance(kind, int):
        raise FileFormatError(path, where, f"the type of {brief(piece)} is {brief(kind)}")
    spec.pieces.append(piece)
    spec.scores.append(score)
    spec.types.append(kind)


def _bytes(value: Any, path: Path, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise FileFormatError(path, where, "not a field of bytes")
    return value


def _message(data: bytes, path: Path, where: str) -> Iterator[tuple[int, Any]]:
    """The fields of a message, by number: int, float (of four bytes), or bytes."""
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise FileFormatError(path, where, "not a SentencePiece model: a number is cut off or too long", at)

    while at < end:
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 2: None, 5: 4}.get(kind, -1)
        if size is None:
            size = varint()
        if number == 0 or size < 0 or size > end - at:
            raise FileFormatError(
                path, where, f"not a SentencePiece model: field {number} of kind {kind}", at
            )
        value = data[at : at + size]
        at += size
        yield number, struct.unpack("<f", value)[0] if kind == 5 else value
