"""Measures of the difference between the values of a hook point and the expected values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def same_tokens(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """True if the shapes are equal and the same elements are finite: scores have minus infinity for masked tokens."""
    return found.shape == expected.shape and np.array_equal(np.isfinite(found), np.isfinite(expected))


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference, as a fraction of the range of the expected values."""
    if not same_tokens(found, expected):
        return np.inf
    seen = np.isfinite(expected)
    return float(np.abs(found[seen] - expected[seen]).max() / (np.ptp(expected[seen]) or 1.0))


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Cosine of the angle between the finite elements of two arrays."""
    if not same_tokens(found, expected):
        return -1.0
    seen = np.isfinite(expected)
    a, b = np.float64(found[seen]), np.float64(expected[seen])
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
