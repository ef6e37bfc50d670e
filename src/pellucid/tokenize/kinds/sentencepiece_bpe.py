"""SentencePiece-style BPE with byte fallback: characters merged by score (Kudo & Richardson 2018).

Spaces become ``▁`` and words are not split off; a character without a piece is spelled as its UTF-8 bytes,
``<0x00>`` … ``<0xFF>``. GGUF calls this ``llama``; Gemma, Llama 2 and Mistral are of this kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pellucid.errors import FileFormatError
from pellucid.tokenize.base import Normalizer, Tokenizer
from pellucid.tokenize.decode import ByteFallbackDecoder
from pellucid.tokenize.gguf import Fields, check_scores
from pellucid.tokenize.huggingface import Parts
from pellucid.tokenize.kinds.byte_bpe import BPE_FIELDS, BPE_VALUES, pair_ranks, text_ids
from pellucid.tokenize.merges import PairRanks, ScoreRanks, merge
from pellucid.tokenize.normalize import Prepend, Replace, sequence
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

GGUF_MODEL = "llama"
JSON_MODEL = "BPE"
SPACE = "▁"


class CharBPE:
    """The model stage: the characters of a pre-token, merged.

    ``pieces`` is text → id of everything that text may become, ``byte_ids`` the id of each byte (empty: no byte
    fallback), ``unknown`` the id of what has no piece and no bytes (None: it is dropped), of which neighbours
    become one where ``fuse``.
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        pairs: PairRanks | ScoreRanks,
        byte_ids: Mapping[int, int],
        unknown: int | None,
        fuse: bool = True,
        ignore_merges: bool = False,
    ) -> None:
        self.pairs, self._pieces, self._byte_ids = pairs, pieces, byte_ids
        self._unknown, self._fuse, self._ignore_merges = unknown, fuse, ignore_merges

    def __call__(self, piece: str) -> list[int]:
        if self._ignore_merges and (whole := self._pieces.get(piece)) is not None:
            return [whole]
        ids: list[int] = []
        for character in piece:
            known = self._pieces.get(character)
            if known is not None:
                ids.append(known)
            else:
                self._spell(character, ids)
        return merge(ids, self.pairs)

    def _spell(self, character: str, ids: list[int]) -> None:
        data = character.encode()
        if self._byte_ids.keys() >= set(data):
            ids.extend(self._byte_ids[byte] for byte in data)
        elif self._unknown is not None and not (self._fuse and ids and ids[-1] == self._unknown):
            ids.append(self._unknown)


class SpaceCut:
    """Cuts before ``▁`` wherever no piece could span the cut, which changes no id and lets words be remembered.

    A piece has ``▁`` inside only after the few characters in ``joined`` (Gemma has one such piece, ``>▁</``).
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        inner = re.findall(f"[^{SPACE}\0](?={SPACE})", "\0".join(self._tokens))
        joined = "".join(map(re.escape, sorted(set(inner))))
        after = f"|(?<=[{joined}]){SPACE}+" if joined else ""
        return re.compile(f"{SPACE}*(?:[^{SPACE}]+{after})+|{SPACE}+")

    def __call__(self, text: str, first: bool) -> list[str]:
        return self._pattern.findall(text)


def byte_table(vocabulary: Vocabulary, path: Path, field: str) -> dict[int, int]:
    """Id → byte of the tokens of type BYTE. Raises :class:`FileFormatError` for one that names no byte."""
    table: dict[int, int] = {}
    for index in vocabulary.of_type(TokenType.BYTE):
        found = re.fullmatch("<0x([0-9A-F]{2})>", vocabulary.tokens[index])
        if not found:
            raise FileFormatError(path, field, f"byte token {index} is called {vocabulary.tokens[index]!r}")
        table[index] = int(found[1], 16)
    return table


def from_gguf(fields: Fields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file. Raises FileFormatError."""
    vocabulary = fields.vocabulary()
    scores = fields.array("scores", vocabulary.size)
    if scores is None:
        raise FileFormatError(fields.path, "tokenizer.ggml.scores", "missing")
    pieces = dict(vocabulary.ids)
    for index in vocabulary.of_type(*SPECIAL_TYPES, TokenType.BYTE):
        del pieces[vocabulary.tokens[index]]
    values = byte_table(vocabulary, fields.path, "tokenizer.ggml.tokens")
    shared = fields.shared(vocabulary, add_bos=True)
    unknown = fields.token_id("unknown", vocabulary.size)
    user = frozenset(vocabulary.of_type(TokenType.USER_DEFINED))
    pairs = ScoreRanks(vocabulary.tokens, pieces, check_scores(fields.path, scores), first=user)
    prefix = fields.get("ggml.add_space_prefix", bool, True)
    steps: list[Normalizer] = [Prepend(SPACE)] if prefix else []
    return Tokenizer(
        normalizer=sequence([*steps, Replace(" ", SPACE)]),
        pre_tokenizer=SpaceCut(vocabulary.tokens),
        model=CharBPE(pieces, pairs, {byte: index for index, byte in values.items()}, unknown),
        decoder=ByteFallbackDecoder(
            vocabulary.tokens, values, frozenset(vocabulary.of_type(*SPECIAL_TYPES)), strip=prefix
        ),
        **shared,
    )


def claims(parts: Parts) -> bool:
    """Whether a ``tokenizer.json`` with this type of model is of this kind."""
    return not parts.has_pre_tokenizer("ByteLevel")


def from_json(parts: Parts) -> CharBPE:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", *BPE_FIELDS, **BPE_VALUES)
    pairs = pair_ranks(model["merges"], parts.vocab, parts.vocabulary, parts.path, "model.merges")
    pieces = text_ids(parts.vocab, parts.vocabulary)
    values = byte_table(parts.vocabulary, parts.path, "model.vocab")
    unknown = None if model.get("unk_token") is None else parts.id_of(model["unk_token"], "model.unk_token")
    return CharBPE(
        pieces,
        pairs,
        {byte: index for index, byte in values.items()},
        unknown,
        bool(model.get("fuse_unk")),
        bool(model.get("ignore_merges")),
    )
