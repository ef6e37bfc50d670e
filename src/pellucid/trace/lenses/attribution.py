"""Direct logit attribution: the contribution of each part of the model to the logit of a token.

The last vector of the residual stream is the sum of the outputs of the embedding, of every head and of every
feed-forward. If the scales of the norms after these outputs are held fixed, the logit is linear in this sum (Elhage et
al. 2021, "A mathematical framework for transformer circuits"). The contributions of the parts and the constants
therefore sum to the logit. Contributions of kind "rounding" are rounding errors of quantised activations, in the input
of an output projection and in the last vector before the output head.

In models that normalize the residual stream after each addition (the original transformer, BART), these norms are held
fixed too: a part contributes along the direction that the later norms give it, and their biases are constants. Factors
of the residual stream (Gemma 4) scale this direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Attention, Mixture, ModelSpec, Norm
from pellucid.trace.export import Axis, Exportable, LabelledArray
from pellucid.trace.lenses.targets import Readout, through_norm, token_readout
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import DECISION_NORM, ModelWeights, TracedModel, read, stream_points, token_of
from pellucid.util.checks import index
from pellucid.util.display import shade, table

ATTENTIONS = ("attention", "cross")
"""The attentions of a block: to the tokens of the text, and to the tokens of a source."""
GATHERED = ("gated", "heads")
"""Points that may hold the input of attention's output projection. The first point that a model has holds it."""


@dataclass(frozen=True)
class Contribution:
    """The contribution of a part to the logit, with the part's ``layer``, ``head`` and ``expert`` if it has them.

    ``kind`` is "embedding", "head", "attention" (its biases), "cross" (a head of cross attention, or its biases),
    "rounding", "recurrent", "feedforward", "expert", "per_layer", "constant" or "edit". In a mixture, "feedforward" is
    the contribution of the shared expert. If the ``output`` of a part was edited, "edit" is the contribution of the
    edit and of rounding.
    """

    name: str
    kind: str
    value: float
    layer: int | None = None
    head: int | None = None
    expert: int | None = None


def gathered_points(model: TracedModel) -> dict[str, str]:
    """The point with the input of attention's output projection, by the stage of the attention ("blocks.3.cross")."""
    gathered, points = {}, model.points
    for layer in range(len(model.spec.blocks)):
        for stage in (f"blocks.{layer}.{part}" for part in ATTENTIONS):
            names = [f"{stage}.{name}" for name in GATHERED]
            if name := next((name for name in names if name in points), None):
                gathered[stage] = name
    return gathered


def attention_of(spec: ModelSpec, stage: str) -> Attention:
    _, layer, part = stage.split(".")
    kind = getattr(spec.blocks[int(layer)], part)
    assert isinstance(kind, Attention)
    return kind


def mixtures_of(model: TracedModel) -> dict[int, Mixture]:
    """The mixtures that sum their experts' outputs without norms, by block."""
    inner = {layer: block.feedforward for layer, block in enumerate(model.spec.blocks)}
    return {layer: kind for layer, kind in inner.items() if isinstance(kind, Mixture) and not kind.norms}


class StreamPart(NamedTuple):
    """A part that writes the residual stream, at one position.

    ``direction`` (D,) is the direction along which the part's output contributes, and ``value`` its contribution. A
    norm or a factor of the stream has the direction of its output, and the contribution of its bias.
    """

    point: str
    direction: NDArray[np.float64]
    value: float

    @property
    def stage(self) -> str:
        return ".".join(self.point.split(".")[:3])

    @property
    def is_factor(self) -> bool:
        """True for a number that multiplies the residual stream at the end of a block."""
        return self.point.startswith("blocks.") and self.point.endswith(".scalar")

    @property
    def is_linear(self) -> bool:
        """True for a factor or a norm of the residual stream: after a part of a block, or before decision blocks."""
        own = self.point.startswith("blocks.") and self.point.endswith(".norm")
        return own or self.is_factor or self.point == DECISION_NORM


