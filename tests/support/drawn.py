"""Random weights that tests draw again, so that a golden holds only names, shapes and a seed.

    tensors.json    {"seed": "name", "offset": 1.0, "tensors": {name: shape}}

The oracle (tests/oracles/tiny_oracle.py) and the tests draw the same numbers, from NumPy's PCG64 in the order of the
names. Tensors whose names end in "_blocks" or "_scales" hold MXFP4 bytes. This module imports only NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np


def draw(tensors: Mapping[str, Sequence[int]], seed: str, offset: float = 1.0) -> dict[str, np.ndarray]:
    """Draw matrices that preserve the scale of activations, norms around ``offset``, biases around zero; float32.

    MXFP4 exponents suit matrices of about 64 columns.
    """
    rng, found = np.random.default_rng([20, crc32(seed.encode())]), {}
    for name in sorted(tensors):
        if name.endswith(("_blocks", "_scales")):
            low, high = (0, 256) if name.endswith("_blocks") else (121, 125)
            found[name] = rng.integers(low, high, tuple(tensors[name]), np.uint8)
            continue
        x = rng.standard_normal(tuple(tensors[name]))
        if name.endswith("bias"):
            x *= 0.2
        elif x.ndim == 1:
            x = offset + 0.3 * x
        elif any(part in name for part in ("embed", "wte", "wpe")):
            x *= 0.4
        else:
            x *= 1.5 / np.sqrt(x.shape[-1])
            if name.endswith("Attention.q.weight"):  # T5 does not divide scores by the root of K
                x *= 0.25
        found[name] = np.float32(x)
    return found


def drawn_source(seed: int, low: int = 8, high: int = 120) -> list[int]:
    """A source of 2 to 40 token ids from ``low`` to ``high`` - 1."""
    rng = np.random.default_rng([23, seed])
    ids: list[int] = rng.integers(low, high, rng.integers(2, 41)).tolist()
    return ids
