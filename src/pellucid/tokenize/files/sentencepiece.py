"""Reads SentencePiece ``.model`` files: a ``ModelProto`` in the wire format of Protocol Buffers.

In: the file. Out: a :class:`Tokenizer` with the ids and offsets of SentencePiece itself. Sources:
google/sentencepiece, ``sentencepiece_model.proto``, for the fields; protobuf.dev, "Encoding", for the wire format.
"""

from __future__ import annotations

import base64
import json
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from pellucid.errors import FileFormatError, UnsupportedModel, brief
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.files.sidecar import Json, Sidecar
from pellucid.tokenize.files.tokenizer_json import SEPARATOR
from pellucid.tokenize.stages.decode import SentencePieceDecoder
from pellucid.tokenize.stages.normalize import Normalizer, sequence
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.stages.precompiled_charsmap import CharsMap, SentencePieceNormalizer
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

MAX_PIECES = 1 << 22
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
TYPES = {UNIGRAM: "UNIGRAM", BPE: "BPE", WORD: "WORD", CHAR: "CHAR"}
"""The names of the values of ``model_type`` in the trainer's spec."""
Fields = Mapping[int, tuple[str, type]]
"""Number → name and value type of each field of a message that is read."""
TRAINER: Fields = {
    3: ("model_type", int),
    24: ("treat_whitespace_as_suffix", int),
    44: ("unk_surface", bytes),
    45: ("unk_piece", bytes),
    46: ("bos_piece", bytes),
    47: ("eos_piece", bytes),
    48: ("pad_piece", bytes),
}
NORMALIZER: Fields = {
    2: ("precompiled_charsmap", bytes),
    3: ("add_dummy_prefix", int),
    4: ("remove_extra_whitespaces", int),
    5: ("escape_whitespaces", int),
}
SPECS = {2: ("trainer", TRAINER), 3: ("normalizer", NORMALIZER), 5: ("denormalizer", NORMALIZER)}
NAMED_PIECES = {"bos": b"<s>", "eos": b"</s>", "unk": b"<unk>", "pad": b"<pad>"}
"""The special pieces that the trainer's spec names, with their defaults."""


class SentencePieceFile(Struct):
    """The fields of a model file that encoding and decoding need; the other fields describe the training.

    ``trainer``, ``normalizer`` and ``denormalizer`` map the names in TRAINER and NORMALIZER to values.
    """

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    normalizer: Mapping[str, Any] = field(default_factory=dict)
    denormalizer: Mapping[str, Any] = field(default_factory=dict)

    def named(self, vocabulary: Vocabulary) -> dict[str, int]:
        """The ids of the special pieces that the trainer's spec names."""
        texts = {
            name: self.trainer.get(f"{name}_piece", default).decode("utf-8", "replace")
            for name, default in NAMED_PIECES.items()
        }
        return {name: vocabulary.ids[text] for name, text in texts.items() if text in vocabulary.ids}


