"""The ids of a SentencePiece file in a model whose tokenizer class numbers the pieces differently.

In: the file and its class (``files/tokenizer_classes.py``), or the ids of a ``vocab.json``. Out: a tokenizer.
``files/sentencepiece.py`` builds it from a copy of the file with one piece per id of the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files import sentencepiece
from pellucid.tokenize.files.sentencepiece import ModelBuilder, SentencePieceFile, from_file
from pellucid.tokenize.files.sidecar import Sidecar
from pellucid.tokenize.files.tokenizer_classes import Json, TokenizerClass
from pellucid.tokenize.files.vocab_files import read_ids
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

LANGUAGE = re.compile(">>(.+)<<")
"""A token of Marian's vocabularies, which begins a text and names the language to translate into."""


def with_class_pieces(
    file: SentencePieceFile, known: TokenizerClass, config: Json, names: Mapping[str, str]
) -> SentencePieceFile:
    """The file with the pieces of its class at the start and the end. ``names`` are the special tokens."""
    first, kept, own = known.first(config), slice(known.replaced, None), set(file.pieces)
    last = [piece for piece in known.last(config) if piece not in own]
    unknown = names["unk_token"] if TokenType.UNKNOWN in file.types[: known.replaced] else None
    types = [_type(piece, unknown) for piece in first]
    scores = file.scores[kept]
    if known.splits_commas:
        scores = [score - 100 * _joins_comma(piece) for piece, score in zip(file.pieces[kept], scores)]
    return replace(
        file,
        pieces=[*first, *file.pieces[kept], *last],
        scores=[*[0.0] * len(first), *scores, *[0.0] * len(last)],
        types=[*types, *file.types[kept], *[int(TokenType.CONTROL)] * len(last)],
    )


def _type(piece: str, unknown: str | None) -> int:
    """The type of a piece that a class puts before the pieces of the file."""
    if piece.endswith("NOTUSED"):
        return int(TokenType.UNUSED)
    return int(TokenType.UNKNOWN if piece == unknown else TokenType.CONTROL)


def _joins_comma(piece: str) -> bool:
    return piece.endswith(",") and piece[-2:-1].isdigit()


def with_vocab_ids(
    file: SentencePieceFile, ids: Mapping[str, int], special: Mapping[str, int], path: Path
) -> SentencePieceFile:
    """The file with the ids of a ``vocab.json``; pieces that the ``vocab.json`` lacks follow.

    ``special`` maps tokens that text does not become to their types. Raises :class:`FileFormatError`.
    """
    size = len(ids)
    if sorted(ids.values()) != list(range(size)):
        raise FileFormatError(path, "vocab.json", f"the ids of {size} pieces are not 0 to {size - 1}")
    own = {piece: at for at, piece in enumerate(file.pieces)}
    pieces, scores, types = sorted(ids, key=ids.__getitem__), list[float](), list[int]()
    for piece in pieces:
        at = own.get(piece)
        scores.append(0.0 if at is None else file.scores[at])
        types.append(special.get(piece, int(TokenType.UNUSED) if at is None else file.types[at]))
    for piece, at in own.items():
        if piece not in ids and file.types[at] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            pieces.append(piece)
            scores.append(file.scores[at])
            types.append(file.types[at])
    return replace(file, pieces=pieces, scores=scores, types=types)


class KnownPieces(TokenizerModel):
    """A model stage whose pieces from the id ``size`` on are unknown to the neural network."""

    def __init__(self, model: TokenizerModel, size: int, unknown: int) -> None:
        self._model, self._size, self._unknown = model, size, unknown

    def spans(self, pre_token: str) -> list[Span]:
        spans = self._model.spans(pre_token)
        return [(index if index < self._size else self._unknown, start, end) for index, start, end in spans]

    def explain(self, pre_token: str) -> Mapping[str, Any]:
        return self._model.explain(pre_token)


def from_class(file: SentencePieceFile, path: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar) -> Tokenizer:
    """A tokenizer with the ids and special tokens of a known class. Raises as ``sentencepiece.from_file``."""
    known = sidecar.known
    assert known is not None
    if sidecar.config.get("split_by_punct"):
        raise UnsupportedModel(f"{path.name}: split_by_punct in tokenizer_config.json is not implemented")
    file = with_class_pieces(file, known, sidecar.config, sidecar.names())
    return from_file(file, path, models, sidecar, normalizers=known.normalizers(sidecar.config))


def from_vocab_json(
    file: SentencePieceFile, path: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar
) -> Tokenizer:
    """A tokenizer with the ids of the ``vocab.json`` next to a SentencePiece file. Raises as ``from_class``.

    The texts that a Marian model writes have a SentencePiece file of their own, ``target.spm``, and may have ids of
    their own, in ``target_vocab.json``.
    """
    of_source, of_target = (path.with_name(name) for name in ("vocab.json", "target_vocab.json"))
    source = _with_ids_of(file, path, of_source, models, sidecar)
    if not (other := path.with_name("target.spm")).is_file():
        return source
    of_target = of_target if sidecar.config.get("separate_vocabs") else of_source
    target = sentencepiece.read(other.read_bytes(), other)
    return dataclasses.replace(source, target=_with_ids_of(target, other, of_target, models, sidecar))


def _with_ids_of(
    file: SentencePieceFile, path: Path, vocab: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar
) -> Tokenizer:
    """A tokenizer with the ids of the file ``vocab``, and of the languages after them."""
    if not vocab.is_file():
        raise FileFormatError(vocab, "file", f"missing: {path.name} of a {sidecar.kind} has its ids there")
    ids = read_ids(vocab)
    tokens = sidecar.languages
    ids |= {token: len(ids) + at for at, token in enumerate(tokens.values())}
    names, started = sidecar.names(), {piece: LANGUAGE.fullmatch(piece) for piece in ids}
    special = dict.fromkeys((*names.values(), *tokens.values()), int(TokenType.CONTROL))
    special |= {piece: int(TokenType.UNUSED) for piece, found in started.items() if found}
    special[names["unk_token"]] = int(TokenType.UNKNOWN)
    whole = with_vocab_ids(file, ids, special, vocab)
    found = from_file(whole, path, models, sidecar)
    size, pieces = len(ids), found.vocabulary
    if pieces.size > size:
        (unknown,) = pieces.of_type(TokenType.UNKNOWN)
        pieces = Vocabulary(pieces.tokens[:size], pieces.types[:size], vocab, "vocab.json")
        found = dataclasses.replace(found, vocabulary=pieces, model=KnownPieces(found.model, size, unknown))
    if not any(started.values()):
        return found
    codes = {match[1]: ids[piece] for piece, match in started.items() if match}
    added = [*found.added, *(AddedToken(ids[f">>{code}<<"], f">>{code}<<", text_start=True) for code in codes)]
    return dataclasses.replace(found, added=AddedTokens(added), languages=codes)
