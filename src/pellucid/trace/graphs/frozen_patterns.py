"""The attention patterns of a run, in blocks of queries: recorded, or computed again from queries and keys.

The patterns of a long prompt do not fit into memory: 6,000 tokens have 144 MB for each head. Queries and keys do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.plan import At, Operation, Vector
from pellucid.plan.points import AttentionMask
from pellucid.trace.backward.product_values import Rows, Values, number_of, size_of, vector_of

BLOCK = 256
"""Number of queries whose patterns are used at once."""


class FrozenPattern:
    """The pattern (H, T, T') of an attention, in blocks of queries."""

    mask: AttentionMask

    def blocks(self, reached: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The first and the last + 1 of the queries of each block with a query in ``reached``."""
        for block in np.unique(reached // BLOCK).tolist():
            own = reached[(reached >= block * BLOCK) & (reached < (block + 1) * BLOCK)]
            yield int(own[0]), int(own[-1]) + 1

    def keys(self, start: int, stop: int) -> range:
        """The keys that the queries from ``start`` to ``stop`` - 1 see."""
        return range(self.mask.seen(start).start, self.mask.seen(stop - 1).stop)

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        """The first key, and the weights (H, n, keys) of the queries from ``start`` to ``stop`` - 1."""
        raise NotImplementedError


class RecordedPattern(FrozenPattern):
    """A recorded pattern."""

    def __init__(self, pattern: Rows, mask: AttentionMask) -> None:
        self._pattern, self.mask = pattern, mask

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        """As in ``FrozenPattern``."""
        keys = self.keys(start, min(stop, self._pattern.shape[1]))
        return keys.start, self._pattern[:, start:stop, keys.start : keys.stop]


class ScoreTerms(NamedTuple):
    """The terms of softmax(softcap(scale · q Kᵀ)), with the scores of sinks (H,) or None."""

    scale: float
    softcap: float
    sinks: NDArray[np.float64] | None


class ComputedPattern(FrozenPattern):
    """The pattern of queries (T, H, K) and keys (T, G, K)."""

    def __init__(self, q: Rows, k: Rows, mask: AttentionMask, terms: ScoreTerms) -> None:
        self._q, self._k = q.swapaxes(0, 1), k.swapaxes(0, 1)
        self.mask, self._terms = mask, terms

    def rows(self, start: int, stop: int) -> tuple[int, Rows]:
        """As in ``FrozenPattern``."""
        keys, terms = self.keys(start, stop), self._terms
        (H, _, K), G = self._q.shape, len(self._k)
        q = self._q[:, start:stop].reshape(G, -1, K)
        scores = np.matmul(q, self._k[:, keys.start : keys.stop].swapaxes(1, 2)) * np.float32(terms.scale)
        scores = scores.reshape(H, stop - start, len(keys))
        if terms.softcap:
            cap = np.float32(terms.softcap)
            scores = cap * np.tanh(scores / cap)
        for number, position in enumerate(range(start, stop)):
            seen = self.mask.seen(position)
            scores[:, number, : seen.start - keys.start] = -np.inf
            scores[:, number, seen.stop - keys.start :] = -np.inf
        top = scores.max(-1, keepdims=True)
        sinks = None if terms.sinks is None else terms.sinks.astype(np.float32)[:, None, None]
        top = top if sinks is None else np.maximum(top, sinks)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        weights /= total if sinks is None else total + np.exp(sinks - top)
        return keys.start, weights.astype(np.float32)


def mask_of(op: Operation) -> AttentionMask:
    """The mask of an attention."""
    fields = ("causal", "window", "chunked", "cross")
    causal, window, chunked, cross = (size_of(op, name) for name in fields)
    return AttentionMask(bool(causal), window, bool(chunked), bool(cross))


def frozen_pattern(op: Operation, values: Values, *, recorded: bool) -> FrozenPattern:
    """The pattern of an attention of one sequence: ``recorded``, or computed from queries and keys without biases."""
    mask, T = mask_of(op), values.sequences[0].stop
    if recorded:
        return RecordedPattern(values.patterns[0][:, :T], mask)
    K, H, G = op.kernel["head_dim"], size_of(op, "heads"), size_of(op, "kv_heads")
    q, k = values.values["q"], values.values["k"]
    sinks = op.fields["sinks"]
    own = vector_of(values.weights, sinks, H) if isinstance(sinks, Vector) else None
    terms = ScoreTerms(number_of(op, "scale"), number_of(op, "softcap"), own)
    return ComputedPattern(q[:T, : H * K].reshape(T, H, K), k[:T, : G * K].reshape(T, G, K), mask, terms)


def refuse_biases(op: Operation) -> None:
    """Raise InvalidRequest if the scores of an attention have biases, so that its pattern must be recorded."""
    if isinstance(op.fields["bias"], At) or op.fields["bias"]:
        raise InvalidRequest(
            f"the patterns of {op.stage} have biases by position, and are too large for the budget: give a larger "
            "budget, or a shorter prompt"
        )
