"""Scores of labels, from the logits of a classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.model.outputs import Labels
from pellucid.util.probabilities import sigmoid, softmax


def scores_of(labels: Labels, logits: NDArray[np.float32]) -> list[float]:
    """The scores (N,) of logits (N,)."""
    if labels.scale == "none":
        of_words = labels.relevant is not None and len(logits) == 2
        return list(map(float, logits - logits[::-1] if of_words else logits))
    return list(map(float, (softmax if labels.scale == "softmax" else sigmoid)(logits)))