class AttributedPosition:
    """One position of a sequence: its residual stream, and the contributions of the parts that write the stream."""

    def __init__(self, model: TracedModel, sequence: SequenceTrace, at: int) -> None:
        self.model, self.sequence, self.at = model, sequence, at
        self.weights = ModelWeights(model.checkpoint, model.model)
        self.stream, self.gathered = stream_points(model), gathered_points(model)

    def _row(self, name: str) -> NDArray[np.float64]:
        row: NDArray[np.float64] = self.sequence.at(name, self.at).astype(np.float64)
        return row

    def parts(self, direction: NDArray[np.float64]) -> list[StreamPart]:
        """The parts that write the residual stream, in order, with their contributions along a direction at its end."""
        found, after = list[StreamPart](), self._row(self.stream[-1])
        for number in reversed(range(len(self.stream))):
            before = self._row(self.stream[number - 1]) if number else np.zeros_like(after)
            part = StreamPart(self.stream[number], direction, float(direction @ (after - before)))
            if part.is_linear:
                through = self._through_factor if part.is_factor else self._through_norm
                part, direction = through(part, before)
                if part.point in self.sequence.edited:
                    rest = part.direction @ after - direction @ before - part.value
                    found.append(part._replace(point=f"{part.point}.edit", value=float(rest)))
            found.append(part)
            after = before
        return found[::-1]

    def _through_factor(self, part: StreamPart, before: NDArray[np.float64]) -> tuple[StreamPart, NDArray[np.float64]]:
        factor = self.weights.vector(f"{part.point}.weight", 1, 1.0)
        return part._replace(value=0.0), part.direction * factor

    def _through_norm(self, part: StreamPart, before: NDArray[np.float64]) -> tuple[StreamPart, NDArray[np.float64]]:
        """A norm of the stream with the contribution of its bias, and the direction at its input ``before``."""
        norm = self._norm(part.point)
        through, constant = through_norm(self.weights, norm, part.point, before, part.direction)
        return part._replace(value=constant), through

    def _norm(self, point: str) -> Norm:
        spec = self.model.spec
        if point == DECISION_NORM:
            assert spec.decision is not None
            return spec.decision.norm
        return spec.blocks[int(point.split(".")[1])].norm

    def contributions(self, direction: NDArray[np.float64]) -> Iterator[Contribution]:
        mixtures = mixtures_of(self.model)
        for part in self.parts(direction):
            layer = int(part.point.split(".")[1]) if part.point.startswith("blocks.") else None
            kind = part.point.split(".")[2] if layer is not None else "embedding"
            if part.point.endswith((".norm.edit", ".scalar.edit")):
                yield Contribution(part.point, "edit", part.value, layer)
            elif part.is_linear:
                if part.value:
                    yield Contribution(f"{part.point}.bias", "constant", part.value, layer)
            elif layer is None:
                yield Contribution(part.point, kind, part.value)
            elif part.stage in self.gathered:
                yield from self._heads(part, layer)
            elif kind == "feedforward" and layer in mixtures:
                yield from self._experts(layer, mixtures[layer], part.direction, part.value)
            else:
                yield Contribution(part.stage, kind, part.value, layer)

    def _heads(self, part: StreamPart, layer: int) -> Any:
        stage, is_cross = part.stage, part.stage.endswith(".cross")
        columns, through, constant = self.columns(stage, part.direction)
        each = (columns * self._row(self.gathered[stage]).reshape(columns.shape)).sum(-1)
        kind = "cross" if is_cross else "head"
        for head, share in enumerate(each):
            yield Contribution(f"{stage}.heads.{head}", kind, float(share), layer, head)
        if self.weights.has(f"{stage}.output.bias"):
            constant += float(through @ self.weights.vector(f"{stage}.output.bias", len(through), 0.0))
        if constant:
            yield Contribution(f"{stage}.bias", "cross" if is_cross else "attention", constant, layer)
        yield self._rest(stage, part.value - float(each.sum()) - constant, layer)

    def columns(
        self, stage: str, direction: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """The direction at the heads' outputs (H, V), at the output of attention (D,), and the constant of its norm."""
        attention = attention_of(self.model.spec, stage)
        through, constant = self._through(stage, int(stage.split(".")[1]), direction * attention.output_scale)
        by_column = self.weights.values(f"{stage}.output.weight").astype(np.float64).T @ through
        return by_column.reshape(attention.heads, -1), through, constant

    def _experts(self, layer: int, kind: Mixture, direction: NDArray[np.float64], value: float) -> Any:
        """Yield the contributions of the token's experts and of the shared expert.

        Without a shared expert, the rest is the contribution of rounding.
        """
        prefix = f"blocks.{layer}.feedforward"
        through, constant = self._through(prefix, layer, direction)
        results, chosen = (self._row(f"{prefix}.experts.output"), self.sequence.at(f"{prefix}.experts", self.at))
        each = results @ through
        if not kind.input_weights:
            each = each * self._row(f"{prefix}.expert_weights")
        for expert, share in zip(chosen.tolist(), each.tolist()):
            yield Contribution(f"{prefix}.experts.{expert}", "expert", share, layer, expert=expert)
        rest = value - float(each.sum())
        if kind.shared:
            yield Contribution(f"{prefix}.shared", "feedforward", rest, layer)
        else:
            if constant:
                yield Contribution(f"{prefix}.bias", "feedforward", constant, layer)
            yield self._rest(prefix, rest - constant, layer)

    def _rest(self, prefix: str, value: float, layer: int) -> Contribution:
        edited = any(f"{prefix}.{name}" in self.sequence.edited for name in ("output", "post_norm", "residual"))
        kind = "edit" if edited else "rounding"
        return Contribution(f"{prefix}.{kind}", kind, value, layer)

    def _through(self, prefix: str, layer: int, direction: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """The direction at the output of a block's part, and the constant that a norm after the part adds."""
        block = self.model.spec.blocks[layer]
        through = direction * block.residual_scale
        if not block.norms_outputs:
            return through, 0.0
        return through_norm(self.weights, block.norm, f"{prefix}.post_norm", self._row(f"{prefix}.output"), through)


@dataclass(frozen=True, repr=False)
class Attribution(Exportable):
    """The contributions to the logit of ``token`` after a position.

    With ``against``, they are the contributions to the difference of the two logits. ``token`` and ``against`` are
    texts; ``token_id`` and ``against_id`` are the ids.

    ``logit`` is the model's own logit (or difference of logits) before a soft-cap. The contributions sum to ``logit``.
    """

    token: str
    against: str | None
    position: int
    logit: float
    contributions: Sequence[Contribution]
    token_id: int
    against_id: int | None = None

    def __repr__(self) -> str:
        first = max(self.contributions, key=lambda contribution: contribution.value)
        versus = "" if self.against is None else f" against {self.against!r}"
        return f"Attribution({self.token!r}{versus}: {self.logit:.3f}, most by {first.name} {first.value:+.3f})"

    @property
    def total(self) -> float:
        """The sum of the contributions."""
        return sum(contribution.value for contribution in self.contributions)

    def ranked(self, kind: str | None = None) -> list[Contribution]:
        """The contributions, or only the contributions of ``kind``, in descending order of absolute value."""
        contributions = [contribution for contribution in self.contributions if kind in (None, contribution.kind)]
        return sorted(contributions, key=lambda contribution: -abs(contribution.value))

    def _values(self) -> list[LabelledArray]:
        parts = self.contributions
        columns = {
            column: np.array([getattr(part, column) for part in parts], object)
            for column in ("kind", "layer", "head", "expert")
        }
        values = np.array([part.value for part in parts])
        axes = (Axis("part", "part", [part.name for part in parts]),)
        return [LabelledArray("contribution", values, axes, columns)]

    def _repr_html_(self) -> str:
        largest = max(abs(contribution.value) for contribution in self.contributions)
        rows = [[part.name, (round(part.value, 3), shade(part.value, largest))] for part in self.ranked()[:20]]
        return table(["part", "adds"], rows, f"{self!r}")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {
            "token": self.token_id,
            "piece": self.token,
            "against": self.against_id,
            "against_piece": self.against,
            "position": self.position,
            "logit": self.logit,
            "total": self.total,
            "contributions": [vars(contribution) for contribution in self.contributions],
        }


def needed(model: TracedModel) -> list[str]:
    """The points that the lens reads. Raises InvalidRequest if the model has several residual streams."""
    gathered, mixtures = gathered_points(model), mixtures_of(model)
    names = ("experts", "expert_weights", "experts.output", "output")
    of_experts = [f"blocks.{layer}.feedforward.{name}" for layer in mixtures for name in names]
    return [*stream_points(model), *gathered.values(), *(f"{stage}.output" for stage in gathered), *of_experts]


def attribute(
    model: TracedModel, of: Any, token: int | str | None = None, *, against: int | str | None = None, position: int = -1
) -> Attribution:
    """Attribute the logit of ``token`` after a position to the parts of the model.

    ``of`` is a prompt, which is run, or a sequence of a trace. ``token`` is by default the most likely token. With
    ``against``, the difference of the two tokens' logits is attributed.

    Raises:
        InvalidRequest: the model has several residual streams, a text is not a single token, or the trace lacks a
            point.
    """
    if model.spec.task not in ("generate", "decide") or model.spec.head is None:
        raise InvalidRequest("the model has no logits")
    sequence = read(model, of, needed(model))
    found, readout = target(model, sequence, token, against, position)
    return replace(found, contributions=contributions(model, sequence, readout))


def target(
    model: TracedModel, sequence: SequenceTrace, token: int | str | None, against: int | str | None, position: int
) -> tuple[Attribution, Readout]:
    """The logit to attribute, as in ``attribute``: without contributions, and its readout.

    ``sequence`` needs the residual stream at the position.
    """
    if model.spec.task not in ("generate", "decide") or model.spec.head is None:
        raise InvalidRequest("the model has no logits")
    stream, last = stream_points(model), index("position", position, len(sequence))
    logits = model.project(sequence.at(stream[-1], last))[0]
    chosen = int(np.nanargmax(logits)) if token is None else token_of(model, token)
    other = None if against is None else token_of(model, against)
    readout = token_readout(model, sequence, logits, chosen, other, last)
    text = model.tokenizer.piece(chosen)
    versus = None if other is None else model.tokenizer.piece(other)
    return Attribution(text, versus, last, readout.logit, [], chosen, other), readout


def contributions(model: TracedModel, sequence: SequenceTrace, readout: Readout) -> list[Contribution]:
    """The contributions of the parts to a logit, summed over the positions that are read."""
    sums = dict[Contribution, float]()
    for at, direction in readout.directions.items():
        for part in AttributedPosition(model, sequence, at).contributions(direction):
            name = replace(part, value=0.0)
            sums[name] = sums.get(name, 0.0) + part.value
    parts = [replace(name, value=value) for name, value in sums.items()]
    if readout.constant:
        parts.append(Contribution("constant", "constant", readout.constant))
    rounding = readout.logit - sum(part.value for part in parts)
    return [*parts, Contribution(f"{readout.stage}.rounding", "rounding", rounding)]
