"""Attention heads: scores of known kinds of heads, the attention of all heads between two tokens, and rollout.

A *previous-token head* attends to the token before the current token. A *duplicate-token head* attends to the previous
occurrence of the current token. An *induction head* attends to the token after the previous occurrence (Olsson et al.
2022, "In-context learning and induction heads"). The lens scores heads on random tokens that are repeated once, because
such a prompt has no other structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Attention
from pellucid.trace.export import Exportable, LabelledArray, json_fields, numbered
from pellucid.trace.lenses import attribution
from pellucid.trace.lenses.attribution import AttributedPosition, attention_of, gathered_points, target
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read
from pellucid.util.checks import whole
from pellucid.util.display import heat

LONGEST = 1024


@dataclass(frozen=True, repr=False)
class HeadScores(Exportable):
    """The mean attention weight of every head for each kind of head, (L, H); NaN where a block has no such head.

    The prompt was ``length`` random tokens, repeated once.
    """

    previous: NDArray[np.float64]
    induction: NDArray[np.float64]
    duplicate: NDArray[np.float64]
    length: int

    def __repr__(self) -> str:
        best = [f"{kind} {layer}.{head} ({score:.2f})" for kind in KINDS for layer, head, score in self.top(kind, 1)]
        return f"HeadScores(best heads: {', '.join(best)})"

    def labelled(self, *names: str) -> list[LabelledArray]:
        """The scores of the given kinds, of all kinds by default. Raises InvalidRequest for another kind."""
        return super().labelled(*(names or KINDS))

    def _values(self) -> list[LabelledArray]:
        layers, heads = self.previous.shape
        axes = (numbered("layer", "L", layers), numbered("head", "H", heads))
        return [LabelledArray(kind, getattr(self, kind), axes) for kind in KINDS]

    def _repr_html_(self) -> str:
        layers, heads = self.previous.shape
        names = [str(layer) for layer in range(layers)], [str(head) for head in range(heads)]
        return "".join(f"<h4>{kind}</h4>{heat(getattr(self, kind), *names, f'{kind} heads')}" for kind in KINDS)

    def top(self, kind: str, count: int = 5) -> list[tuple[int, int, float]]:
        """The heads with the highest scores of a kind: (layer, head, score)."""
        if kind not in KINDS:
            raise InvalidRequest(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
        scores: NDArray[np.float64] = getattr(self, kind)
        return largest(scores, count)


KINDS = ("previous", "induction", "duplicate")


def largest(values: NDArray[np.float64], count: int) -> list[tuple[int, int, float]]:
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), axis=None)[::-1][:count]
    rows, columns = np.unravel_index(order, values.shape)
    return list(zip(rows.tolist(), columns.tolist(), values.flat[order].tolist()))


def pattern_points(model: TracedModel) -> list[str]:
    """The points of the attention patterns of all blocks with attention, without cross attention. Raises InvalidRequest
    if no block has attention.
    """
    names = [
        name
        for name, point in model.points.items()
        if point.kind == "pattern" and not point.of_source and not (point.mask and point.mask.cross)
    ]
    if not names:
        raise InvalidRequest("the model has no attention")
    return names


def head_scores(model: TracedModel, *, length: int = 50, seed: int = 0) -> HeadScores:
    """Score every head on ``length`` random tokens that are repeated once.

    Raises:
        InvalidRequest: the model generates no text, or ``length`` is out of range.
    """
    if not model.spec.generates:
        raise InvalidRequest("heads can be scored only in a model that generates text")
    length = whole("length", length, 2, min(LONGEST, (model.spec.context - 2) // 2))
    random = np.random.default_rng(whole("seed", seed, 0, 1 << 63))
    special = model.tokenizer.vocabulary.special_ids
    drawn: list[int] = []
    while len(drawn) < length:
        token = int(random.integers(min(model.spec.embedding.vocabulary, model.tokenizer.vocab_size)))
        if token not in special:
            drawn.append(token)
    names = pattern_points(model)
    sequence = read(model, [*drawn, *drawn], names)
    layers = len(model.spec.blocks)
    heads = max(model.points[name].heads for name in names)
    scores = {kind: np.full((layers, heads), np.nan) for kind in KINDS}
    for name in names:
        layer, pattern = int(name.split(".")[1]), sequence[name].astype(np.float64)
        offsets = {"previous": 1, "induction": length - 1, "duplicate": length}
        for kind, offset in offsets.items():
            diagonal = np.diagonal(pattern, -offset, 1, 2)
            seen = diagonal if kind == "previous" else diagonal[:, -length:]
            scores[kind][layer, : len(pattern)] = seen.mean(-1)
    return HeadScores(scores["previous"], scores["induction"], scores["duplicate"], length)


@dataclass(frozen=True)
class HeadLook:
    """The attention ``weight`` of a head from one position to another.

    Among the other keys, the token ``other`` has the largest weight, ``other_weight``.
    """

    layer: int
    head: int
    weight: float
    other: str
    other_weight: float


def heads_between(model: TracedModel, of: Any, query: int, key: int) -> list[HeadLook]:
    """All heads in descending order of their attention weight from position ``query`` to ``key``.

    ``of`` is a prompt, or a sequence of a trace that has all patterns.

    Raises:
        InvalidRequest: a position is out of range, or the trace lacks a point.
    """
    names = pattern_points(model)
    sequence = read(model, of, names)
    pieces = sequence.pieces
    query = whole("query", query, 0, len(pieces) - 1)
    key = whole("key", key, 0, len(pieces) - 1)
    looks = []
    for name in names:
        layer = int(name.split(".")[1])
        for head, row in enumerate(sequence[name][:, query]):
            others = row.copy()
            others[key] = -1
            other = int(others.argmax())
            looks.append(HeadLook(layer, head, float(row[key]), pieces[other], float(others[other])))
    return sorted(looks, key=lambda look: -look.weight)


def position_of(pieces: list[str], word: str, *, last: bool = False) -> int:
    """The position of the first (or last) token whose text, without surrounding spaces, is ``word``.

    Raises:
        InvalidRequest: no token has this text.
    """
    positions = [position for position, piece in enumerate(pieces) if piece.strip() == word]
    if not positions:
        raise InvalidRequest(f"word={word!r}: no token of the text is this word; the tokens are {pieces}")
    return positions[-1 if last else 0]


def rollout(model: TracedModel, of: Any, *, residual: float = 0.5) -> NDArray[np.float64]:
    """Attention rollout (Abnar and Zuidema 2020): the share of each input position in each position, (L, T, T).

    The patterns of a block's heads are averaged, and the residual stream counts as ``residual`` of each row. The
    matrices of the blocks are multiplied: entry l is the product up to block l. ``of`` is a prompt, or a sequence of a
    trace that has all patterns.
    """
    names = pattern_points(model)
    sequence = read(model, of, names)
    T = len(sequence)
    product, products = np.eye(T), []
    for name in names:
        pattern = sequence[name].astype(np.float64).mean(0)
        # With an attention sink, the weights of the tokens sum to less than 1.
        pattern = pattern / np.maximum(pattern.sum(-1, keepdims=True), 1e-30)
        product = (residual * np.eye(T) + (1 - residual) * pattern) @ product
        products.append(product)
    return np.stack(products)


# Direct logit attribution by token: the contribution of each token that attention reads to the logit of a token.
#
# The output of a head is the sum of the values of the tokens it attends to, times their weights. So its contribution to
# the logit (``trace/lenses/attribution.py``) is a sum over these tokens (Ferrando et al. 2023, "Explaining How
# Transformers Use Context to Build Predictions", arXiv:2305.12535). In an encoder-decoder, cross attention reads the
# tokens of the source; the values of a source's token are projections of the encoder's output at this token.
#
# ``trace/lenses/relevance.py`` divides a logit among the tokens over all paths through the model instead.


class ContributingToken(NamedTuple):
    """A token of the ``text`` or of the ``source`` with its contribution."""

    of: Literal["text", "source"]
    position: int
    piece: str
    value: float


@dataclass(frozen=True, repr=False)
class TokenContributions:
    """The contributions of tokens to ``logit`` (a logit, or the difference of two logits).

    ``tokens`` (T,) are the contributions of the T tokens up to the position, through all heads that attend to them.
    ``source`` (S,) are the contributions of the source's tokens in an encoder-decoder, through cross attention.
    ``pieces`` and ``source_pieces`` are the texts of the tokens. ``rest`` is the contribution of all other parts at the
    position (its embedding, feed-forwards, biases, rounding). All sum to ``logit``.
    """

    pieces: Sequence[str]
    tokens: NDArray[np.float64]
    source_pieces: Sequence[str]
    source: NDArray[np.float64]
    logit: float

    def __repr__(self) -> str:
        each = ", ".join(f"{one.piece!r} {one.value:+.3f}" for one in self.ranked()[:3])
        return f"TokenContributions({self.logit:+.3f}, most by {each})"

    @property
    def rest(self) -> float:
        """The contribution of all other parts."""
        return self.logit - float(self.tokens.sum()) - float(self.source.sum())

    def ranked(self) -> list[ContributingToken]:
        """The tokens of the text and of the source, in descending order of their contributions' absolute values."""
        text, source = zip(self.pieces, self.tokens), zip(self.source_pieces, self.source)
        found = [ContributingToken("text", at, piece, float(x)) for at, (piece, x) in enumerate(text)]
        found += [ContributingToken("source", at, piece, float(x)) for at, (piece, x) in enumerate(source)]
        return sorted(found, key=lambda one: -abs(one.value))

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return json_fields(self, "pieces", "tokens", "source_pieces", "source", "rest", "logit")


