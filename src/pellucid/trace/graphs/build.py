"""Builds attribution graphs, and checks the effects that they predict.

    graph = attribution_graph(llm, "The capital of the state containing Dallas is", dictionary)

1. The prompt runs once, and a tape records what the local replacement model needs (``local_run.py``).
2. A pass through all units chooses the candidates, which are sources of edges (``edges.py``). The contributions of
   all other units belong to the error of their feed-forward.
3. Passes from targets give their edges (``edges.py``): from the logits first, then from heads, then from units in the
   order of their influence.
4. The edges of candidates that were no targets are added to the errors.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.model.spec import Mixture
from pellucid.trace.backward.reverse_walk import Rows
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import CallContext, Edit, call, replace, scale
from pellucid.trace.export import Axis, Exportable, LabelledArray
from pellucid.trace.graphs.attribution_graph import AttributionGraph, influences, refuse_other_model
from pellucid.trace.graphs.edges import EdgeTable, choose, injections
from pellucid.trace.graphs.graph_files import GraphNode
from pellucid.trace.graphs.local_run import MOST_COPIES, LocalRun
from pellucid.trace.graphs.neurons import Numbers
from pellucid.trace.graphs.targets import GraphTarget, graph_targets
from pellucid.trace.lenses.patching import LAST_LOGITS
from pellucid.trace.lenses.targets import Target, uncapped
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read
from pellucid.util.checks import boolean, real, whole
from pellucid.util.display import table

BUDGET = 4 << 30  # default limit of the bytes of recorded values, and of edges
MOST_NODES = 1 << 17
CANDIDATES = 16  # the number of candidates for each node of the graph
LEAST_CANDIDATES = 1 << 14
HEADS_SHARE = 4  # the number of nodes for each head, if heads are nodes
RANKED_AFTER = 4  # the number of passes after which units are ranked again
Told = Callable[[int, int], object]


def attribution_graph(
    model: TracedModel,
    prompt: Any,
    dictionary: Dictionary | None = None,
    *,
    target: Target | Sequence[int | str] | None = None,
    nodes: int = 1000,
    heads: bool | None = None,
    logits: int = 10,
    share: float = 0.95,
    first: int = 1,
    edits: Sequence[Edit] = (),
    budget: int = BUDGET,
    told: Told = lambda done, total: None,
) -> AttributionGraph:
    """The linear effects of features or neurons on each other and on the logits after a prompt (Ameisen et al. 2025).

    Args:
        dictionary: transcoders. Feed-forwards without a transcoder have their neurons as units.
        target: a target with a gradient, such as ``logit_difference``, or tokens. By default the most likely tokens, at
            most ``logits``, until their probabilities sum to ``share``.
        nodes: the maximum number of units and heads in the graph.
        heads: attention heads are nodes too; by default without a dictionary. Otherwise edges pass through attention.
        first: the first token with units, heads and errors as nodes; embeddings are always nodes. By default the first
            token of the prompt has none, because its values are huge: it is an attention sink (Sun et al. 2024,
            arXiv:2402.17762), and says little about the prompt.
        edits: edits of the run. Effects pass through an edited value as if it were computed, and what the edit adds
            counts as an error or a rest.
        budget: limit of the bytes of recorded values, and of edges.
        told: called with the number of finished targets and the number of all targets.

    Raises:
        InvalidRequest: the model is no language model; the dictionary has no transcoders; the target has no gradient;
            or the values do not fit into the budget.
    """
    nodes = whole("nodes", nodes, 1, MOST_NODES)
    logits, share = whole("logits", logits, 1, 1000), real("share", share, 0.0, 1.0, above=True)
    with_heads = dictionary is None if heads is None else boolean("heads", heads)
    run = LocalRun(model, prompt, dictionary, with_heads, edits, budget)
    targets = graph_targets(model, run.logits, run.last, target, logits, share)
    most = max(CANDIDATES * nodes, LEAST_CANDIDATES)
    first = min(whole("first", first, 0, max(run.tokens - 1, 1)), run.tokens - 1)
    table = EdgeTable(run, choose(run, targets, most, max(nodes // HEADS_SHARE, 1), first), first)
    rows = len(targets) + min(max(nodes, table.heads), table.heads + table.units)
    if (needed := 4 * rows * table.count) > budget:
        raise InvalidRequest(
            f"nodes={nodes:,}: their edges take {needed:,} bytes, and the budget is {budget:,}: give fewer nodes, or a "
            "larger budget"
        )
    edges = np.zeros((rows, table.count), np.float32)
    columns = _filled(table, targets, edges, told)
    graph = _assembled(table, targets, edges[: len(columns)], columns)
    return dataclasses.replace(graph, target=target) if callable(target) else graph


def _filled(table: EdgeTable, targets: Sequence[GraphTarget], edges: Rows, told: Told) -> Numbers:
    """Fill the edges (rows, count). Returns the column of each row's target; -1: a logit."""
    table.fill(edges[: len(targets)], injections(table.run, targets))
    columns, total = [-1] * len(targets), len(edges)
    weights = np.array([target.weight for target in targets])
    reached = np.zeros(table.heads + table.units, bool)
    while len(columns) < total:
        if len(columns) < len(targets) + table.heads:
            queue = np.arange(table.heads)
        elif total == len(targets) + len(reached):
            queue = np.flatnonzero(~reached)
        else:
            queue = _next(table, edges[: len(columns)], np.array(columns), weights, reached)[: total - len(columns)]
            if not len(queue):
                break
        reached[queue] = True
        for batch in _batches(table, queue):
            done = len(columns)
            table.fill(edges[done : done + len(batch)], table.targets(batch))
            columns += batch.tolist()
            told(len(columns), total)
    return np.array(columns)


