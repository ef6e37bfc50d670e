"""The label lens: the scores of a classifier's labels if the model ended after a block.

The residual stream after each block goes through the norm, the pooling and the output layers, with the same kernels as
in a run. After the last block, the scores are therefore the model's own scores, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.scores import scores_of
from pellucid.trace.export import Axis, Exportable, LabelledArray, values_named
from pellucid.trace.traced_model import TracedModel, read, residual_points


@dataclass(frozen=True, repr=False)
class LabelLens(Exportable):
    """The ``logits`` and ``scores`` (L, N) of N ``labels`` by layer (L: the embedding and each block)."""

    layers: list[str]
    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    scores: NDArray[np.float64]

    def __repr__(self) -> str:
        label, score = self.ranked(-1)[0]
        return f"LabelLens({len(self.layers)} layers, says {label!r} with {score:.3f})"

    def ranked(self, layer: int) -> list[tuple[str, float]]:
        """All labels with their scores after a layer, the highest first."""
        return sorted(zip(self.labels, self.scores[layer].tolist()), key=lambda pair: -pair[1])

    def labelled(self, *names: str) -> list[LabelledArray]:
        """As in ``Exportable``: score, logit."""
        axes = (
            Axis("layer", "L", [name.removesuffix(".residual") for name in self.layers]),
            Axis("label", "N", self.labels),
        )
        values: dict[str, NDArray[Any]] = {"score": self.scores, "logit": self.logits}
        return values_named({name: LabelledArray(name, own, axes) for name, own in values.items()}, names)

    def _repr_html_(self) -> str:
        """The scores of each layer, shaded."""
        from pellucid.util.display import shade, table

        rows: list[list[Any]] = [
            [name.removesuffix(".residual"), *((f"{score:.3f}", shade(score, 1.0)) for score in own)]
            for name, own in zip(self.layers, self.scores.tolist())
        ]
        return table(["after", *self.labels], rows, "the label lens: the scores of the labels")

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {
            "layers": self.layers,
            "labels": list(self.labels),
            "logits": self.logits.tolist(),
            "scores": self.scores.tolist(),
        }


def needed(model: TracedModel) -> list[str]:
    """The points that the lens reads."""
    return residual_points(model)


def label_lens(model: TracedModel, of: Any) -> LabelLens:
    """Apply the lens to a text, a pair of texts, or a sequence of a trace that has the residual stream of every block.

    Raises:
        InvalidRequest: the model is no classifier of texts, or a value was not recorded or is not finite.
    """
    spec = model.spec
    labels, pooling = spec.labels, spec.pooling
    if spec.task != "classify" or labels is None or pooling is None:
        raise InvalidRequest(
            "the label lens needs a classifier of texts: for masks and next tokens use logit_lens"
        )
    names = residual_points(model)
    sequence = read(model, of, names)
    # A model that reads one row of a text needs only this row.
    chosen = {"cls": slice(0, 1), "last": slice(-1, None)}.get(pooling.kind, slice(None))
    rows = [sequence[name] for name in names]
    for name, own in zip(names, rows):
        if len(own) != len(sequence) or not np.isfinite(own).all():
            raise InvalidRequest(
                f"point={name}: a value is not finite, or was not recorded: trace all positions"
            )
    logits = np.concatenate([model.project(own[chosen], len(own[chosen])) for own in rows])
    scores = np.array([scores_of(labels, own) for own in logits])
    return LabelLens(names, labels.names, logits, scores)