def from_file(
    file: SentencePieceFile,
    path: Path,
    models: Mapping[int, ModelBuilder],
    sidecar: Sidecar,
    around: Callable[[Mapping[str, int]], Template] | None = None,
    normalizers: Sequence[Normalizer] = (),
) -> Tokenizer:
    """A tokenizer from a ``.model`` file; ``models`` maps ``model_type`` to the builder of the model stage.

    ``around`` makes the special tokens around texts from the ids of the named tokens (None: as the class of the sidecar
    files decides; SentencePiece itself has none). ``normalizers`` run before the normalizer of the file. Raises
    :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    kind = file.trainer.get("model_type", UNIGRAM)
    if kind not in models:
        raise UnsupportedModel(f"{path.name}: model_type {kind} is not known; known are {', '.join(TYPES.values())}")
    _add(file, sidecar, path)
    vocabulary = Vocabulary(file.pieces, file.types, path, "pieces")
    named = file.named(vocabulary)
    theirs = sidecar.arguments(vocabulary)
    names = {f"{name}_token": vocabulary.tokens[index] for name, index in named.items()} | theirs["named_tokens"]
    arguments = theirs | {
        "bos_id": named.get("bos"),
        "eos_ids": theirs["eos_ids"].union([named["eos"]] if "eos" in named else []),
        "named_tokens": names,
        "post_processor": sidecar.template(vocabulary, path) if around is None else around(named),
    }
    described = {token["content"]: token for token in sidecar.added_to(vocabulary.ids)}
    return from_spec(file, vocabulary, path, models[kind], described, normalizers, **arguments)


def _add(spec: SentencePieceFile, sidecar: Sidecar, path: Path) -> None:
    own = {piece: at for at, piece in enumerate(spec.pieces)} if sidecar.added else {}
    for token in sorted(sidecar.added, key=lambda token: token["id"]):
        if (at := own.get(token["content"])) is not None:
            if at != token["id"]:
                problem = f"{brief(token['content'])} has id {token['id']}, but the file has it as {at}"
                raise FileFormatError(path, "added tokens", problem)
            continue
        if token["id"] != len(spec.pieces):
            problem = f"{brief(token['content'])} has id {token['id']}, but the next free id is {len(spec.pieces)}"
            raise FileFormatError(path, "added tokens", problem)
        spec.pieces.append(token["content"])
        spec.scores.append(0.0)
        spec.types.append(int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED))


class SentencePieceParts(Struct, frozen=True):
    """The input of a builder of the model stage: the file, its vocabulary, the id of the unknown piece.

    ``byte_ids`` maps byte to id for the pieces that represent bytes.
    """

    file: SentencePieceFile
    vocabulary: Vocabulary
    unknown: int
    byte_ids: Mapping[int, int]
    path: Path

    @property
    def pieces(self) -> Mapping[str, int]:
        """Piece → id of every piece that text may become, except bytes."""
        return self.vocabulary.ids_without(*SPECIAL_TYPES, TokenType.BYTE, TokenType.UNUSED)


ModelBuilder = Callable[[SentencePieceParts], TokenizerModel]


def from_spec(
    spec: SentencePieceFile,
    vocabulary: Vocabulary,
    path: Path,
    build: ModelBuilder,
    described: Mapping[str, Json] | None = None,
    normalizers: Sequence[Normalizer] = (),
    **arguments: Any,
) -> Tokenizer:
    """A tokenizer from the fields of a model file, with the model stage from ``build``.

    ``described`` has the properties of added tokens, by text. ``normalizers`` run before the normalizer of the file.
    ``arguments`` are the arguments of :class:`Tokenizer` that the file does not determine. Raises
    :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    if len(unknown := vocabulary.of_type(TokenType.UNKNOWN)) != 1:
        raise FileFormatError(path, "pieces", f"{len(unknown)} pieces are of type UNKNOWN; there must be one")
    normal, user = spec.normalizer, vocabulary.of_type(TokenType.USER_DEFINED)
    kind = spec.trainer.get("model_type", UNIGRAM)
    if spec.denormalizer.get("precompiled_charsmap"):
        raise UnsupportedModel(f"{path.name}: denormalizer_spec with a character map is not implemented")
    dummy_prefix, remove_extra = (bool(normal.get(key, 1)) for key in ("add_dummy_prefix", "remove_extra_whitespaces"))
    values = vocabulary.byte_pieces(path, "pieces")
    byte_ids = {byte: index for index, byte in values.items()}
    model = build(SentencePieceParts(spec, vocabulary, unknown[0], byte_ids, path))
    surface = spec.trainer.get("unk_surface", b" \xe2\x81\x87 ").decode("utf-8", "replace")
    charsmap = normal.get("precompiled_charsmap", b"")
    own = SentencePieceNormalizer(
        CharsMap.from_bytes(charsmap, path, "normalizer_spec.precompiled_charsmap"),
        dummy_prefix=dummy_prefix,
        remove_extra=remove_extra,
        escape=bool(normal.get("escape_whitespaces", 1)),
        suffix=bool(spec.trainer.get("treat_whitespace_as_suffix", 0)),
        protected=[vocabulary.tokens[index] for index in user],
    )
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(_control_tokens(vocabulary, described or {})),
        # User-defined pieces are matched in the normalized text, as in SentencePiece. In a Unigram model they compete
        # with all other pieces. In a WORD model they are ordinary pieces.
        normalized_added=AddedTokens(
            AddedToken(index, vocabulary.tokens[index]) for index in (user if kind in (BPE, CHAR) else ())
        ),
        normalizer=sequence([*normalizers, own]),
        pre_tokenizer=PreTokenizer(),
        model=model,
        decoder=SentencePieceDecoder(
            vocabulary.tokens, values, dummy_prefix or remove_extra, remove_extra, {unknown[0]: surface}
        ),
        **arguments,
    )