def needed(model: TracedModel, position: int | None = None) -> list[str]:
    """The points that the lens reads. With a ``position``, the attention patterns of this position alone. Raises
    InvalidRequest if the model has several residual streams, or an attention's values are not points.
    """
    stages = gathered_points(model)
    part = "" if position is None else f"[tokens={position}:{position + 1}]"
    own = [name for stage in stages for name in (f"{stage}.pattern{part}", _values_point(model, stage))]
    before = [f"{stage}.heads" for stage in stages if attention_of(model.spec, stage).gate]
    return [*attribution.needed(model), *own, *before]


def _values_point(model: TracedModel, stage: str) -> str:
    """The point with the values that an attention reads, (T, G, V). They may be another block's. Raises InvalidRequest
    if they are no point.
    """
    kind = attention_of(model.spec, stage)
    owner = stage if kind.shared is None else f"blocks.{kind.shared}.attention"
    names = [f"{owner}.{name}" for name in ("v_norm", "v_clip", "v")]
    found = next((name for name in names if name in model.points), None)
    if found is None:
        raise InvalidRequest(
            f"{stage} has no values of each token that can be recorded: its values are latent vectors, or keys"
        )
    return found


def token_contributions(
    model: TracedModel, of: Any, token: int | str | None = None, *, against: int | str | None = None, position: int = -1
) -> TokenContributions:
    """The contributions of tokens to the logit of ``token`` after a position. Takes the arguments of ``attribute``.

    Raises: as ``attribute``; InvalidRequest if the values of an attention cannot be recorded.
    """
    sequence = read(model, of, needed(model))
    found, readout = target(model, sequence, token, against, position)
    reader, direction = (AttributedPosition(model, sequence, found.position), readout.directions[found.position])
    directions = {part.stage: part.direction for part in reader.parts(direction) if not part.is_linear}
    pieces, source_pieces = sequence.pieces[: found.position + 1], sequence.source_pieces
    tokens, source = np.zeros(len(pieces)), np.zeros(len(source_pieces))
    for stage in reader.gathered:
        each = _by_key(model, sequence, reader, stage, directions[stage])
        total = source if stage.endswith(".cross") else tokens
        total += each[: len(total)]
    return TokenContributions(pieces, tokens, source_pieces, source, found.logit)


def _by_key(
    model: TracedModel, sequence: SequenceTrace, reader: AttributedPosition, stage: str, direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The contribution of each key (T',) of an attention, through all its heads."""
    kind = attention_of(model.spec, stage)
    columns, _, _ = reader.columns(stage, direction)
    if kind.gate:
        gated, heads = (
            sequence.at(name, reader.at).astype(np.float64).reshape(columns.shape)
            for name in (reader.gathered[stage], f"{stage}.heads")
        )
        columns = columns * np.divide(gated, heads, out=np.zeros_like(gated), where=heads != 0)
    weights = sequence.at(f"{stage}.pattern", reader.at).astype(np.float64)
    values = sequence[_values_point(model, stage)].astype(np.float64)
    count = min(weights.shape[-1], len(values))
    by_group = np.einsum("gnv,kgv->gnk", _grouped(columns, kind), values[:count])
    return np.asarray(np.einsum("gnk,gnk->k", by_group, _grouped(weights[:, :count], kind)), np.float64)


def _grouped(heads: NDArray[np.float64], kind: Attention) -> NDArray[np.float64]:
    return heads.reshape(kind.kv_heads, -1, heads.shape[-1])
