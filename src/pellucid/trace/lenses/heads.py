"""Attention heads: scores of known kinds of heads, the attention of all heads between two tokens, and rollout.

A *previous-token head* attends to the token before the current token. A *duplicate-token head* attends to the previous
occurrence of the current token. An *induction head* attends to the token after the previous occurrence (Olsson et al.
2022, "In-context learning and induction heads"). The lens scores heads on random tokens that are repeated once, because
such a prompt has no other structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.export import Exportable, LabelledArray, numbered
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
