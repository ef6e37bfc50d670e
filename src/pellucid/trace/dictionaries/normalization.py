"""Normalisation of an encoder's input. The reconstruction is scaled back; the vectors of features, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
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
