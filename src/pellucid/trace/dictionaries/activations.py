"""Activation functions of encoders: pre-activations (n, F) float32 to activations (n, F) float32.

Sources: Bricken et al. 2023 (ReLU), Rajamanoharan et al. 2024 (gated; JumpReLU), Gao et al. 2024 (top-k), SAELens
(absolute top-k), sparsify (groupmax).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class FeatureActivation(ABC):
    """An activation function. ``by_feature``: each activation depends on the feature's own pre-activation alone."""

    name: str
    by_feature = True

    @abstractmethod
    def __call__(self, before: Rows) -> Rows:
        """The activations of all features."""

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        """The function for some ``features``. Only for functions ``by_feature``."""
        return self


class Relu(FeatureActivation):
    """max(x, 0)."""

    name = "ReLU"

    def __call__(self, before: Rows) -> Rows:
        return np.maximum(before, np.float32(0))


class JumpRelu(FeatureActivation):
    """max(x, 0) where x is above the ``threshold`` (F,) of its feature, and 0 elsewhere."""

    name = "JumpReLU"

    def __init__(self, threshold: Rows) -> None:
        self.threshold = threshold

    def __call__(self, before: Rows) -> Rows:
        return np.where(before > self.threshold, np.maximum(before, np.float32(0)), np.float32(0))

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        return JumpRelu(self.threshold[features])


class Gated(FeatureActivation):
    """max(``scale`` · x + ``bias``, 0) where x + ``gate_bias`` is above 0, and 0 elsewhere; all are (F,)."""

    name = "gated"

    def __init__(self, scale: Rows, bias: Rows, gate_bias: Rows) -> None:
        self.scale, self.bias, self.gate_bias = scale, bias, gate_bias

    def __call__(self, before: Rows) -> Rows:
        magnitude = np.maximum(before * self.scale + self.bias, np.float32(0))
        return np.where(before + self.gate_bias > 0, magnitude, np.float32(0))

    def of(self, features: NDArray[np.int64]) -> FeatureActivation:
        return Gated(self.scale[features], self.bias[features], self.gate_bias[features])


class TopKActivation(FeatureActivation):
    """max(x, 0) of the ``k`` largest pre-activations of each row; the lowest feature first on ties.

    ``absolute``: the ``k`` largest magnitudes, which keep their sign.
    """

    name = "top-k"
    by_feature = False

    def __init__(self, k: int, *, absolute: bool = False) -> None:
        self.k, self.absolute = k, absolute

    def __call__(self, before: Rows) -> Rows:
        after = np.zeros_like(before)
        for row, out in zip(before, after):
            size = np.abs(row) if self.absolute else row
            least = np.partition(size, len(size) - self.k)[len(size) - self.k]
            above = np.flatnonzero(size > least)
            equal = np.flatnonzero(size == least)[: self.k - len(above)]
            for chosen in (above, equal):
                out[chosen] = row[chosen] if self.absolute else np.maximum(row[chosen], np.float32(0))
        return after


class GroupMax(FeatureActivation):
    """max(x, 0) of the largest pre-activation of each of ``k`` groups of F / k adjacent features."""

    name = "groupmax"
    by_feature = False

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, before: Rows) -> Rows:
        groups = np.maximum(before, np.float32(0)).reshape(len(before), self.k, -1)
        best = groups.argmax(-1)[:, :, None]
        after = np.zeros_like(groups)
        np.put_along_axis(after, best, np.take_along_axis(groups, best, -1), -1)
        return after.reshape(before.shape)
