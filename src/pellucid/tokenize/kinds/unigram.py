"""SentencePiece Unigram: the most likely segmentation of a text into pieces (Kudo 2018, "Subword regularization").

The score of a piece is its log-probability. Viterbi's algorithm tries all pieces that begin at each position, and finds
the segmentation with the greatest sum of scores. A character that is not a piece counts as unknown, with a penalty.
Adjacent unknown characters become one token, or become their bytes if the vocabulary has pieces for bytes. T5, ALBERT,
XLM-R and XGLM use this kind. GGUF calls this kind ``t5``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from struct import pack, unpack
from typing import TYPE_CHECKING, Any

from pellucid.errors import brief
from pellucid.kernels.core.definitions import KernelKey
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.gguf_fields import GGUFFields, SpecialTokenDefaults
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.files.sentencepiece import UNIGRAM, SentencePieceFile, SentencePieceParts, from_spec
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel, without_token
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
    from pellucid.tokenize.files.tokenizer_json import TokenizerJson

UNKNOWN_PENALTY = 10.0
"""Difference between the lowest score of a piece and the score of an unknown character.

Source: SentencePiece, ``kUnkPenalty``.
"""

RESET = 100_000.0
"""A float32 sum of scores beyond this number is reset to 0. Source: SentencePiece, ``kScoreResetThreshold``."""

NO_ID = -1  # id of unknown characters, if the vocabulary has no unknown token

Node = tuple[float, int, int]
"""The best segmentation up to a position: its score, the start of its last piece, the id of that piece."""


class Unigram(TokenizerModel):
    """The model stage: the most likely segmentation of a pre-token.

    ``pieces`` maps a piece to its id, for every piece that text can become. ``scores`` (V,) has the score of each id.
    ``byte_ids`` maps a byte to its id (empty: no byte fallback). ``unknown`` is the id of unknown characters (None:
    unknown characters are refused). The score of an unknown character is UNKNOWN_PENALTY below ``lowest``, the lowest
    score of a piece. ``always`` maps the ids of user-defined pieces to scores that override ``scores``, so that these
    pieces win over all other pieces.

    With ``exactly``, the model follows SentencePiece. It adds the scores of the whole text and rounds each sum to
    float32, so the rounding depends on all earlier text. Only the last byte of an unknown character covers the
    character. Without ``exactly``, the model follows ``tokenizers``: sums are float64, and each byte covers the whole
    run of unknown characters.

    The model has no ``cut``, not even at positions that no piece spans, because a cut may change the result. Rounding
    decides between two equally likely segmentations, and rounding depends on all earlier text.
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        scores: Sequence[float],
        unknown: int | None,
        byte_ids: Mapping[int, int],
        lowest: float,
        always: Mapping[int, float] | None = None,
        exactly: bool = False,
    ) -> None:
        self._pieces, self._scores, self._byte_ids = pieces, scores, byte_ids
        self._unknown = NO_ID if unknown is None else unknown
        self._always, self._exactly = always or {}, exactly
        self._unknown_score = rounded(lowest - UNKNOWN_PENALTY) if exactly else lowest - UNKNOWN_PENALTY

    @cached_property
    def _reach(self) -> dict[str, int]:
        """Character → the length of the longest piece that begins with this character."""
        lengths: dict[str, int] = {}
        for piece in filter(None, self._pieces):
            lengths[piece[0]] = max(lengths.get(piece[0], 0), len(piece))
        return lengths

    def spans(self, pre_token: str) -> list[Span]:
        fused: list[Span] = []
        for index, start, stop in self._best(pre_token):
            known = index != self._unknown
            if known or not fused or fused[-1][0] != index or (self._exactly and self._byte_ids):
                fused.append((index, start, stop))
            else:
                fused[-1] = (index, fused[-1][1], stop)
        spans: list[Span] = []
        for index, start, stop in fused:
            text = pre_token[start:stop] if index == self._unknown else ""
            index, data = self._pieces.get(text, index), b"" if text in self._pieces else text.encode()
            if data and self._byte_ids.keys() >= set(data):
                ends = [start if self._exactly else stop] * (len(data) - 1) + [stop]
                spans.extend((self._byte_ids[byte], start, end) for byte, end in zip(data, ends))
            else:
                spans.append((index, start, stop))
        return spans

    def _candidates(self, pre_token: str, start: int) -> list[Span]:
        """The pieces that begin at a position, shortest first, and the unknown token if no piece has one character."""
        candidates = []
        for stop in range(start + 1, min(len(pre_token), start + self._reach.get(pre_token[start], 0)) + 1):
            index = self._pieces.get(pre_token[start:stop])
            if index is not None:
                candidates.append((index, start, stop))
        if not candidates or candidates[0][2] != start + 1:
            candidates.append((self._unknown, start, start + 1))
        return candidates

    def _score(self, index: int, text: str) -> float:
        """The score of an id for ``text``. The unknown token has its listed score only if ``text`` is its own piece."""
        if index == self._unknown and self._pieces.get(text) != index:
            return self._unknown_score
        return self._always[index] if index in self._always else self._scores[index]

    def _best(self, pre_token: str) -> list[Span]:
        """The most likely segmentation. Of equally likely segmentations, the first found is returned."""
        best: list[Node | None] = [(0.0, 0, 0), *[None] * len(pre_token)]
        reached = 0
        for start in range(len(pre_token)):
            previous = best[start]
            if previous is None:
                continue
            so_far = previous[0]
            if self._exactly and abs(so_far) > RESET:
                for at, node in enumerate(best[start : reached + 1], start):
                    if node is not None:
                        best[at] = (rounded(node[0] - so_far), *node[1:])
                so_far = 0.0
            for index, _, stop in self._candidates(pre_token, start):
                score = so_far + self._score(index, pre_token[start:stop])
                if self._exactly:
                    score = rounded(score)
                other = best[stop]
                reached = max(reached, stop)
                if other is None or score > other[0]:
                    if index == NO_ID:
                        raise without_token(pre_token[start:stop])
                    best[stop] = (score, start, index)
        spans: list[Span] = []
        stop = len(pre_token)
        while stop:
            node = best[stop]
            assert node is not None  # unknown characters reach every position that no piece reaches
            spans.append((node[2], node[1], stop))
            stop = node[1]
        return spans[::-1]

    @cached_property
    def kernel(self) -> KernelKey | None:
        """The kernel of the compiled form; None if unknown characters are refused, or can form a piece together."""
        has_piece = self._unknown in self._pieces.values()
        if self._unknown == NO_ID or has_piece or self._unknown_score > 0:
            return None
        return KernelKey("text.unigram", single=self._exactly)

    def compiled(self) -> CompiledModel:
        import numpy as np

        from pellucid.kernels.text import segment
        from pellucid.tokenize.compiled.compiled_pipeline import CompiledModel
        from pellucid.tokenize.compiled.tables import PieceTree, SpelledPieces, byte_table

        scores = np.array(self._scores, np.float64)
        for index, score in self._always.items():
            scores[index] = score
        if self._exactly:
            scores = scores.astype(np.float32).astype(np.float64)
        spelled = SpelledPieces.by_id(self._pieces, len(scores))
        tree, lengths = PieceTree(spelled), spelled.lengths
        lengths[[self._unknown, *self._byte_ids.values()]] = -1
        known = {
            "slots": tree.slots,
            "ids": tree.ids,
            "scores": scores,
            "unknown": self._unknown,
            "unknown_score": self._unknown_score,
            "bytes": byte_table(self._byte_ids),
            "spelled": int(bool(self._byte_ids)),
        }
        scratch_bytes = segment.scratch_bytes
        assert self.kernel is not None
        return CompiledModel(self.kernel, segment.UnigramRecord, scratch_bytes, lengths, known)

    def explain(self, pre_token: str) -> dict[str, Any]:
        """All candidate pieces with their positions and scores, and the best segmentation with its sum."""
        edges = [span for start in range(len(pre_token)) for span in self._candidates(pre_token, start)]
        best = self._best(pre_token)
        return {
            "lattice": [self._edge(pre_token, span) for span in edges],
            "best": [pre_token[start:stop] for _, start, stop in best],
            "score": sum(self._score(index, pre_token[start:stop]) for index, start, stop in best),
        }

    def _edge(self, pre_token: str, span: Span) -> dict[str, Any]:
        index, start, stop = span
        text = pre_token[start:stop]
        return {"at": start, "piece": text, "id": index, "score": self._score(index, text)}


