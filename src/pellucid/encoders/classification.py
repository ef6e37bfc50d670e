"""Scores of labels: classification of texts and of pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pellucid.encoders.model import EncoderModel
from pellucid.engine.encoder_input import EncoderInput
from pellucid.model.scores import scores_of
from pellucid.trace.edits import Edit


class Classification(Struct, frozen=True):
    """The scores of a text's labels. ``logits`` are the values before the scale of ``Labels``."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    logits: tuple[float, ...]

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return self.ranked[0][0]

    @property
    def score(self) -> float:
        """The highest score."""
        return max(self.scores)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """All labels with their scores, the highest first."""
        return sorted(zip(self.labels, self.scores), key=lambda pair: -pair[1])


def classify(
    model: EncoderModel, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None
) -> list[Classification]:
    """The scores of each text's labels."""
    labels = model.spec.labels
    assert labels is not None
    found = []
    for rows in model.encode(texts, edits):
        logits = rows[0]
        found.append(Classification(labels.names, tuple(scores_of(labels, logits)), tuple(logits.tolist())))
    return found
