"""The tokens that the units of a graph promote: the logits of their vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Mixture
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.graphs.attribution_graph import AttributionGraph, Promoted
from pellucid.trace.graphs.graph_node import GraphNode
from pellucid.trace.graphs.targets import blocks_of_head
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import whole

MOST = 100


def promoted_tokens(
    model: TracedModel, graph: AttributionGraph, dictionary: Dictionary | None = None, count: int = 5
) -> Promoted:
    """The ``count`` tokens with the highest logits for the vector of each neuron and feature of a graph.

    A value is the logit that an activation of 1 would have at a scale of 1 of the last norm, minus the mean of all
    logits. Later blocks are left out. The result has the numbers of the nodes as keys.

    Raises:
        InvalidRequest: the graph has features, and the dictionary is missing.
    """
    count = whole("count", count, 1, MOST)
    chosen = [at for at, node in enumerate(graph.nodes) if node.kind in ("neuron", "feature")]
    if not chosen:
        return {}
    width = model.spec.embedding.width
    vectors = np.stack([_vector(model, graph.nodes[at], dictionary) for at in chosen])
    vectors *= model.float_weights.vector("norm.weight", width, 1.0)
    blocks = [
        (start, (rows.astype(np.float32) @ vectors.T.astype(np.float32)))
        for start, rows in blocks_of_head(model)
    ]
    logits = np.concatenate([own for _, own in blocks])[: model.tokenizer.vocab_size]
    logits -= logits.mean(0)
    found = dict[int, list[tuple[str, float]]]()
    for at, own in zip(chosen, logits.T):
        best = np.argpartition(-own, count)[:count] if count < len(own) else np.arange(len(own))
        best = best[np.argsort(-own[best], kind="stable")]
        found[at] = [(model.tokenizer.piece(token), float(own[token])) for token in best.tolist()]
    return found


def _vector(model: TracedModel, node: GraphNode, dictionary: Dictionary | None) -> NDArray[np.float64]:
    """The vector (D,) that a unit writes at an activation of 1; of a cross-layer feature the sum over the layers."""
    if node.kind == "neuron":
        place, matrix = node.neuron, model.float_weights.values(node.neuron.down)
        if place.expert is not None:
            kind = model.spec.blocks[node.layer or 0].feedforward
            assert isinstance(kind, Mixture)
            matrix = matrix.reshape(kind.router.experts, -1, matrix.shape[-1])[place.expert]
        return np.asarray(matrix[:, place.number], np.float64)
    if dictionary is None:
        raise InvalidRequest("dictionary: give the transcoders of the graph")
    return np.asarray(dictionary.vectors(node.number, layer=node.layer)[0].sum(0), np.float64)
