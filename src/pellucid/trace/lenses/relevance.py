"""The relevance of each token of a text for a logit: conservative propagation (Ali et al. 2022).

Attention weights, the scales of norms, and the ratio of each neuron's value after and before its activation (or its
gate) are held fixed. Then the logit is linear in the embeddings of the tokens, and the gradient times the embedding of
a token is its relevance (Ali et al. 2022, "XAI for Transformers: Better Explanations through Conservative Propagation",
arXiv:2202.07304). The relevances, a constant for the biases, and rounding errors sum to the logit.

A part of a block that is not propagated (a recurrent layer, a mixture of experts, latent attention, per-layer
embeddings) counts for the token at whose position it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Attention, FeedForward, Norm
from pellucid.trace.budget import BUDGET
from pellucid.trace.export import Exportable, LabelledArray, token_axis
from pellucid.trace.lenses.attribution import target
from pellucid.trace.lenses.targets import Readout, through_norm
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import (
    DECISION_NORM,
    DECISION_TYPES,
    ModelWeights,
    TracedModel,
    first_block,
    read,
    stream_points,
)

Rows = NDArray[np.float64]
Record = Callable[[Sequence[str]], SequenceTrace]
"""Runs the prompt, and returns a trace with these points at all positions."""


@dataclass(frozen=True, repr=False)
class Relevance(Exportable):
    """The relevance ``tokens`` (T,) of each token for ``logit`` (a logit, or the difference of two logits).

    ``constant`` is the contribution of biases, and of the vector of the type of a question. ``rounding`` is the
    contribution of rounding errors and of edits inside the parts of blocks. All sum to ``logit``.
    """

    pieces: Sequence[str]
    tokens: Rows
    logit: float
    constant: float
    rounding: float

    def __repr__(self) -> str:
        most = np.argsort(-np.abs(self.tokens), kind="stable")[:3].tolist()
        each = ", ".join(f"{self.pieces[at]!r} {self.tokens[at]:+.3f}" for at in most)
        return f"Relevance({self.logit:+.3f}, most by {each})"

    def _values(self) -> list[LabelledArray]:
        return [LabelledArray("relevance", self.tokens, (token_axis(self.pieces),))]

    @property
    def total(self) -> float:
        """The sum of all contributions."""
        return float(self.tokens.sum()) + self.constant + self.rounding


class PropagatedPart(Struct, frozen=True):
    """A part of a block that adds to the residual stream: the points after it, before it, and of what it reads.

    The norm before decision blocks, with the vector of the type of the question, is a part with the ``stage``
    ``DECISION_NORM``, and of no block.
    """

    stage: str
    after: str
    before: str
    reads: str

    @property
    def layer(self) -> int:
        return int(self.stage.split(".")[1])

    @property
    def kind(self) -> str:
        return self.stage.split(".")[2]


def sublayers(model: TracedModel) -> tuple[str, list[PropagatedPart]]:
    """The point of the stream before the first block, and all parts of blocks in order. Raises InvalidRequest if there
    are several residual streams, or the stream is normalised or scaled.
    """
    names, found = stream_points(model), list[PropagatedPart]()
    if any(block.placement == "post" for block in model.spec.blocks):
        raise InvalidRequest(
            "relevance needs a residual stream that is a sum: this model normalises it after each part: use attribute"
        )
    if any(block.scalar for block in model.spec.blocks):
        raise InvalidRequest(
            "relevance needs a residual stream that is a sum: this model scales it after each block: use attribute or "
            "attribution_graph"
        )
    first = first_block(names)
    before, reads, group = names[first - 1], names[first - 1], ("", "")
    for name in names[first:]:
        if name == DECISION_NORM:
            continue  # a part with the vector that follows
        if name == DECISION_TYPES:
            found.append(PropagatedPart(DECISION_NORM, name, before, before))
            before = name
            continue
        stage = ".".join(name.split(".")[:3])
        layer, kind = stage.split(".")[1:]
        parallel = model.spec.blocks[int(layer)].is_parallel
        own = (layer, "" if parallel else "mixer" if kind in ("attention", "recurrent") else kind)
        if own != group:  # parts of one group read the same value
            reads, group = before, own
        found.append(PropagatedPart(stage, name, before, reads))
        before = name
    return names[first - 1], found


def relevance(
    model: TracedModel,
    prompt: Any,
    token: int | str | None = None,
    *,
    against: int | str | None = None,
    position: int = -1,
) -> Relevance:
    """The relevance of the tokens of a prompt for the logit of ``token`` after a position.

    ``token`` is by default the most likely token. With ``against``, the relevance is for the difference of two logits.
    The prompt runs several times if it is long.

    Raises: as ``attribute``; InvalidRequest if a prompt is too long to be traced.
    """
    record = partial(read, model, prompt)
    first = record([stream_points(model)[-1]])
    _, readout = target(model, first, token, against, position)
    return propagate(model, readout, first.pieces, record)


def propagate(model: TracedModel, readout: Readout, pieces: Sequence[str], record: Record) -> Relevance:
    """The relevance for a logit of the tokens with the texts ``pieces``: of all tokens that the logit depends on."""
    causal = all(attention.causal for attention in model.spec.attentions)
    count = max(readout.directions) + 1 if causal else len(pieces)
    start, parts = sublayers(model)
    backward = Backward(model, readout, count)
    groups = list(_traced_together(model, parts, count))
    for number, group in enumerate(groups):
        points = [point for part in group for point in _points(model, part)]
        trace = record(list(dict.fromkeys([*points, *([start] if number == len(groups) - 1 else [])])))
        for part in group:
            backward.through(part, trace)
    backward.finish(trace[start])
    tokens = backward.tokens
    rounding = readout.logit - float(tokens.sum()) - backward.constant
    return Relevance(pieces[:count], tokens, readout.logit, backward.constant, rounding)


def _traced_together(model: TracedModel, parts: Sequence[PropagatedPart], count: int) -> Iterator[list[PropagatedPart]]:
    """The parts from the last to the first, in groups whose values fit into the budget of a trace. Raises
    InvalidRequest if the values of a single part do not fit.
    """
    group, taken = list[PropagatedPart](), 0
    for part in reversed(parts):
        size = sum(_bytes(model, point, count) for point in _points(model, part))
        if size > BUDGET * 3 // 4:
            raise InvalidRequest(f"a prompt of {count:,} tokens is too long for this lens: shorten it")
        if group and taken + size > BUDGET * 3 // 4:
            yield group
            group, taken = [], 0
        group.append(part)
        taken += size
    yield group


def _bytes(model: TracedModel, name: str, count: int) -> int:
    view = model.points[name].view
    return 4 * count * view.parts * (count if model.points[name].kind == "pattern" else view.count)


def _points(model: TracedModel, part: PropagatedPart) -> list[str]:
    if part.stage == DECISION_NORM:
        return [part.reads, DECISION_NORM, part.after]
    block, points = model.spec.blocks[part.layer], [part.reads]
    if not _is_propagated(model, part):
        return [part.before, part.after]
    if block.norms_outputs:
        points.append(f"{part.stage}.output")
    if part.kind == "attention":
        gated = ["gated", "heads"] if block.attention and block.attention.gate else []
        return [*points, *(f"{part.stage}.{name}" for name in ("pattern", *gated))]
    return [*points, f"{part.stage}.hidden", f"{part.stage}.up"]


def _is_propagated(model: TracedModel, part: PropagatedPart) -> bool:
    block = model.spec.blocks[part.layer]
    if part.kind == "feedforward":
        return isinstance(block.feedforward, FeedForward)
    kind = block.attention
    if part.kind != "attention" or kind is None:
        return False
    special = kind.latent or block.cross or kind.keys_as_values or kind.v_norm or kind.clip
    return not special and kind.shared is None and f"{part.stage}.pattern" in model.points


class Backward:
    """The backward pass: ``gradient`` (T, D) of the logit by the residual stream, ``tokens`` (T,), and ``constant``."""

    def __init__(self, model: TracedModel, readout: Readout, count: int) -> None:
        self._model, self._weights = model, ModelWeights(model.checkpoint, model.model)
        self.gradient = np.zeros((count, model.spec.embedding.width))
        for at, direction in readout.directions.items():
            self.gradient[at] = direction
        self.tokens, self.constant = np.zeros(count), readout.constant
        self._pending = list[Rows]()
        self._reads = ""

    def through(self, part: PropagatedPart, trace: SequenceTrace) -> None:
        """Go back through a part of a block. Parts that read the same value get the same gradient."""
        if part.reads != self._reads:
            self._settle()
            self._reads = part.reads
        (rows,) = np.nonzero(self.gradient.any(1))
        if part.stage == DECISION_NORM:
            self._decision_norm(part, trace, rows)
            return
        block, gradient = self._model.spec.blocks[part.layer], self.gradient[rows]
        if not _is_propagated(self._model, part):
            added = self._values(trace, part.after, rows) - self._values(trace, part.before, rows)
            self.tokens[rows] += (gradient * added).sum(1)
            return
        through = gradient * block.residual_scale
        if block.norms_outputs:
            output = self._values(trace, f"{part.stage}.output", rows)
            through = self._norm(block.norm, f"{part.stage}.post_norm", output, through)
        if part.kind == "attention":
            assert block.attention is not None
            found = self._attention(part, block.attention, trace, rows, through)
        else:
            assert isinstance(block.feedforward, FeedForward)
            found = np.zeros_like(self.gradient)
            found[rows] = self._feedforward(part, block.feedforward, trace, rows, through)
        if block.placement != "output" and (block.attention_norm or part.kind != "attention"):
            stage = f"blocks.{part.layer}.attention" if block.placement == "shared" else part.stage
            (rows,) = np.nonzero(found.any(1))
            before = self._values(trace, part.reads, rows)
            found[rows] = self._norm(block.norm, f"{stage}.norm", before, found[rows])
        self._pending.append(found)

    def finish(self, embedded: NDArray[Any]) -> None:
        self._settle()
        self.tokens += (self.gradient * embedded[: len(self.tokens)].astype(np.float64)).sum(1)

    def _settle(self) -> None:
        for found in self._pending:
            self.gradient += found
        self._pending.clear()

    def _values(self, trace: SequenceTrace, name: str, rows: NDArray[Any]) -> Rows:
        return np.asarray(trace[name][rows], np.float64)

    def _decision_norm(self, part: PropagatedPart, trace: SequenceTrace, rows: NDArray[Any]) -> None:
        decision, gradient = self._model.spec.decision, self.gradient[rows]
        assert decision is not None
        added = self._values(trace, part.after, rows) - self._values(trace, DECISION_NORM, rows)
        self.constant += float((gradient * added).sum())
        before = self._values(trace, part.reads, rows)
        self.gradient[rows] = self._norm(decision.norm, DECISION_NORM, before, gradient)

    def _norm(self, norm: Norm, slot: str, x: Rows, gradient: Rows) -> Rows:
        through, constant = through_norm(self._weights, norm, slot, x, gradient)
        self.constant += constant
        return through

    def _linear(self, slot: str, gradient: Rows) -> Rows:
        """The gradient (T, N) at the input of a matrix product, from the gradient at its output."""
        if self._weights.has(f"{slot}.bias"):
            bias = self._weights.vector(f"{slot}.bias", gradient.shape[-1], 0.0)
            self.constant += float((gradient @ bias).sum())
        product = gradient.astype(np.float32) @ self._weights.values(f"{slot}.weight")  # twice as fast as float64
        return np.asarray(product, np.float64)

    def _attention(
        self, part: PropagatedPart, kind: Attention, trace: SequenceTrace, rows: NDArray[Any], gradient: Rows
    ) -> Rows:
        heads = self._linear(f"{part.stage}.output", gradient * kind.output_scale)
        if kind.gate:
            heads = heads * self._ratio(trace, part, ("gated", "heads"), rows)
        count = len(self.tokens)
        by_head = heads.reshape(len(rows), kind.kv_heads, -1, kind.value_dim)
        weights = trace[f"{part.stage}.pattern"][:, rows, :count].astype(np.float64)
        weights = weights.reshape(kind.kv_heads, -1, len(rows), count)
        values = np.einsum("qgnv,gnqk->kgv", by_head, weights, optimize=True)
        return self._linear(f"{part.stage}.v", values.reshape(count, -1))

    def _feedforward(
        self, part: PropagatedPart, kind: FeedForward, trace: SequenceTrace, rows: NDArray[Any], gradient: Rows
    ) -> Rows:
        neurons = self._linear(f"{part.stage}.down", gradient * kind.output_scale)
        ratio = self._ratio(trace, part, ("hidden", "up"), rows)
        return self._linear(f"{part.stage}.up", neurons * ratio)

    def _ratio(self, trace: SequenceTrace, part: PropagatedPart, names: tuple[str, str], rows: NDArray[Any]) -> Rows:
        """The ratio (rows, N) of the first of two points of a part to the second; 0 where the second is 0."""
        after, before = (self._values(trace, f"{part.stage}.{name}", rows).reshape(len(rows), -1) for name in names)
        return np.divide(after, before, out=np.zeros_like(after), where=before != 0)