def rounded(score: float) -> float:
    """The float32 nearest to a score."""
    single: float = unpack("<f", pack("<f", score))[0]
    return single


def from_json(parts: TokenizerJson) -> Unigram:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", "vocab", "unk_id", "byte_fallback")
    unknown = model.get("unk_id")
    if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(parts.scores)):
        problem = f"{brief(unknown)} is not an id; they go from 0 to {len(parts.scores) - 1}"
        raise parts.wrong("model.unk_id", problem)
    names = {f"<0x{byte:02X}>" for byte in parts.byte_ids}
    return Unigram(
        {piece: index for piece, index in parts.text_ids.items() if piece and piece not in names},
        parts.scores,
        unknown,
        parts.byte_ids,
        lowest=min(parts.scores, default=0.0),
    )


def from_gguf(fields: GGUFFields) -> Tokenizer:
    """A tokenizer from the fields of a GGUF file, which come from a SentencePiece model. Raises FileFormatError."""
    vocabulary = _with_mask(fields, fields.vocabulary())
    scores = fields.scores(vocabulary.size)
    charsmap = fields.array("precompiled_charsmap") or []
    if not set(map(type, charsmap)) <= {int} or not all(-128 <= byte < 256 for byte in charsmap):
        raise fields.wrong("precompiled_charsmap", "not an array of bytes")
    normalizer = {
        "precompiled_charsmap": bytes(byte & 255 for byte in charsmap),
        "add_dummy_prefix": int(fields.get("ggml.add_space_prefix", bool, True)),
        "remove_extra_whitespaces": int(fields.get("ggml.remove_extra_whitespaces", bool, True)),
    }
    trainer = {"model_type": UNIGRAM}
    spec = SentencePieceFile(list(vocabulary.tokens), list(scores), [*vocabulary.types], trainer, normalizer)
    shared = fields.shared(
        vocabulary,
        SpecialTokenDefaults(eos=True, sep=True, mask_lstrip=True),
        handled=("remove_extra_whitespaces", "precompiled_charsmap"),
    )
    described = {token.text: {"lstrip": token.lstrip} for token in shared["added"]}
    for ours in ("vocabulary", "added", "normalized_added"):
        del shared[ours]
    return from_spec(spec, vocabulary, fields.path, from_sentencepiece, described, **shared)


