"""Activation functions of encoders, (n, F) → (n, F) float32, and the normalisation of their input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Activation functions of encoders: pre-activations (n, F) float32 to activations (n, F) float32.
#
# Sources: Bricken et al. 2023 (ReLU), Rajamanoharan et al. 2024 (gated; JumpReLU), Gao et al. 2024 (top-k), SAELens
# (absolute top-k), sparsify (groupmax).

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


# Normalisation of an encoder's input. The reconstruction is scaled back; the vectors of features, too.

LAYER_NORM_EPS = 1e-5


class Normalized(NamedTuple):
    """Normalised ``rows`` (n, D); rows · ``scale`` + ``shift`` are the given rows. Both are (n, 1) float32."""

    rows: Rows
    scale: Rows
    shift: Rows


def _constant_norm(x: Rows) -> Normalized:
    wide = x.astype(np.float64)
    scale = np.sqrt((wide * wide).sum(-1, keepdims=True) / x.shape[-1])
    rows = np.divide(wide, scale, out=np.zeros_like(wide), where=scale > 0)
    return Normalized(rows.astype(np.float32), scale.astype(np.float32), np.zeros_like(scale, np.float32))


def _layer_norm(x: Rows) -> Normalized:
    """SAELens' layer norm: the standard deviation has D - 1 as its divisor, and 1e-5 is added to it."""
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    deviation = np.sqrt(((wide - mean) ** 2).sum(-1, keepdims=True) / max(x.shape[-1] - 1, 1))
    rows = (wide - mean) / (deviation + LAYER_NORM_EPS)
    return Normalized(rows.astype(np.float32), deviation.astype(np.float32), mean.astype(np.float32))


NORMALIZATIONS: Mapping[str, Callable[[Rows], Normalized]] = {
    "constant_norm_rescale": _constant_norm,
    "layer_norm": _layer_norm,
}
"""Normalisations by their names in SAELens: to the norm √D, and to mean 0 and standard deviation 1."""
