"""Weights that are quantized when they are loaded: the error of a value, and values that no block can hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import numbers, seeds

from pellucid.weights.pack import decode_blocks, to_q8_0
from pellucid.weights.quant.format import Q8_0


@given(st.sampled_from(["normal", "outlier", "equal", "zeros"]), seeds, st.integers(1, 9), st.integers(1, 4))
def test_a_value_is_off_by_half_a_step_at_most(kind: str, seed: int, rows: int, blocks: int) -> None:
    x = numbers(kind, seed, rows, 32 * blocks)
    raw = to_q8_0(x)
    assert raw.shape == (rows, blocks, Q8_0.block_bytes)
    largest = np.abs(x).reshape(rows, blocks, 32).max(-1)
    # Half a step; and a scale that float16 rounds down cannot reach the largest value.
    bound = largest / 127 * 0.5 + largest * 2.0**-11 + 127 * 2.0**-25
    error = np.abs(decode_blocks(Q8_0, raw) - x).reshape(rows, blocks, 32).max(-1)
    assert (error <= bound * 1.0001).all()


def test_numbers_that_blocks_hold_stay_as_they_are() -> None:
    integers = np.random.default_rng(0).integers(-127, 128, (5, 64)).astype(np.float32)
    integers[:, ::32] = 127
    x = integers * np.float32(0.0078125)
    assert np.array_equal(decode_blocks(Q8_0, to_q8_0(x)), x)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
def test_a_block_with_a_number_too_large_is_not_finite(value: float) -> None:
    x = np.ones((2, 64), np.float32)
    x[1, 40] = value
    decoded = decode_blocks(Q8_0, to_q8_0(x))
    assert np.isnan(decoded[1, 32:]).all()
    assert np.allclose(decoded[0], 1, atol=0.01)
    assert np.allclose(decoded[1, :32], 1, atol=0.01)
