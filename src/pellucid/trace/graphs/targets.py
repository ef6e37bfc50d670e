"""The targets of an attribution graph: logits before a soft-cap, minus the mean of all logits, or functions of logits.

The mean does not change any probability. Without the mean, an edge to a logit would also show effects on all logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.candidates import Candidates
from pellucid.trace.lenses.targets import LogitDifference, LogProbability, Target
from pellucid.trace.traced_model import (
    ROWS,
    TracedModel,
    token_of,
    unembedding,
    unembedding_rows,
)

FEW = 8
"""Up to this number of logits, a gradient reads only their rows of the head's matrix."""


class GraphTarget(NamedTuple):
    """A target: a ``direction`` (D,) at the output of the last norm, and the target's ``value``.

    ``weight`` is the probability of the token, or 1. ``token`` is -1 for a function of several logits.
    """

    name: str
    token: int
    direction: NDArray[np.float32]
    value: float
    weight: float


def graph_targets(
    model: TracedModel,
    logits: NDArray[np.float32],
    x: NDArray[np.float32],
    target: Target | Sequence[int | str] | None,
    count: int,
    share: float,
) -> list[GraphTarget]:
    """The targets for the last ``logits`` (V,): the given target or tokens, or the ``count`` most likely tokens.

    ``x`` (D,) is the output of the last norm.

    Raises:
        InvalidRequest: the target has no gradient, or a text is not a single token.
    """
    if callable(target):
        return [_of_function(model, logits, x, target)]
    p = Candidates.of(logits, "logits").probabilities()
    if target is None:
        order = np.argsort(-p, kind="stable")[:count]
        chosen = order[: 1 + int(np.searchsorted(np.cumsum(p[order]), share))].tolist()
    else:
        given = [target] if isinstance(target, (int, str)) else list(target)
        chosen = list(dict.fromkeys(token_of(model, token) for token in given))
        if not chosen:
            raise InvalidRequest("target: must be a target with a gradient, or at least one token")
    mean, bias = _mean(model), _bias(model)
    found = list[GraphTarget]()
    for token in chosen:
        direction = unembedding(model.spec, model.float_weights, token) - mean
        value = float(direction @ x.astype(np.float64) + bias[token] - bias.mean())
        piece = model.tokenizer.piece(token)
        found.append(GraphTarget(piece, token, direction.astype(np.float32), value, float(p[token])))
    return found


def _of_function(
    model: TracedModel, logits: NDArray[np.float32], x: NDArray[np.float32], target: Any
) -> GraphTarget:
    """A function of the logits, whose gradient gives the direction."""
    if not callable(getattr(target, "gradient", None)):
        raise InvalidRequest(
            f"target={brief(target)}: it has no gradient: use logit_difference, log_probability, probability or "
            "divergence, or give tokens"
        )
    gradient = np.asarray(target.gradient(logits), np.float64)
    if gradient.shape != logits.shape or not np.isfinite(gradient).all():
        raise InvalidRequest(
            f"target={brief(target)}: its gradient must have {len(logits):,} finite numbers, not {gradient.shape}"
        )
    used = np.flatnonzero(gradient)
    direction = np.zeros(model.spec.embedding.width)
    if len(used) <= FEW:
        for token in used.tolist():
            direction += gradient[token] * unembedding(model.spec, model.float_weights, token)
    else:
        for start, rows in blocks_of_head(model):
            direction = direction + gradient[start : start + len(rows)] @ rows
    value = float(direction @ x.astype(np.float64) + gradient @ _bias(model))
    return GraphTarget(_name(model, target), -1, direction.astype(np.float32), value, 1.0)


def _name(model: TracedModel, target: Any) -> str:
    piece = model.tokenizer.piece
    if isinstance(target, LogitDifference):
        return f"{piece(target.first)} against {piece(target.second)}"
    if isinstance(target, LogProbability):
        return f"probability of {piece(target.token)}"
    return brief(target)


def _bias(model: TracedModel) -> NDArray[np.float64]:
    """The bias of the head, (V,)."""
    head, count = model.spec.head, model.spec.output_width
    if head is None or not head.bias:
        return np.zeros(count)
    return model.float_weights.vector("project.bias", count, 0.0)[:count] * head.scale


def _mean(model: TracedModel) -> NDArray[np.float64]:
    total, count = np.zeros(model.spec.embedding.width), 0
    for _, rows in blocks_of_head(model):
        total, count = total + rows.sum(0), count + len(rows)
    return total / count


def blocks_of_head(model: TracedModel) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Blocks of rows of the head's matrix in the space of the last norm, with the number of their first token."""
    vocabulary = model.spec.output_width
    for start in range(0, vocabulary, ROWS):
        yield start, unembedding_rows(model.spec, model.float_weights, start, min(start + ROWS, vocabulary))
