"""Factors that share the rounding error between activations and weights of 8 bits (Xiao et al. 2023, SmoothQuant).

A block of 32 values has one scale, so a column with large activations makes the other columns of its block coarse. The
product stays the same if the activations of a column are divided by a factor and its weights multiplied by the factor:

    factor = (|norm weight| + |norm bias|)^(1/4) / (root mean square of the column's weights)^(3/4)

SmoothQuant measures the size of activations on texts. Here the norm before the product estimates it, so the weights,
which are known, have the larger exponent (docs/decisions/0052-encoders-throughput.md has the figures).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LARGEST = 64.0  # limit of a factor and of its inverse


def factors(
    norm: NDArray[np.float32], bias: NDArray[np.float32], matrix: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The factor of each column, (D,), from a norm's weight and bias (D,) and the matrix (N, D). Their mean is 1.

    Columns without a finite factor, such as columns of zeros, have 1. All operations are exact or correctly rounded,
    so that the factors have the same bits on all processors.
    """
    with np.errstate(all="ignore"):
        # A sum over rows adds in the order of the rows. A sum of neighbours would depend on the width of registers.
        weights = np.sqrt(np.add.reduce(np.square(matrix.astype(np.float64)), axis=0) / len(matrix))
        sizes = np.abs(norm.astype(np.float64)) + np.abs(bias.astype(np.float64))
        found = np.sqrt(np.sqrt(sizes / weights) / weights)
        found = np.where(np.isfinite(found) & (found > 0), found, np.nan)
        usable = found[~np.isnan(found)]
        if not len(usable):
            return np.ones(len(found), np.float32)
        found = np.clip(found / (math.fsum(usable) / len(usable)), 1 / LARGEST, LARGEST)
        return np.where(np.isnan(found), 1.0, found).astype(np.float32)