def _next(
    table: EdgeTable, edges: Rows, columns: Numbers, weights: NDArray[np.float64], reached: NDArray[np.bool_]
) -> Numbers:
    """The units with the highest influence that are no targets yet, for some passes."""
    ranks = np.where(reached, 0, influences(edges, columns, weights).nodes[: len(reached)])
    queue = np.argsort(-ranks, kind="stable")[: RANKED_AFTER * table.run.copies]
    return queue[ranks[queue] > 0]


def _batches(table: EdgeTable, queue: Numbers) -> Iterator[Numbers]:
    """The targets of each pass. Later layers come first; of long prompts earlier tokens, which end a pass early."""
    size = table.run.copies
    order = np.sort(queue)[::-1] if size == MOST_COPIES else queue[np.argsort(table.rows()[queue], kind="stable")]
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _assembled(table: EdgeTable, targets: Sequence[GraphTarget], edges: Rows, columns: Numbers) -> AttributionGraph:
    inner = table.heads + table.units
    kept = table.has_node()
    kept[:inner] = False
    kept[columns[columns >= 0]] = True
    table.fold(edges, np.flatnonzero(~kept[:inner]))
    last, run = table.run.tokens - 1, table.run
    nodes = [node for node, own in zip(table.nodes(), kept) if own]
    new = np.cumsum(kept) - 1
    logits = [
        GraphNode("logit", None, last, target.token, target.value, target.name, target.weight) for target in targets
    ]
    numbers = np.where(columns < 0, len(nodes) + np.cumsum(columns < 0) - 1, new[columns])
    order = np.argsort(numbers, kind="stable")
    own = np.pad(edges[:, kept][order], ((0, 0), (0, len(logits))))
    nodes += logits
    values = np.array([nodes[at].activation for at in numbers[order]])
    return AttributionGraph(
        run.ids,
        [run.model.tokenizer.piece(token) for token in run.ids],
        nodes,
        numbers[order],
        own,
        values - own.sum(1, dtype=np.float64),
        len(run.model.spec.blocks),
    )


# Checks of a graph: the effects that it predicts for a change of nodes, beside the effects in the model.

CHANGED = ("feature", "neuron", "head")
MEASURED = ("feature", "neuron", "logit")
LARGEST = 1e6


