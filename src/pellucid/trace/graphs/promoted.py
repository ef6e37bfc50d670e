"""The tokens that the units of a graph promote: the logits of their vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import FeedForward, Mixture, Norm
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.graphs.attribution_graph import AttributionGraph, Promoted, refuse_other_model
from pellucid.trace.graphs.graph_node import GraphNode
from pellucid.trace.graphs.targets import blocks_of_head
from pellucid.trace.traced_model import TracedModel
from pellucid.util.checks import whole

MOST = 100
Rows = NDArray[np.float64]


def promoted_tokens(
    model: TracedModel, graph: AttributionGraph, dictionary: Dictionary | None = None, count: int = 5
) -> Promoted:
    """The ``count`` tokens with the highest logits for the vector of each neuron and feature of a graph.

    A value is the logit that an activation of 1 would have, minus the mean of all logits, if all norms after it had a
    scale of 1, and its expert a weight of 1. Later parts of the model are left out. The result has the numbers of the
    nodes as keys. It is empty if the model has several residual streams, which each token mixes in its own way.

    Raises:
        InvalidRequest: the graph has features, and the dictionary is missing.
    """
    count = whole("count", count, 1, MOST)
    refuse_other_model(model, graph)
    chosen = [at for at, node in enumerate(graph.nodes) if node.kind in ("neuron", "feature")]
    if not chosen or model.spec.altup:
        return {}
    vectors = np.stack([_vector(model, graph.nodes[at], dictionary) for at in chosen])
    vectors = _through(model, model.spec.final_norm, "norm", vectors)
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


def _vector(model: TracedModel, node: GraphNode, dictionary: Dictionary | None) -> Rows:
    """What a unit adds to the residual stream (D,) at an activation of 1; of a cross-layer feature over all layers."""
    if node.kind == "neuron":
        place, matrix = node.neuron, model.float_weights.values(node.neuron.down)
        if place.expert is not None:
            kind = model.spec.blocks[node.layer or 0].feedforward
            assert isinstance(kind, Mixture)
            matrix = matrix.reshape(kind.router.experts, -1, matrix.shape[-1])[place.expert]
        column = matrix[:, place.number].astype(np.float64)
        return _to_stream(model, f"blocks.{node.layer}.feedforward.output", column)
    if dictionary is None:
        raise InvalidRequest("dictionary: give the transcoders of the graph")
    vectors = dictionary.vectors(node.number, layer=node.layer)[0].astype(np.float64)
    writes = dictionary.coder(node.layer).writes
    found = [_to_stream(model, own.point.name, vector) for own, vector in zip(writes, vectors)]
    return np.asarray(np.sum(found, axis=0), np.float64)


def _to_stream(model: TracedModel, point: str, vector: Rows) -> Rows:
    """A vector that is written to an output of a feed-forward, after the norms and factors before the next block."""
    layer = int(point.split(".")[1])
    block, stage = model.spec.blocks[layer], f"blocks.{layer}.feedforward"
    if block.norms_outputs and not point.endswith(".post_norm"):
        vector = _through(model, block.norm, f"{stage}.post_norm", vector)
    scale = block.feedforward.output_scale if isinstance(block.feedforward, FeedForward) else 1.0
    vector = vector * block.residual_scale * scale
    if block.placement == "post":
        return _through(model, block.norm, f"{stage}.norm", vector)
    weights = model.float_weights
    return vector * weights.vector(f"blocks.{layer}.scalar.weight", 1, 1.0) if block.scalar else vector


def _through(model: TracedModel, norm: Norm | None, slot: str, vectors: Rows) -> Rows:
    """Vectors (..., D) after a norm with a scale of 1, without its bias."""
    if norm is None:
        return vectors
    centred = vectors - vectors.mean(-1, keepdims=True) if norm.kind == "layer" else vectors
    return centred * model.float_weights.vector(f"{slot}.weight", vectors.shape[-1], 1.0)