def _with_mask(fields: GGUFFields, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with XLM-R's mask token. llama.cpp's converter leaves its id without a piece."""
    mask = fields.token_id("mask", vocabulary.size)
    if mask is None or vocabulary.types[mask] != TokenType.UNUSED or "<mask>" in vocabulary.ids:
        return vocabulary
    tokens, types = [*vocabulary.tokens], [*vocabulary.types]
    tokens[mask], types[mask] = "<mask>", int(TokenType.CONTROL)
    return Vocabulary(tokens, types, fields.path, "tokenizer.ggml.tokens")


def from_sentencepiece(parts: SentencePieceParts) -> Unigram:
    """The model stage of a SentencePiece file."""
    file, vocabulary = parts.file, parts.vocabulary
    normal = [file.scores[at] for at, type_ in enumerate(file.types) if type_ == TokenType.NORMAL]
    # As in SentencePiece 0.2.3, the file's scores do not matter. Earlier versions used the greatest score in place of
    # the factor 0.1.
    always = {
        index: rounded(0.1 * len(vocabulary.tokens[index].encode()) - 0.1)
        for index in vocabulary.of_type(TokenType.USER_DEFINED)
    }
    lowest = rounded(min(normal, default=0.0))
    return Unigram(parts.pieces, file.scores, parts.unknown, parts.byte_ids, lowest, always, exactly=True)


KIND = Kind(
    "unigram",
    gguf={"t5": from_gguf},
    json=JsonModelReader("Unigram", from_json),
    sentencepiece={UNIGRAM: from_sentencepiece},
)
