"""Exponentials and probabilities of a few logits, in float64.

``math.exp`` and ``math.fsum`` have the same bits on all processors; NumPy's ``exp`` and ``@`` differ by a last bit
between instruction sets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def exponentials(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """e^x of each of the values, in their shape. Some values may be -inf."""
    return np.array([math.exp(value) for value in values.ravel().tolist()], np.float64).reshape(values.shape)


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """softmax(logits / temperature) of logits (N,). Some logits may be -inf."""
    highest = float(logits.max())
    weights = exponentials((logits.astype(np.float64) - highest) / temperature)
    return weights / math.fsum(weights.tolist())


def mean_level(p: NDArray[np.float64], levels: NDArray[np.integer[Any]]) -> float:
    """The mean of levels (N,) with the probabilities p (N,)."""
    return math.fsum((p * levels).tolist())


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sigmoid of each of the logits (N,)."""
    small = [math.exp(-abs(value)) for value in logits.tolist()]  # at most 1, so nothing overflows
    return np.array([(1 if x >= 0 else e) / (1 + e) for x, e in zip(logits.tolist(), small)])
