"""The nodes of an attribution graph, and a graph as a picture with matplotlib and in Neuronpedia's format."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.export import NEGATIVE, POSITIVE, library
from pellucid.util.display import visible


class NeuronPlace(NamedTuple):
    """The place of a neuron's value: its ``number`` at the hook point ``point``, of a chosen ``expert`` or None."""

    point: str
    expert: int | None
    number: int

    @property
    def down(self) -> str:
        """The slot of the matrix, or of the experts' matrices, that read the neuron, as in ``neurons.py``."""
        return f"{self.point.removesuffix('hidden')}down.weight"


class GraphNode(NamedTuple):
    """A node: a value of ``kind`` at a ``layer`` and a token (``position``).

    ``kind`` is "embedding", "position", "feature", "neuron", "head", "error" (of a feed-forward: what its units in the
    graph leave out), or "logit".

    ``number`` is the number of the feature, neuron or head, or the id of the token. ``text`` is the text of a token, or
    the expert and the neuron of a mixture, such as "3.170": its ``number`` counts the neurons of all experts.
    ``activation`` is the value of the node: of a head its part of the weighted sum of the targets. ``weight`` is the
    weight of a target.
    """

    kind: str
    layer: int | None
    position: int
    number: int
    activation: float = 0.0
    text: str = ""
    weight: float = 0.0

    @property
    def neuron(self) -> NeuronPlace:
        """The place of a neuron, whose ``text`` is its label (``ExpertNeurons.label``)."""
        stage, (expert, _, number) = f"blocks.{self.layer}.feedforward", self.text.partition(".")
        if not expert:
            return NeuronPlace(f"{stage}.hidden", None, self.number)
        if expert == "shared":
            return NeuronPlace(f"{stage}.shared.hidden", None, int(number))
        return NeuronPlace(f"{stage}.experts.hidden", int(expert), int(number))

    @property
    def name(self) -> str:
        """A short name, such as "neuron 5.170 at 3"."""
        if self.kind in ("embedding", "logit"):
            return f"{self.kind} {self.text!r}" + (f" at {self.position}" if self.kind == "embedding" else "")
        if self.kind in ("error", "position"):
            return f"{self.kind}{'' if self.layer is None else f' {self.layer}'} at {self.position}"
        return f"{self.kind} {self.layer}.{self.text or self.number} at {self.position}"


MARKS = {"embedding": "s", "position": "s", "logit": "D", "head": "^", "error": "x"}
"""The shape of each kind of node; units are circles."""
MOST_EDGES = 600
SPREAD = 0.7  # share of the width of a token that its nodes in a block take


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
                [x, to_x], [y, to_y], color=colour, alpha=min(1.0, 0.08 + share), linewidth=0.4 + 2 * share, zorder=1
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
                visible(node.text), places[at], fontsize=8, xytext=(0, 5), textcoords="offset points", ha="center"
            )
    ax.set_xticks(range(len(graph.pieces)), [visible(piece) for piece in graph.pieces], rotation=90, parse_math=False)
    ax.set_ylabel("block")
    ax.set_title("attribution graph")
    return ax


def _places(graph: DrawnGraph) -> list[tuple[float, float]]:
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


# Neuronpedia's format of attribution graphs, which circuit-tracer's and our own page read.
#
# Nodes have ids "layer_number_position"; errors have "0_layer_position" with the feature -1, and embeddings
# "E_token_position". The kinds "neuron", "head" and "position" are our own.
#
# Source: the classes ``Node`` and ``Model`` of circuit-tracer 0.5.

KINDS: Mapping[str, str] = {"feature": "cross layer transcoder", "error": "mlp reconstruction error"}
"""The format's names of kinds, where they differ from ours."""
SCHEMA_VERSION = 1


def document(
    pieces: Sequence[str],
    nodes: Sequence[GraphNode],
    links: Sequence[tuple[int, int, float]],
    influence: NDArray[np.float64],
    groups: Mapping[str, Sequence[int]],
    layers: int,
    slug: str,
    scan: str,
    promoted: Mapping[int, Sequence[tuple[str, float]]],
) -> dict[str, Any]:
    """A graph as a dictionary for JSON. ``links`` are (source, target, weight).

    The other arguments are as in ``AttributionGraph``.
    """
    ids, prompt, shares = [node_id(node, layers) for node in nodes], "".join(pieces), _cumulative(influence)
    first = next((at for at, node in enumerate(nodes) if node.kind == "logit"), None)
    return {
        "metadata": {
            "slug": slug or f"graph-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}",
            "scan": scan or "pellucid",
            "transcoder_list": [],
            "prompt_tokens": list(pieces),
            "prompt": prompt,
            "node_threshold": None,
            "schema_version": SCHEMA_VERSION,
        },
        "qParams": {
            "pinnedIds": [ids[at] for group in groups.values() for at in group],
            "supernodes": [[name, *(ids[at] for at in group)] for name, group in groups.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            {
                **_node(node, ids[at], layers, shares[at]),
                "is_target_logit": at == first,
                **({"top_logits": [list(pair) for pair in promoted[at]]} if promoted.get(at) else {}),
            }
            for at, node in enumerate(nodes)
        ],
        "links": [{"source": ids[source], "target": ids[target], "weight": weight} for source, target, weight in links],
    }


def node_id(node: GraphNode, layers: int) -> str:
    if node.kind == "embedding":
        return f"E_{node.number}_{node.position}"
    if node.kind == "position":
        return f"P_{node.position}_{node.position}"
    if node.kind == "error":
        return f"0_{node.layer}_{node.position}"
    if node.kind == "logit":
        return f"{layers + 1}_{node.number}_{node.position}"
    if node.kind == "feature":
        return f"{node.layer}_{node.number}_{node.position}"
    return f"{node.layer}_{node.kind}.{max(node.number, 0)}_{node.position}"


def _node(node: GraphNode, own: str, layers: int, influence: float) -> dict[str, Any]:
    layer = {"embedding": "E", "position": "E", "logit": str(layers + 1)}.get(node.kind, str(node.layer))
    feature = {"error": -1, "position": node.position, "embedding": node.position}.get(node.kind, node.number)
    if node.kind == "feature":
        feature = _paired(node.layer or 0, node.number)
    return {
        "node_id": own,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": KINDS.get(node.kind, node.kind),
        "token_prob": node.weight,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": own,
        "clerp": f'Output "{node.text}" (p={node.weight:.3f})' if node.kind == "logit" else "",
        "influence": influence if node.kind != "logit" else None,
        "activation": node.activation if node.kind in ("feature", "neuron", "head") else None,
        "label": node.name,
    }


def _cumulative(influence: NDArray[np.float64]) -> list[float]:
    """The share of the influence that the nodes with at least a node's influence have together."""
    order = np.argsort(-influence, kind="stable")
    total = np.cumsum(influence[order])
    found = np.zeros(len(order))
    found[order] = total / max(float(total[-1]), 1e-30)
    return [float(value) for value in found]


def _paired(x: int, y: int) -> int:
    """Cantor's number of a pair, as circuit-tracer numbers features."""
    return (x + y) * (x + y + 1) // 2 + y