@dataclass(frozen=True, eq=False, repr=False)
class GraphCheck(Exportable):
    """The changes of nodes (n,) after the activations of ``changed`` nodes were multiplied by ``factor``.

    ``predicted`` are the changes over all paths of the graph, and ``measured`` those in the model. ``nodes`` are the
    units and logits of the graph that the changed nodes reach.
    """

    changed: list[GraphNode]
    factor: float
    nodes: list[GraphNode]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]

    def __repr__(self) -> str:
        return (
            f"GraphCheck({len(self.changed)} nodes times {self.factor:g}: {len(self.nodes):,} nodes change, "
            f"correlation {self.correlation:.3f})"
        )

    @property
    def correlation(self) -> float:
        """The correlation of predicted and measured changes, each divided by the node's activation."""
        size = np.array([max(abs(node.activation), 1e-6) for node in self.nodes])
        if len(size) < 2:
            return float("nan")
        predicted, measured = self.predicted / size, self.measured / size
        if not predicted.std() or not measured.std():
            return float("nan")
        return float(np.corrcoef(predicted, measured)[0, 1])

    def _values(self) -> list[LabelledArray]:
        axes = (Axis("node", "node", [node.name for node in self.nodes]),)
        return [LabelledArray(name, getattr(self, name), axes) for name in ("predicted", "measured")]

    def _repr_html_(self) -> str:
        order = np.argsort(-np.abs(self.measured), kind="stable")[:20].tolist()
        rows = [(self.nodes[at].name, self.predicted[at], self.measured[at]) for at in order]
        return table(["node", "predicted change", "measured change"], rows, repr(self))


def check_graph(
    model: TracedModel,
    graph: AttributionGraph,
    nodes: str | int | GraphNode | Sequence[int | GraphNode],
    factor: float = 0.0,
    *,
    dictionary: Dictionary | None = None,
    frozen: bool = False,
) -> GraphCheck:
    """Multiply the activations of nodes in the model, and compare the effects with those that the graph predicts.

    Args:
        nodes: a group of the graph, or nodes of kind "feature", "neuron" or "head".
        dictionary: the transcoders of the graph.
        frozen: attention patterns keep the values of the unchanged run, as the graph assumes.

    Raises:
        InvalidRequest: a node cannot be changed, or the dictionary is missing.
    """
    factor = real("factor", factor, -LARGEST, LARGEST)
    refuse_other_model(model, graph)
    chosen = _chosen(graph, nodes)
    if dictionary is None and any(node.kind == "feature" for node in graph.nodes):
        raise InvalidRequest("dictionary: give the transcoders of the graph")
    edits = [edit for at in chosen for edit in _edits(model, graph.nodes[at], factor, dictionary)]
    if frozen:
        edits = [*_pinned_patterns(model, graph), *edits]
    relative = _predicted(graph, chosen, factor - 1)
    at = [
        number
        for number in graph.targets.tolist()
        if graph.nodes[number].kind in MEASURED and number not in chosen and relative[number]
    ]
    own = [graph.nodes[number] for number in at]
    before, after = (_activations(model, graph, own, dictionary, done) for done in ([], edits))
    predicted = np.array([relative[number] * graph.nodes[number].activation for number in at])
    return GraphCheck([graph.nodes[number] for number in chosen], factor, own, predicted, after - before)


def _chosen(graph: AttributionGraph, nodes: Any) -> list[int]:
    if isinstance(nodes, str):
        if nodes not in graph.groups:
            raise InvalidRequest(f"nodes={brief(nodes)}: the graph has no such group")
        found = list(graph.groups[nodes])
    else:
        several = isinstance(nodes, (list, tuple)) and not isinstance(nodes, GraphNode)
        found = [graph.index(node) for node in (nodes if several else [nodes])]
    for at in found:
        if graph.nodes[at].kind not in CHANGED:
            raise InvalidRequest(
                f"node={graph.nodes[at].name}: its activation cannot be changed: choose a {', '.join(CHANGED)}"
            )
    return found


