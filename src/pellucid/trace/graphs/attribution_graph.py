"""`AttributionGraph`: nodes, their direct linear effects on each other, influence, pruning and groups."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief, reason
from pellucid.trace.export import Axis, Exportable, LabelledArray
from pellucid.trace.graphs.graph_files import DrawnGraph, GraphNode, document, draw
from pellucid.trace.lenses.targets import Target
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import real, whole
from pellucid.util.display import table

# The influence of nodes on the targets of a graph, over all paths (Ameisen et al. 2025).
#
# The inputs of a node are shares: the absolute values of its edges, divided by their sum. The influence of a node is
# the sum over all paths to the targets of the products of shares, times the weight of the target.

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Influence(NamedTuple):
    """The influence of each node (n,), and the share of each edge in its target's inputs, times the target's influence.

    Edges are (targets, n).
    """

    nodes: NDArray[np.float64]
    edges: Rows


def shares(edges: Rows) -> Rows:
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


Promoted = Mapping[int, Sequence[tuple[str, float]]]
"""The tokens that nodes promote, with values, by the number of the node."""
UNITS = ("feature", "neuron", "head")
NAMED = 12  # number of nodes with a name in a picture
ROOTS = ("embedding", "logit")  # kinds of nodes that pruning keeps


class GraphEdge(NamedTuple):
    """The direct effect ``weight`` of node ``source`` on node ``target``; both are numbers of nodes."""

    source: int
    target: int
    weight: float


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(Exportable):
    """The direct linear effects of nodes on each other, in the local replacement model of one prompt.

    ``edges`` (targets, n) has the effect of each of the n ``nodes`` on the nodes ``targets``. The value of a target is
    the sum of its row and of ``rests``: biases, rounding errors, and what the tokens without units add (``first`` of
    ``attribution_graph``). ``ids`` and ``pieces`` are the tokens of the prompt. ``groups`` names sets of nodes.
    ``target`` is the function of the logits that the graph explains, if the targets are no tokens.
    """

    ids: list[int]
    pieces: list[str]
    nodes: list[GraphNode]
    targets: NDArray[np.int64]
    edges: NDArray[np.float32]
    rests: NDArray[np.float64]
    layers: int
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    target: Target | None = None

    def __repr__(self) -> str:
        kinds = [node.kind for node in self.nodes]
        counts = ", ".join(f"{kinds.count(kind):,} {kind}s" for kind in dict.fromkeys(kinds))
        return f"AttributionGraph({len(self.pieces)} tokens, {counts}, {np.count_nonzero(self.edges):,} edges)"

    @cached_property
    def _influence(self) -> Influence:
        logits = np.array([self.nodes[at].kind == "logit" for at in self.targets])
        weights = np.array([self.nodes[at].weight for at in self.targets[logits]])
        return influences(self.edges, np.where(logits, -1, self.targets), weights)

    @property
    def influence(self) -> NDArray[np.float64]:
        """The influence (n,) of each node on the logits, over all paths."""
        return self._influence.nodes

    @property
    def edge_influence(self) -> NDArray[np.float32]:
        """The influence (targets, n) that passes through each edge."""
        return self._influence.edges

    def index(self, node: int | GraphNode) -> int:
        """The number of a node. Raises InvalidRequest if the graph does not have it."""
        if isinstance(node, GraphNode):
            if node not in self.nodes:
                raise InvalidRequest(f"node={brief(node.name)}: the graph does not have it")
            return self.nodes.index(node)
        return whole("node", node, 0, len(self.nodes) - 1)

    def top(self, count: int = 10, kind: str = "") -> list[tuple[GraphNode, float]]:
        """The nodes with the highest influence, with it; of one kind, or of all kinds but logits."""
        order = np.argsort(-self.influence, kind="stable").tolist()
        found = [at for at in order if self.nodes[at].kind == kind or (not kind and self.influence[at] > 0)]
        return [(self.nodes[at], float(self.influence[at])) for at in found[:count]]

    def inputs(self, node: int | GraphNode, count: int = 10) -> list[GraphEdge]:
        """The edges to a node with the largest absolute weights."""
        at = self.index(node)
        rows = np.flatnonzero(self.targets == at)
        if not len(rows):
            return []
        own = self.edges[rows[0]]
        return [GraphEdge(int(source), at, float(own[source])) for source in _largest(own, count)]

    def outputs(self, node: int | GraphNode, count: int = 10) -> list[GraphEdge]:
        """The edges from a node with the largest absolute weights."""
        at = self.index(node)
        return [
            GraphEdge(at, int(self.targets[row]), float(self.edges[row, at]))
            for row in _largest(self.edges[:, at], count)
        ]

    def scores(self) -> tuple[float, float]:
        """The replacement score and the completeness score (Ameisen et al. 2025), from 0 to 1.

        The first is the share of the tokens in the influence of tokens and errors. The second is the share of inputs
        that are no errors, weighted by influence. Neither counts the ``rests``.
        """
        kinds = np.array([node.kind for node in self.nodes])
        errors = kinds == "error"
        tokens = np.isin(kinds, ("embedding", "position"))
        of_tokens, of_errors = self.influence[tokens].sum(), self.influence[errors].sum()
        replaced = of_tokens / max(of_tokens + of_errors, 1e-30)
        own = self.influence[self.targets] + [self.nodes[at].weight for at in self.targets]
        complete = 1 - shares(self.edges)[:, errors].sum(1)
        return float(replaced), float((complete * own).sum() / max(own.sum(), 1e-30))

    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
        """The graph without nodes and edges of little influence.

        Args:
            nodes: the share of the influence that the kept nodes have together. Embeddings and logits are kept.
            edges: the share of the influence that the kept edges between them have together.
        """
        nodes, edges = real("nodes", nodes, 0.0, 1.0), real("edges", edges, 0.0, 1.0)
        n, rows = len(self.nodes), np.full(len(self.nodes), -1)
        rows[self.targets] = np.arange(len(self.targets))
        root = np.array([node.kind in ROOTS for node in self.nodes])
        kept = root | (self.influence >= _threshold(self.influence, nodes))
        own = np.where(kept[None] & kept[self.targets][:, None], self.edges, np.float32(0))
        inner = AttributionGraph(self.ids, self.pieces, self.nodes, self.targets, own, self.rests, self.layers)
        strength = inner.edge_influence
        used = (strength >= _threshold(strength.ravel(), edges)) & (own != 0)
        has_inputs = np.array([node.kind in UNITS for node in self.nodes])
        while True:  # a node without outputs, or a unit without inputs, is removed
            used &= kept[None] & kept[self.targets][:, None]
            alive = kept & (root | used.any(0))
            fed = np.zeros(n, bool)
            fed[self.targets] = used.any(1)
            alive &= root | ~has_inputs | fed
            if (alive == kept).all():
                break
            kept = alive
        return self._taken(np.flatnonzero(kept), np.where(used, self.edges, np.float32(0)))

    def _taken(self, kept: NDArray[np.int64], edges: NDArray[np.float32]) -> AttributionGraph:
        """The graph of some nodes. The edges that it loses count as rests."""
        new = np.full(len(self.nodes), -1)
        new[kept] = np.arange(len(kept))
        rows = np.flatnonzero(new[self.targets] >= 0)
        own = edges[np.ix_(rows, kept)]
        lost = self.edges[rows].sum(1, dtype=np.float64) - own.sum(1, dtype=np.float64)
        groups = {name: [int(new[at]) for at in group if new[at] >= 0] for name, group in self.groups.items()}
        return replace(
            self,
            nodes=[self.nodes[at] for at in kept],
            targets=new[self.targets[rows]],
            edges=own,
            rests=self.rests[rows] + lost,
            groups={name: group for name, group in groups.items() if group},
        )

    def grouped(self, groups: Mapping[str, Sequence[int | GraphNode]]) -> AttributionGraph:
        """The graph with named groups of nodes. Raises InvalidRequest if a group is empty, or if two have a node."""
        found = {str(name): [self.index(node) for node in group] for name, group in groups.items()}
        if empty := next((name for name, group in found.items() if not group), None):
            raise InvalidRequest(f"groups={brief(empty)}: has no nodes: leave it out")
        members = [at for group in found.values() for at in group]
        if len(set(members)) < len(members):
            raise InvalidRequest("groups: a node may be in one group only")
        return replace(self, groups=found)

    def between(self, source: str, target: str) -> float:
        """The sum of the edges from the nodes of a group to the nodes of another."""
        for name in (source, target):
            if name not in self.groups:
                known = ", ".join(self.groups) or "none"
                raise InvalidRequest(f"group={brief(name)}: there is no such group; there are {known}")
        rows = np.isin(self.targets, self.groups[target])
        return float(self.edges[np.ix_(rows, np.array(self.groups[source], np.int64))].sum(dtype=np.float64))

    def _values(self) -> list[LabelledArray]:
        axes = (
            Axis("target", "target", [self.nodes[at].name for at in self.targets]),
            Axis("source", "source", [node.name for node in self.nodes]),
        )
        return [LabelledArray("edge", self.edges, axes)]

    def plot(self, name: str = "", *, ax: Any = None) -> Any:
        """Draw the nodes by token and block, and the edges with the largest influence. Returns matplotlib's axes.

        Raises: InvalidRequest if matplotlib is not installed.
        """
        units = [self.nodes.index(node) for node, _ in self.top(len(self.nodes)) if node.kind in UNITS]
        drawn = DrawnGraph(
            self.pieces, self.nodes, self.targets, self.edges, self.edge_influence, self.layers, units[:NAMED]
        )
        return draw(drawn, ax)

    def _repr_html_(self) -> str:
        rows = [
            (node.name, self.pieces[node.position], round(share, 4), round(node.activation, 3))
            for node, share in self.top(20)
        ]
        return table(["node", "token", "influence", "activation"], rows, repr(self))

    def as_dict(self, slug: str = "", scan: str = "", promoted: Promoted | None = None) -> dict[str, Any]:
        """The graph in Neuronpedia's format (``graphs/graph_files.py``), as a dictionary for JSON.

        ``slug`` names the graph, and ``scan`` the model and its transcoders. ``promoted`` are the tokens that nodes
        promote, from ``promoted_tokens``.
        """
        rows, sources = np.nonzero(self.edges)
        weights = self.edges[rows, sources].tolist()
        links = list(zip(sources.tolist(), self.targets[rows].tolist(), weights))
        return document(
            self.pieces, self.nodes, links, self.influence, self.groups, self.layers, slug, scan, promoted or {}
        )

    def html(self, slug: str = "", scan: str = "", promoted: Promoted | None = None) -> str:
        """A page with the graph, which any browser opens without a server. Arguments are as in ``as_dict``."""
        from pellucid.web.bundle import graph_html

        return graph_html(self.as_dict(slug, scan, promoted))

    def save(self, path: str | Path, slug: str = "", scan: str = "", promoted: Promoted | None = None) -> None:
        """Write the graph to a JSON file in Neuronpedia's format. Arguments are as in ``as_dict``.

        Raises: InvalidRequest if the file cannot be written.
        """
        text = json.dumps(self.as_dict(slug, scan, promoted), ensure_ascii=False)
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"path={str(path)!r}: cannot be written: {reason(error)}") from error


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-np.abs(values), kind="stable")[:count]
    return np.asarray(order[values[order] != 0])


def _threshold(values: NDArray[Any], share: float) -> float:
    """The least of the largest values that have a share of the sum."""
    ordered = np.sort(values.astype(np.float64))[::-1]
    total = np.cumsum(ordered)
    at = int(np.searchsorted(total / max(total[-1], 1e-30), share))
    return float(ordered[min(at, len(ordered) - 1)])


def refuse_other_model(model: TracedModel, graph: AttributionGraph) -> None:
    tokenizer, blocks = model.tokenizer, len(model.spec.blocks)
    known = max(graph.ids) < tokenizer.vocab_size
    if blocks != graph.layers or not known or [tokenizer.piece(one) for one in graph.ids] != graph.pieces:
        raise InvalidRequest(
            f"graph: it is of a model with {graph.layers} blocks and the tokens {brief(graph.pieces)}, and this model "
            f"with {blocks} blocks is another: give the graph's model"
        )
