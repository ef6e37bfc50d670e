"""The targets of an attribution graph, and the tokens that its units promote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.model.spec import FeedForward, Mixture, Norm
from pellucid.sample.candidates import Candidates
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.graphs.attribution_graph import AttributionGraph, Promoted, refuse_other_model
from pellucid.trace.graphs.graph_files import GraphNode
from pellucid.trace.lenses.targets import LogitDifference, LogProbability, Target, gradient_of, refuse_no_gradient
from pellucid.trace.traced_model import WEIGHT_ROWS, TracedModel, token_of, unembedding, unembedding_rows
from pellucid.util.checks import whole

# The targets of an attribution graph: logits before a soft-cap, minus the mean of all logits, or functions of logits.
#
# The mean does not change any probability. Without the mean, an edge to a logit would also show effects on all logits.

FEW = 8  # up to this number of logits, a gradient reads only their rows of the head's matrix


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

    ``x`` (D,) is the output of the last norm. Raises InvalidRequest if the target has no gradient, or a text is not a
    single token.
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


def _of_function(model: TracedModel, logits: NDArray[np.float32], x: NDArray[np.float32], target: Any) -> GraphTarget:
    refuse_no_gradient(target, "give tokens")
    gradient = gradient_of(target, logits, np.float64)
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
    for start in range(0, vocabulary, WEIGHT_ROWS):
        yield start, unembedding_rows(model.spec, model.float_weights, start, min(start + WEIGHT_ROWS, vocabulary))


# The tokens that the units of a graph promote: the logits of their vectors.

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
        (start, (rows.astype(np.float32) @ vectors.T.astype(np.float32))) for start, rows in blocks_of_head(model)
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
