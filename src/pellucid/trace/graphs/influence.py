"""The influence of nodes on the targets of a graph, over all paths (Ameisen et al. 2025).

The inputs of a node are shares: the absolute values of its edges, divided by their sum. The influence of a node is the
sum over all paths to the targets of the products of shares, times the weight of the target.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Influence(NamedTuple):
    """The influence of each node (n,), and the share of each edge in its target's inputs, times the target's influence.

    Edges are (targets, n).
    """

    nodes: NDArray[np.float64]
    edges: Rows


def shares(edges: Rows) -> Rows:
    """The absolute values of edges (targets, n), divided by their sums."""
    size = np.abs(edges)
    total = size.sum(1, keepdims=True)
    np.divide(size, total, out=size, where=total > 0)
    return size


def influences(edges: Rows, columns: Numbers, weights: NDArray[np.float64]) -> Influence:
    """The influences in a graph without cycles.

    Args:
        edges: the edges (targets, n) from n nodes.
        columns: the node of each target, or -1 for the targets with ``weights``, in their order.
    """
    share = shares(edges)
    inner = np.flatnonzero(columns >= 0)
    of_targets = np.zeros(len(edges), np.float32)
    of_targets[columns < 0] = weights
    pending, found = of_targets.copy(), np.zeros(edges.shape[1])
    while pending.any():
        reached = pending @ share
        found += reached
        pending = np.zeros_like(pending)
        pending[inner] = reached[columns[inner]]
        of_targets += pending
    return Influence(found, share * of_targets[:, None])
