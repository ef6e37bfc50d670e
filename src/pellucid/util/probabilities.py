"""Probabilities of a few logits, in float64.

``math.exp`` has the same bits on all processors; NumPy's ``exp`` differs by a last bit between instruction sets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax of logits (N,), of which some may be -inf."""
    highest = float(logits.max())
    weights = [math.exp(value - highest) for value in logits.tolist()]
    return np.array(weights) / math.fsum(weights)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sigmoid of each of the logits (N,)."""
    small = [math.exp(-abs(value)) for value in logits.tolist()]  # at most 1, so nothing overflows
    return np.array([(1 if x >= 0 else e) / (1 + e) for x, e in zip(logits.tolist(), small)])
