"""Checked access to a parsed ``tokenizer.json``, the format of Hugging Face ``tokenizers``."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from sys import float_info
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief, shown
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.merges import BY_RANK, PairRanks
from pellucid.tokenize.parsed_cache import Arrays
from pellucid.tokenize.stages.pretokenize import AddedToken
from pellucid.tokenize.vocabulary import TokenType, Vocabulary, distinct_ids

Json = Mapping[str, Any]
StageT = TypeVar("StageT")
MAX_STAGES = 32
"""Maximum components of a normalizer, a pre-tokenizer or a post-processor: four times the most in published files."""
MAX_LETTERS = 1_000  # characters of a text that a stage searches for
# Separates pieces in the cache. It is a noncharacter. ``to_cache`` checks that no piece contains it.
SEPARATOR = "\ufdd0"


class TokenizerJson:
    """A parsed ``tokenizer.json`` with checked access to its fields.

    Attributes: ``path``; ``model``: the model's JSON; ``vocab``: piece → id of the model; ``vocabulary``: the same with
    the added tokens; ``added``: the added tokens; ``scores``: the scores of a Unigram model; ``pairs``: the parsed
    merges of a BPE model; ``spoken``: the text of each id for the decoder. ``cached`` has the large parts of the file,
    from an earlier :meth:`to_cache`. If it is given, ``spec`` lacks the large parts. With ``numbers``, added tokens get
    the ids that ``tokenizers`` assigns, not the ids in the file.
    """

    def __init__(self, path: Path, spec: Json, cached: Arrays | None = None, numbers: bool = False) -> None:
        self.path = path
        self._spec = self.component(
            spec,
            "file",
            *("version", "truncation", "padding", "added_tokens", "normalizer"),
            *("pre_tokenizer", "post_processor", "decoder", "model"),
        )
        self.model: Json = self.of("model") or {}
        self.scores: list[float] = []
        self.pairs: PairRanks | None = None
        known = None if cached is None else self._from_cache(cached)
        self.vocab = self._ids() if known is None else self._model_vocab(known, cached or {})
        added = spec.get("added_tokens") or []
        if not isinstance(added, list):
            raise FileFormatError(path, "added_tokens", f"expected an array, found {type(added).__name__}")
        listed = [self._added(at, token) for at, token in enumerate(added)]
        self.added = self._numbered(listed) if numbers else listed
        self.vocabulary = self._vocabulary() if known is None else known
        self.spoken: Sequence[str] = self.vocabulary.tokens

    def to_cache(self) -> Arrays | None:
        """The parsed file as arrays; None if a piece contains the separator."""
        tokens, ids = self.vocabulary.tokens, self.vocabulary.ids
        if any(SEPARATOR in token for token in tokens):
            return None
        cached: dict[str, memoryview] = {
            "spec": parsed_cache.array_of(json.dumps(self._without_large_parts())),
            "tokens": parsed_cache.array_of(SEPARATOR.join(tokens)),
            "types": memoryview(self.vocabulary.types),
            "outside": memoryview(array("i", [ids[token] for token in ids.keys() - self.vocab.keys()])),
            "scores": memoryview(array("d", self.scores)),
        }
        if self.model.get("merges") is BY_RANK:
            cached["by_rank"] = parsed_cache.array_of("yes")
        return cached if self.pairs is None else cached | self.pairs.to_cache()

    def _without_large_parts(self) -> Json:
        small = {key: value for key, value in self._spec.items() if key not in ("type", "model")}
        emptied = {key: None for key in ("vocab", "merges") if key in self.model}
        return {**small, "model": {**self.model, **emptied}}

    def _from_cache(self, cached: Arrays) -> Vocabulary:
        tokens = parsed_cache.text_of(cached["tokens"]).split(SEPARATOR)
        self.scores = list(map(float, cached["scores"]))
        if "lefts" in cached:
            self.pairs = PairRanks.from_cache(cached, len(tokens))
        if "by_rank" in cached:
            self.model = {**self.model, "merges": BY_RANK}
        return Vocabulary.checked(tokens, cached["types"].tobytes())

    def _model_vocab(self, vocabulary: Vocabulary, cached: Arrays) -> dict[str, int]:
        """Piece → id of the model's own pieces, without added tokens outside the model."""
        pieces = dict(vocabulary.ids)
        for index in cached["outside"].tolist():
            del pieces[vocabulary.tokens[index]]
        return pieces

    def wrong(self, where: str, problem: str) -> FileFormatError:
        return FileFormatError(self.path, where, problem)

    def of(self, name: str) -> Json | None:
        """The component ``name``, or None if it is null or missing."""
        value = self._spec.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, f"expected an object, found {type(value).__name__}")
        return value

    def build(self, make: Callable[[TokenizerJson, Json | None], StageT], name: str) -> StageT:
        """The stage that ``make`` builds from the component ``name``.

        Raises :class:`FileFormatError` if a field is missing or has the wrong type.
        """
        try:
            return make(self, self.of(name))
        except (KeyError, IndexError, TypeError, AttributeError) as bad:
            problem = f"a field is missing or of the wrong type: {type(bad).__name__} {bad}"
            raise self.wrong(name, problem) from bad

    def component(self, spec: Json, where: str, *known: str, **allowed: Sequence[Any]) -> Json:
        """Return ``spec``. Raises :class:`UnsupportedModel` for a field not in ``known`` or a value not ``allowed``."""
        kind = f"{where} {shown(str(spec['type']))}" if "type" in spec else where
        for key in spec.keys() - {"type", *known}:
            raise UnsupportedModel(
                f"{self.path.name}: {kind}: field {brief(key)} is not implemented; known are {', '.join(known)}"
            )
        for key, values in allowed.items():
            if key in spec and spec[key] not in values:
                raise UnsupportedModel(
                    f"{self.path.name}: {kind}: {key}={brief(spec[key])} is not implemented; "
                    f"possible are {', '.join(map(repr, values))}"
                )
        return spec

    def id_of(self, token: Any, field: str) -> int:
        """The id of a token that a field names."""
        if not isinstance(token, str) or token not in self.vocabulary.ids:
            raise self.wrong(field, f"{brief(token)} is not in the vocabulary")
        return self.vocabulary.ids[token]

    def text(self, spec: Json, key: str, default: str | None = None) -> str:
        """The string in a field."""
        value = spec.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, f"expected a string, found {brief(value)}")
        return value

    def whole(self, spec: Json, key: str, low: int, high: int, default: int | None = None) -> int:
        """The integer in a field, from ``low`` to ``high``."""
        value = spec.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"{brief(value)} is not a whole number from {low:,} to {high:,}")
        return value

    @cached_property
    def text_ids(self) -> dict[str, int]:
        """Piece → id without control tokens, which text must never become."""
        text = dict(self.vocab)
        for index in self.vocabulary.special_ids:
            text.pop(self.vocabulary.tokens[index], None)
        return text

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """Byte → id of the model's pieces ``<0xNN>``; empty without byte fallback."""
        named = ((byte, self.vocab.get(f"<0x{byte:02X}>")) for byte in range(256))
        ids = {byte: index for byte, index in named if index is not None}
        return ids if self.model.get("byte_fallback") else {}

    def _ids(self) -> dict[str, int]:
        vocab = self.model.get("vocab")
        if self.model.get("type") == "Unigram":
            return self._scored(vocab)
        if not isinstance(vocab, dict):
            raise self.wrong("model.vocab", f"expected an object, found {type(vocab).__name__}")
        if not set(map(type, vocab.values())) <= {int}:
            piece = next(piece for piece, index in vocab.items() if type(index) is not int)
            raise self.wrong("model.vocab", f"the id of {brief(piece)} is {brief(vocab[piece])}")
        return vocab

    def _scored(self, vocab: Any) -> dict[str, int]:
        """Piece → id from a list of [piece, score]; sets ``scores``."""
        if not isinstance(vocab, list):
            raise self.wrong("model.vocab", f"expected an array, found {type(vocab).__name__}")
        for at, entry in enumerate(vocab):
            if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
                raise self.wrong(f"model.vocab[{at}]", f"{brief(entry)} is not a piece and a score")
            if type(entry[1]) not in (int, float) or not abs(entry[1]) <= float_info.max:
                problem = f"the score of {brief(entry[0])} is {brief(entry[1])}, not a finite number"
                raise self.wrong(f"model.vocab[{at}]", problem)
        self.scores = [float(score) for _, score in vocab]
        return distinct_ids([piece for piece, _ in vocab], self.path, "model.vocab")

    def _added(self, at: int, token: Any) -> AddedToken:
        where = f"added_tokens[{at}]"
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise self.wrong(where, f"{brief(token)} has no id and content")
        flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
        self.component(token, where, "id", "content", *flags)
        if len(token["content"]) > MAX_LETTERS:
            problem = f"{len(token['content']):,} characters; {MAX_LETTERS:,} are allowed"
            raise self.wrong(f"{where}.content", problem)
        if self.vocab.get(token["content"], token["id"]) != token["id"]:
            raise self.wrong(where, f"{brief(token['content'])} has another id in the vocabulary")
        return AddedToken(token["id"], token["content"], **{flag: bool(token.get(flag)) for flag in flags})

    def _numbered(self, listed: Sequence[AddedToken]) -> list[AddedToken]:
        """The added tokens; tokens without a piece get the ids after the model's pieces.

        If two tokens have the same text, the last is used; it is special if either token is special.
        """
        by_text = dict[str, AddedToken]()
        following = len(self.vocab)
        for token in listed:
            before = by_text.get(token.text)
            index = self.vocab.get(token.text) if before is None else before.id
            if index is None and token.text:
                index, following = following, following + 1
            if index is not None:
                special = token.special or (before is not None and before.special)
                by_text[token.text] = replace(token, id=index, special=special)
        return list(by_text.values())

    def _vocabulary(self) -> Vocabulary:
        ids = {**self.vocab, **{token.text: token.id for token in self.added}}
        if not self.vocab:
            raise self.wrong("model.vocab", "the vocabulary is empty")
        size = max(ids.values()) + 1
        if min(ids.values()) < 0 or size > 2 * len(ids) + 1024:
            piece = min(ids, key=ids.__getitem__) if min(ids.values()) < 0 else max(ids, key=ids.__getitem__)
            raise self.wrong(
                "model.vocab", f"the id of {brief(piece)}, {ids[piece]}, is out of range for {len(ids):,} pieces"
            )
        # Some files leave gaps: ids without a piece get a name that no text contains.
        tokens = [f"\0unused {index}" for index in range(size)]
        types = [int(TokenType.UNUSED)] * size
        for piece, index in ids.items():
            if types[index] != TokenType.UNUSED:
                raise self.wrong("model.vocab", f"{brief(tokens[index])} and {brief(piece)} share id {index}")
            tokens[index], types[index] = piece, int(TokenType.NORMAL)
        for index in self.byte_ids.values():
            types[index] = int(TokenType.BYTE)
        for token in self.added:
            types[token.id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
        return Vocabulary(tokens, types, self.path, "model.vocab")


class ComponentReader(Struct, Generic[StageT], frozen=True):
    """Builds the step of one ``type`` of a component.

    ``fields`` are the fields that the type may have, ``allowed`` the implemented values of some fields.
    """

    build: Callable[[TokenizerJson, Json], StageT]
    fields: tuple[str, ...] = ()
    allowed: Mapping[str, Sequence[Any]] = {}


def read_steps(
    parts: TokenizerJson, spec: Json | None, name: str, inner: str, readers: Mapping[str, ComponentReader[StageT]]
) -> list[StageT]:
    """The steps of the component ``name``, in order. A ``Sequence`` has its steps in the field ``inner``.

    Raises :class:`UnsupportedModel` for a type without a reader.
    """
    steps: list[StageT] = []
    pending: list[Json] = [] if spec is None else [spec]
    seen = 0
    while pending:
        seen += 1
        step = pending.pop()
        if seen + len(pending) > MAX_STAGES:
            raise UnsupportedModel(
                f"{parts.path.name}: {name} of more than {MAX_STAGES} components; {MAX_STAGES} are allowed"
            )
        if not isinstance(step, dict):
            raise FileFormatError(parts.path, name, f"expected an object, found {type(step).__name__}")
        if (kind := step.get("type")) == "Sequence":
            nested = parts.component(step, name, inner).get(inner)
            if not isinstance(nested, list):
                problem = f"expected an array, found {type(nested).__name__}"
                raise FileFormatError(parts.path, f"{name}.{inner}", problem)
            pending.extend(reversed(nested))
            continue
        if (reader := readers.get(str(kind))) is None:
            raise UnsupportedModel(
                f"{parts.path.name}: {name} {brief(kind)} is not implemented; known are Sequence, {', '.join(readers)}"
            )
        parts.component(step, name, *reader.fields, **reader.allowed)
        steps.append(reader.build(parts, step))
    return steps
