"""Sines and cosines of positions are added within a rounding of float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, Batch, assert_close, call, guarded, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import positions


@given(seeds, tokens, st.integers(0, 5000), st.integers(1, 40), st.integers(0, 3), threads)
def test_sinusoids_are_added(seed: int, T: int, past: int, pairs: int, offset: int, threads: int) -> None:
    width = -(-2 * pairs // 16) * 16
    x = guarded((T, width))
    x[...] = before = numbers("normal", seed, T, width)
    frequencies = 10_000.0 ** -(np.arange(pairs) / max(pairs - 1, 1))
    call(
        KernelKey("sinusoidal"), Batch([T], past=[past]), threads, x=x, stride=4 * width,
        frequencies=frequencies, pairs=pairs, offset=offset,
    )  # fmt: skip
    added = positions.sinusoidal_reference(past + offset + np.arange(T), frequencies)
    wanted = before[:, : 2 * pairs].astype(np.float64) + added
    assert_close(x[:, : 2 * pairs], wanted, ULP * (np.abs(wanted) + 2))
    assert np.array_equal(x[:, 2 * pairs :], before[:, 2 * pairs :])
