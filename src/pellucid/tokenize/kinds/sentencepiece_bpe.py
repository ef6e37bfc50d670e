"""SentencePiece-style BPE with byte fallback: characters merged by score (Kudo & Richardson 2018).

Spaces become ``▁`` and words are not split off; a character without a piece is spelled as its UTF-8 bytes,
``<0x00>`` … ``<0xFF>``. GGUF calls this ``llama``; Gemma, Llama 2 and Mistral are of this kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import FileFormatError
from pellucid.messages import brief
from pellucid.tokenize.base import Tokenizer
from pellucid.tokenize.decode import SPACE, ByteFallbackDecoder
from pellucid.tokenize.gguf import Fields, check_scores
from pellucid.tokenize.huggingface import Parts
from pellucid.tokenize.kinds import byte_bpe
from pellucid.tokenize.kinds.byte_bpe import BPE_FIELDS, BPE_VALUES, json_pairs, merges_told
from pellucid.tokenize.kinds.char import Chars
from pellucid.tokenize.merges import Log, Ranks, ScoreRanks, Span, merge, merge_spans
from pellucid.tokenize.normalize import Normalizer, Prepend, Replace, sequence
from pellucid.tokenize.oniguruma_sets import quoted
from pellucid.tokenize.pretokenize import PreTokenizer, Split
from pellucid.tokenize.vocabulary import SPECIAL_TYPES, TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.compiled import Model

GGUF_MODEL = "llama"
JSON_MODEL = "BPE"


class CharBPE(Chars):
    """The model stage: the characters of a pre-token, as in :class:`Chars`, merged.

    ``ignore_merges``: a pre-token that is a piece is that one, whatever its characters merge to.
    """

    separates = True

    def __init__(
        self,
        names: Sequence[str],
        pieces: Mapping[str, int],
        pairs: Ranks,
        byte_ids: Mapping[int, int],
        unknown: int | None,
        fuse: bool = True,
        ignore_merges: bool = False,
        exactly: bool = False,
    ) -> None:
        super().__init__(names, pieces, byte_ids, unknown, fuse, exactly)
        self.pairs, self._ignore_merges = pairs, ignore_merges

    @cached_property
    def cut(self) -> Split | None:  # type: ignore[override]
        """Before ``▁``, wherever no piece spans the cut.

        A piece has ``▁`` inside only after few characters (Gemma has one such piece, ``>▁</``).
        """
        if self._ignore_merges or SPACE not in self._pieces:
            return None
        inner = re.findall(f"[^{SPACE}\0](?={SPACE})", "\0".join(self._pieces))
        joined = quoted("".join(sorted(set(inner))))
        word = f"(?:[{joined}]{SPACE}*|[^{SPACE}{joined}])" if joined else f"[^{SPACE}]"
        return Split(f"{SPACE}*{word}+|{SPACE}+")

    def __call__(self, piece: str) -> list[int]:
        if self._ignore_merges and (whole := self._pieces.get(piece)) is not None:
            return [whole]
        known = [self._pieces.get(character) for character in piece]
        if None in known:
            return merge([index for index, _, _ in self.symbols(piece)], self.pairs)
        return merge(known, self.pairs)  # type: ignore[arg-type]

    def spans(self, piece: str, log: Log | None = None) -> list[Span]:
        """The ids with the characters that they stand for: all bytes of a character stand for all of it."""
        if self._ignore_merges and (whole := self._pieces.get(piece)) is not None:
            return [(whole, 0, len(piece))]
        return merge_spans(self.symbols(piece), self.pairs, log)

    def explain(self, piece: str) -> dict[str, Any]:
        """The merges in order, each with its rank or score; or that the vocabulary has the pre-token as a whole."""
        if self._ignore_merges and piece in self._pieces:
            return {"whole": True}
        return merges_told(self.symbols(piece), self.pairs, self._names)

    @property
    def kernel(self) -> tuple[str, tuple[Any, ...]]:
        """What ``compiled`` is based on."""
        return "text.merge", ("characters", self._ignore_merges)

    def compiled(self) -> Model:
        """The same as compiled code."""
        import numpy as np

        from pellucid.tokenize.compiled import merging
        from pellucid.tokenize.tables import Neighbours, Spelled, Words, byte_table
        from pellucid.tokenize.unicode import CODES

        characters = np.full(CODES, -1, np.int32)
        for piece, index in self._pieces.items():
            if len(piece) == 1:
                characters[ord(piece)] = index
        # Unknown neighbours become one; where they vanish, those on their sides are neighbours.
        together = (characters < 0) & (len(self._byte_ids) < 256 and (self._fuse or self._unknown is None))
        spelled = Spelled.by_id(self._pieces, self.pairs.size)
        lengths = spelled.lengths
        lengths[[*self._byte_ids.values()]] = -1 if self._exactly else 1
        if self._unknown is not None:
            lengths[self._unknown] = -1
        return merging(
            "characters",
            self._ignore_merges,
            self.pairs.compiled(),
            Words(spelled),
            Neighbours.of_text(self._pieces, together),
            lengths,
            bytes=byte_table(self._byte_ids),
            characters=characters,
            unknown=-1 if self._unknown is None else self._unknown,
            fuse=int(self._fuse),
        )


def byte_pieces(vocabulary: Vocabulary, path: Path, field: str) -> dict[int, int]:
    """Id → byte of the tokens of type BYTE. Raises :class:`FileFormatError` for one that names no byte."""
    table: dict[int, int] = {}
    for index in vocabulary.of_type(TokenType.BYTE):
        found = re.fullmatch("<0x([0-9A-F]{2})>", vocabulary.tokens[index])
        if not found:
            raise FileFormatError(
                path, field, f"byte token {index} is called {brief(vocabulary.tokens[index])}"
            )
        table[index] = int(found[1], 16)
    return table


def from_gguf(fields: Fields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file. Raises FileFormatError."""
    vocabulary = fields.vocabulary()
    scores = fields.array("scores", vocabulary.size)
    if scores is None:
        raise FileFormatError(fields.path, "tokenizer.ggml.scores", "missing")
    pieces = vocabulary.ids_but(*SPECIAL_TYPES, TokenType.BYTE)
    values = byte_pieces(vocabulary, fields.path, "tokenizer.ggml.tokens")
    shared = fields.shared(vocabulary, add_bos=True)
    unknown = fields.token_id("unknown", vocabulary.size)
    user = frozenset(vocabulary.of_type(TokenType.USER_DEFINED))
    pairs = ScoreRanks(vocabulary.tokens, pieces, check_scores(fields.path, scores), first=user)
    prefix = fields.get("ggml.add_space_prefix", bool, True)
    steps: list[Normalizer] = [Prepend(SPACE)] if prefix else []
    return Tokenizer(
        normalizer=sequence([*steps, Replace(" ", SPACE)]),
        pre_tokenizer=PreTokenizer(),
        model=CharBPE(
            vocabulary.tokens, pieces, pairs, {byte: index for index, byte in values.items()}, unknown
        ),
        decoder=ByteFallbackDecoder(
            vocabulary.tokens, values, frozenset(vocabulary.of_type(*SPECIAL_TYPES)), strip=prefix
        ),
        **shared,
    )


def claims(parts: Parts) -> bool:
    """Whether a ``tokenizer.json`` with this type of model is of this kind."""
    return not byte_bpe.claims(parts)


def from_json(parts: Parts) -> CharBPE:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", *BPE_FIELDS, **BPE_VALUES)
    pairs = json_pairs(parts)
    pieces = parts.text_ids
    values = byte_pieces(parts.vocabulary, parts.path, "model.vocab")
    unknown = None if model.get("unk_token") is None else parts.id_of(model["unk_token"], "model.unk_token")
    return CharBPE(
        parts.vocabulary.tokens,
        pieces,
        pairs,
        {byte: index for index, byte in values.items()},
        unknown,
        bool(model.get("fuse_unk")),
        bool(model.get("ignore_merges")),
    )
