"""How far the values of a point are from those that are expected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def same_tokens(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether the shapes agree, and of scores the tokens that are seen."""
    return found.shape == expected.shape and np.array_equal(np.isfinite(found), np.isfinite(expected))


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference as a part of the range."""
    if not same_tokens(found, expected):
        return np.inf
    seen = np.isfinite(expected)
    return float(np.abs(found[seen] - expected[seen]).max() / (np.ptp(expected[seen]) or 1.0))


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The cosine of the angle between two values."""
    if not same_tokens(found, expected):
        return -1.0
    seen = np.isfinite(expected)
    a, b = np.float64(found[seen]), np.float64(expected[seen])
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
