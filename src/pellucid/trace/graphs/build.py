"""Builds attribution graphs.

    graph = attribution_graph(llm, "The capital of the state containing Dallas is", dictionary)

1. The prompt runs once, and a tape records what the local replacement model needs (``local_run.py``).
2. A pass through all units chooses the candidates, which are sources of edges (``edges.py``). The contributions of
   all other units belong to the error of their feed-forward.
3. Passes from targets give their edges (``edges.py``): from the logits first, then from heads, then from units in the
   order of their influence.
4. The edges of candidates that were no targets are added to the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.backward.reverse_walk import Rows
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import Edit
from pellucid.trace.graphs.attribution_graph import AttributionGraph, influences
from pellucid.trace.graphs.edges import EdgeTable, choose, injections
from pellucid.trace.graphs.graph_files import GraphNode
from pellucid.trace.graphs.local_run import MOST_COPIES, LocalRun
from pellucid.trace.graphs.neurons import Numbers
from pellucid.trace.graphs.targets import GraphTarget, graph_targets
from pellucid.trace.lenses.targets import Target
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import boolean, real, whole

BUDGET = 4 << 30
"""Default limit of the bytes of recorded values, and of edges."""
MOST_NODES = 1 << 17
CANDIDATES = 16
"""The number of candidates for each node of the graph."""
LEAST_CANDIDATES = 1 << 14
HEADS_SHARE = 4
"""The number of nodes for each head, if heads are nodes."""
RANKED_AFTER = 4
"""The number of passes after which units are ranked again."""
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
    return replace(graph, target=target) if callable(target) else graph


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