def _control_tokens(vocabulary: Vocabulary, described: Mapping[str, Json]) -> Iterator[AddedToken]:
    for index in vocabulary.of_type(TokenType.CONTROL):
        text = vocabulary.tokens[index]
        flags = {flag: bool(described.get(text, {}).get(flag)) for flag in ("lstrip", "rstrip", "single_word")}
        yield AddedToken(index, text, special=True, **flags)


def read(data: bytes, path: Path) -> SentencePieceFile:
    """The fields of a model file. Raises :class:`FileFormatError` if it is damaged or not a model file.

    The fields of a large file are parsed once and cached.
    """
    if len(data) < parsed_cache.WORTH_CACHING:
        return _parse(data, path)
    place = parsed_cache.cache_name(b"sentencepiece", data)
    if (arrays := parsed_cache.read(place)) is not None:
        return _from_cache(arrays)
    spec = _parse(data, path)
    if not any(SEPARATOR in piece for piece in spec.pieces) and set(spec.types) <= set(TokenType):
        parsed_cache.write(place, _to_cache(spec))
    return spec


def _to_cache(spec: SentencePieceFile) -> parsed_cache.Arrays:
    specs = [
        {name: value if isinstance(value, int) else [base64.b64encode(value).decode()] for name, value in one.items()}
        for one in (spec.trainer, spec.normalizer, spec.denormalizer)
    ]
    return {
        "pieces": parsed_cache.array_of(SEPARATOR.join(spec.pieces)),
        "scores": memoryview(array("d", spec.scores)),
        "types": memoryview(bytes(spec.types)),
        "specs": parsed_cache.array_of(json.dumps(specs)),
    }


def _from_cache(arrays: parsed_cache.Arrays) -> SentencePieceFile:
    specs = [
        {name: value if isinstance(value, int) else base64.b64decode(value[0]) for name, value in one.items()}
        for one in json.loads(parsed_cache.text_of(arrays["specs"]))
    ]
    pieces = parsed_cache.text_of(arrays["pieces"]).split(SEPARATOR)
    return SentencePieceFile(pieces, list(map(float, arrays["scores"])), [*arrays["types"].tobytes()], *specs)


def _parse(data: bytes, path: Path) -> SentencePieceFile:
    spec = SentencePieceFile()
    for number, value in _message(data, path, "ModelProto"):
        if number == 1:
            _piece(spec, _bytes(value, path, "pieces"), path)
        elif number in SPECS:
            name, fields = SPECS[number]
            setattr(spec, name, _named_fields(_bytes(value, path, name), path, f"{name}_spec", fields))
    return spec


def _named_fields(data: bytes, path: Path, where: str, fields: Fields) -> dict[str, Any]:
    """The fields of a message, by name. Raises :class:`FileFormatError` for a value of another type."""
    values = {number: value for number, value in _message(data, path, where) if number in fields}
    for number, value in values.items():
        if not isinstance(value, fields[number][1]):
            raise FileFormatError(path, where, f"field {number} is not of type {fields[number][1].__name__}")
    return {fields[number][0]: value for number, value in values.items()}


def _piece(spec: SentencePieceFile, data: bytes, path: Path) -> None:
    at = len(spec.pieces)
    where = f"pieces[{at}]"
    if at >= MAX_PIECES:
        raise FileFormatError(path, "pieces", f"more than {MAX_PIECES:,}")
    fields = dict(_message(data, path, where))
    try:
        piece = _bytes(fields.get(1, b""), path, where).decode()
    except UnicodeDecodeError:
        raise FileFormatError(path, where, "not UTF-8") from None
    score, kind = fields.get(2, 0.0), fields.get(3, 1)
    if not piece:
        raise FileFormatError(path, where, "the piece is empty")
    if not isinstance(score, float) or not isfinite(score):
        raise FileFormatError(path, where, f"the score of {brief(piece)} is {brief(score)}, not a finite number")
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
    """The fields of a message: number, and value as int, float (four bytes) or bytes."""
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
            raise FileFormatError(path, where, f"not a SentencePiece model: field {number} of kind {kind}", at)
        value = data[at : at + size]
        at += size
        yield number, struct.unpack("<f", value)[0] if kind == 5 else value
