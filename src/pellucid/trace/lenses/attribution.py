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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.trace.export import Axis, Exportable, LabelledArray, values_named
from pellucid.trace.lenses.readout import Readout, token_readout
from pellucid.trace.lenses.stream_parts import (
    AttributedPosition,
    Contribution,
    gathered_points,
    mixtures_of,
)
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read, stream_points, token_of
from pellucid.util.checks import index


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
        return (
            f"Attribution({self.token!r}{versus}: {self.logit:.3f}, most by {first.name} {first.value:+.3f})"
        )

    @property
    def total(self) -> float:
        """The sum of the contributions."""
        return sum(contribution.value for contribution in self.contributions)

    def ranked(self, kind: str | None = None) -> list[Contribution]:
        """The contributions, or only the contributions of ``kind``, in descending order of absolute value."""
        contributions = [
            contribution for contribution in self.contributions if kind in (None, contribution.kind)
        ]
        return sorted(contributions, key=lambda contribution: -abs(contribution.value))

    def labelled(self, *names: str) -> list[LabelledArray]:
        """As in ``Exportable``: contribution."""
        parts = self.contributions
        columns = {
            column: np.array([getattr(part, column) for part in parts], object)
            for column in ("kind", "layer", "head", "expert")
        }
        values = np.array([part.value for part in parts])
        axes = (Axis("part", "part", [part.name for part in parts]),)
        return values_named({"contribution": LabelledArray("contribution", values, axes, columns)}, names)

    def _repr_html_(self) -> str:
        """The contributions as a table, the largest first."""
        from pellucid.util.display import shade, table

        largest = max(abs(contribution.value) for contribution in self.contributions)
        rows = [
            [part.name, (round(part.value, 3), shade(part.value, largest))] for part in self.ranked()[:20]
        ]
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
    return [*stream_points(model), *gathered_points(model).values(), *_outputs(model), *_of_experts(model)]


def _outputs(model: TracedModel) -> list[str]:
    return [f"{stage}.output" for stage in gathered_points(model)]


def _of_experts(model: TracedModel) -> list[str]:
    names = ("experts", "expert_weights", "experts.output", "output")
    return [f"blocks.{layer}.feedforward.{name}" for layer in mixtures_of(model) for name in names]


def attribute(
    model: TracedModel,
    of: Any,
    token: int | str | None = None,
    *,
    against: int | str | None = None,
    position: int = -1,
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
    model: TracedModel,
    sequence: SequenceTrace,
    token: int | str | None,
    against: int | str | None,
    position: int,
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
