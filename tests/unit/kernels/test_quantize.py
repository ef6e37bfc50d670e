"""Quantization of activations equals the NumPy reference exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize


def run(
    x: np.ndarray, activation_bits: int, threads: int = 1, lone: bool = False, factors: np.ndarray | None = None
) -> np.ndarray:
    """Quantized blocks of all rows. With ``lone`` the step has a single row, and x has a copy of it per thread."""
    out = guarded((len(x), x.shape[1] // 32), quantize.block_dtype(activation_bits))
    smoothed = {} if factors is None else {"columns": "smoothed"}
    key = KernelKey("quantize", activation_bits=activation_bits, **smoothed)
    call(
        key,
        Batch([1 if lone else len(x)]),
        threads,
        x=x,
        width=x.shape[1],
        out=out,
        factors=0 if factors is None else factors,
        replicated=int(lone),
        rows="tokens",
    )
    return out


@pytest.mark.parametrize("activation_bits", [8, 16, 24])
@given(kinds, seeds, tokens, st.integers(1, 9), threads)
def test_blocks_equal_the_reference_exactly(
    activation_bits: int, kind: str, seed: int, T: int, blocks: int, threads: int
) -> None:
    x = numbers(kind, seed, T, 32 * blocks)
    assert run(x, activation_bits, threads).tobytes() == quantize.reference(x, activation_bits).tobytes()


@given(kinds, seeds, tokens, st.integers(1, 9), threads)
def test_factors_multiply_the_columns_first(kind: str, seed: int, T: int, blocks: int, threads: int) -> None:
    x, factors = numbers(kind, seed, T, 32 * blocks), np.exp(numbers("normal", seed + 1, 32 * blocks))
    want = quantize.reference(x * factors, 8)
    assert run(x, 8, threads, factors=factors).tobytes() == want.tobytes()


@pytest.mark.parametrize("activation_bits", [8, 16, 24])
def test_halves_are_rounded_to_even(activation_bits: int) -> None:
    most = quantize.MAX_INTEGER[activation_bits]
    x = np.full((1, 32), most, np.float32)  # hence the scale is 1
    x[0, 1:9] = [0.5, 1.5, 2.5, -0.5, -1.5, 3.5, 64.5, -63.5]
    assert quantize.values(run(x, activation_bits))[0, :9].tolist() == [most, 0, 2, 2, 0, -2, 4, 64, -64]


@pytest.mark.parametrize("activation_bits", [8, 16, 24])
@given(kinds, seeds)
def test_no_value_is_further_off_than_half_a_step(activation_bits: int, kind: str, seed: int) -> None:
    x = numbers(kind, seed, 3, 64)
    blocks = x.reshape(3, 2, 32)
    largest = np.abs(blocks).max(-1, keepdims=True).astype(np.float64)
    # Half a step, and three roundings of a value up to the largest: inverse, product, scale.
    tolerance = largest * (0.5 / quantize.MAX_INTEGER[activation_bits] + 4 * 2.0**-24) + quantize.MIN_LARGEST
    error = np.abs(quantize.values(run(x, activation_bits)).reshape(blocks.shape) - blocks)
    assert (error <= tolerance).all()


@pytest.mark.parametrize("activation_bits", [8, 16, 24])
@given(kinds, seeds, st.integers(1, 9), threads)
def test_a_lone_row_is_replicated(activation_bits: int, kind: str, seed: int, blocks: int, threads: int) -> None:
    """Thread t quantizes its copy of the row, row t of x."""
    x = np.repeat(numbers(kind, seed, 1, 32 * blocks), threads, 0)
    assert run(x, activation_bits, threads, lone=True).tobytes() == quantize.reference(x, activation_bits).tobytes()
