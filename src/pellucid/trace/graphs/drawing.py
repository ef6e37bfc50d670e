"""A picture of an attribution graph with matplotlib: tokens from left to right, blocks from bottom to top."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.export import NEGATIVE, POSITIVE, library
from pellucid.trace.graphs.graph_node import GraphNode
from pellucid.util.display import visible

MARKS = {"embedding": "s", "position": "s", "logit": "D", "head": "^", "error": "x"}
"""The shape of each kind of node; units are circles."""
MOST_EDGES = 600
SPREAD = 0.7
"""Share of the width of a token that its nodes in a block take."""


class DrawnGraph(NamedTuple):
    """The parts of an attribution graph that are drawn, with the ``strength`` of each edge and ``named`` nodes."""

    pieces: Sequence[str]
    nodes: Sequence[GraphNode]
    targets: NDArray[np.int64]
    edges: NDArray[np.float32]
    strength: NDArray[np.float32]
    layers: int
    named: Sequence[int]


def draw(graph: DrawnGraph, ax: Any) -> Any:
    """Draw the strongest edges by their influence, blue for positive and red for negative effects. Returns the axes."""
    if ax is None:
        pyplot = library("matplotlib.pyplot", "plot")
        width = max(5.0, 0.9 * len(graph.pieces))
        ax = pyplot.figure(figsize=(width, 6), layout="constrained").add_subplot()
    places = _places(graph)
    strength = graph.strength
    order = np.argsort(-strength.ravel(), kind="stable")[:MOST_EDGES]
    largest = float(strength.max(initial=0.0)) or 1.0
    for at in order[::-1].tolist():
        row, source = divmod(at, strength.shape[1])
        share = float(strength[row, source]) / largest
        if share > 0:
            (x, y), (to_x, to_y) = places[source], places[int(graph.targets[row])]
            colour = POSITIVE if graph.edges[row, source] > 0 else NEGATIVE
            ax.plot(
                [x, to_x],
                [y, to_y],
                color=colour,
                alpha=min(1.0, 0.08 + share),
                linewidth=0.4 + 2 * share,
                zorder=1,
            )
    by_mark = defaultdict[str, list[int]](list)
    for at, node in enumerate(graph.nodes):
        by_mark[MARKS.get(node.kind, "o")].append(at)
    for mark, own in by_mark.items():
        xs, ys = zip(*(places[at] for at in own))
        ax.scatter(xs, ys, marker=mark, s=16, color="#555555", linewidths=0.8, zorder=2)
    for at in graph.named:
        node = graph.nodes[at]
        name = f"{node.kind[0]}{node.layer}.{node.number}"
        ax.annotate(name, places[at], fontsize=7, xytext=(3, 2), textcoords="offset points")
    for at, node in enumerate(graph.nodes):
        if node.kind == "logit":
            ax.annotate(
                visible(node.text),
                places[at],
                fontsize=8,
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
            )
    ax.set_xticks(
        range(len(graph.pieces)), [visible(piece) for piece in graph.pieces], rotation=90, parse_math=False
    )
    ax.set_ylabel("block")
    ax.set_title("attribution graph")
    return ax


def _places(graph: DrawnGraph) -> list[tuple[float, float]]:
    """The place of each node: nodes of one token and level stand beside each other."""
    levels = [_level(node, graph.layers) for node in graph.nodes]
    groups = defaultdict[tuple[int, float], list[int]](list)
    for at, node in enumerate(graph.nodes):
        groups[node.position, levels[at]].append(at)
    found = [(0.0, 0.0)] * len(graph.nodes)
    for (position, level), own in groups.items():
        for number, at in enumerate(own):
            shift = (number + 1) / (len(own) + 1) - 0.5
            found[at] = position + SPREAD * shift, level
    return found


def _level(node: GraphNode, layers: int) -> float:
    """The height of a node: its block, with heads below feed-forwards."""
    if node.layer is None:
        return float(layers) if node.kind == "logit" else -1.0
    return node.layer + {"head": -0.25, "error": 0.35}.get(node.kind, 0.15)