def _edits(model: TracedModel, node: GraphNode, factor: float, dictionary: Dictionary | None) -> list[Edit]:
    if node.kind == "feature":
        assert dictionary is not None
        return dictionary.scale(node.number, factor, layer=node.layer, tokens=str(node.position))
    if node.kind == "head":
        where = f"blocks.{node.layer}.attention.heads[heads={node.number}; tokens={node.position}]"
        return [scale(where, factor)]
    place = node.neuron
    part = f"dims={place.number}; tokens={node.position}"
    if place.expert is None:
        return [scale(f"{place.point}[{part}]", factor)]
    kind, chosen = model.spec.blocks[node.layer or 0].feedforward, _chosen_experts(node)
    assert isinstance(kind, Mixture)

    def scaled(values: NDArray[np.float32], context: CallContext) -> NDArray[np.float32]:
        is_expert = context[chosen][:, context.heads] == place.expert
        return np.where(is_expert[:, :, None], values * np.float32(factor), values)

    choices = range(kind.router.chosen)
    return [call(f"{place.point}[heads={choice}; {part}]", scaled, reads=chosen) for choice in choices]


def _chosen_experts(node: GraphNode) -> str:
    return f"blocks.{node.layer}.feedforward.experts"


def _pinned_patterns(model: TracedModel, graph: AttributionGraph) -> list[Edit]:
    names = [name for name, point in model.points.items() if point.kind == "pattern" and not point.of_source]
    trace = read(model, graph.ids, names)
    return [replace(f"{name}[tokens=0:{len(graph.ids)}]", trace[name]) for name in names]


def _predicted(graph: AttributionGraph, chosen: Sequence[int], change: float) -> NDArray[np.float64]:
    """The relative change of each node (n,): the changes of its inputs over all paths, divided by its activation."""
    activations = np.array([graph.nodes[at].activation for at in graph.targets])
    slopes = np.divide(
        graph.edges, activations[:, None], where=activations[:, None] != 0, out=np.zeros_like(graph.edges)
    )
    slopes[np.isin(graph.targets, chosen)] = 0  # they are set
    pending = np.zeros(len(graph.nodes))
    pending[list(chosen)] = change
    found = np.zeros(len(graph.nodes))
    while pending.any():
        found += pending
        reached = slopes @ pending
        pending = np.zeros(len(graph.nodes))
        pending[graph.targets] = reached
    return found


def _activations(
    model: TracedModel,
    graph: AttributionGraph,
    nodes: Sequence[GraphNode],
    dictionary: Dictionary | None,
    edits: Sequence[Edit],
) -> NDArray[np.float64]:
    points = dict[str, None]({LAST_LOGITS: None})
    for node in nodes:
        if node.kind == "neuron":
            points[node.neuron.point] = None
            if node.neuron.expert is not None:
                points[_chosen_experts(node)] = None
        elif node.kind == "feature":
            assert dictionary is not None
            points[dictionary.coder(node.layer).reads.name] = None
    trace = read(model, graph.ids, list(points), edits)
    raw = trace["project.logits"][-1]
    logits = uncapped(model, raw)
    features = _features(trace, nodes, dictionary)
    found = []
    for node in nodes:
        if node.kind == "logit" and graph.target is not None:
            found.append(float(graph.target(raw)))
        elif node.kind == "logit":
            found.append(float(logits[node.number] - logits.mean()))
        elif node.kind == "neuron":
            found.append(_neuron(trace, node))
        else:
            found.append(features[node.layer, node.position, node.number])
    return np.array(found)


def _neuron(trace: SequenceTrace, node: GraphNode) -> float:
    """The value of a neuron; 0 if the token has not chosen its expert."""
    place = node.neuron
    values = trace[place.point][node.position, ..., place.number]
    if place.expert is not None:
        values = values[trace[_chosen_experts(node)][node.position] == place.expert]
    return float(values.sum())


def _features(
    trace: SequenceTrace, nodes: Sequence[GraphNode], dictionary: Dictionary | None
) -> dict[tuple[int | None, int, int], float]:
    wanted, found = defaultdict[Any, list[GraphNode]](list), dict[tuple[int | None, int, int], float]()
    for node in nodes:
        if node.kind == "feature":
            wanted[node.layer].append(node)
    for layer, own in wanted.items():
        assert dictionary is not None
        coder = dictionary.coder(layer)
        encoded = coder.encode(np.ascontiguousarray(trace[coder.reads.point.name], np.float32))
        found |= {(layer, node.position, node.number): float(encoded[node.position, node.number]) for node in own}
    return found
