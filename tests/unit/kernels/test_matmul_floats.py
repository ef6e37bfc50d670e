"""The float matrix product: near float64, and bit for bit the fused sum over ascending columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import packed_matrix, random_blocks
from support.kernels import TINY, ULP, assert_close, fma32, kinds, numbers, seeds, threads, tokens
from support.products import multiply

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import floats
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import Format, formats

FLOATS = [form for _, form in sorted(formats().items()) if form.packed.is_float]
matrices = pytest.mark.parametrize("form", FLOATS, ids=lambda form: form.name)


def product(
    form: Format, raw: np.ndarray, x: np.ndarray, addend: str = "zeros", threads: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Run the kernel on x (T, D) and stored weights. Returns the product and the addend, both (T, N)."""
    matrix = packed_matrix(form, raw)
    key = KernelKey("matmul_float", packed=matrix.packed)
    return multiply(key, matrix, x, x.shape[1], addend, threads, seed)


@matrices
@settings(max_examples=50)
@given(
    kinds, seeds, tokens, st.integers(1, 40), st.integers(1, 6), st.sampled_from(["zeros", "bias", "residual"]), threads
)
def test_product_is_within_rounding_of_float64(
    form: Format, kind: str, seed: int, T: int, N: int, vectors: int, addend: str, threads: int
) -> None:
    D = 16 * vectors
    raw, x = random_blocks(form, seed, N, D), numbers(kind, seed, T, D)
    got, before = product(form, raw, x, addend, threads, seed)
    w = decode_blocks(form, raw)
    size = np.abs(x, dtype=np.float64) @ np.abs(w.T, dtype=np.float64) + np.abs(before)
    # One rounding per column and one for the addend, each of a number no larger than the sum of |products|.
    assert_close(got, floats.reference(x, w, before), (D + 1) * (ULP * size + TINY))


@matrices
@settings(max_examples=20)
@given(seeds, tokens, st.integers(1, 33), st.integers(1, 5), threads)
def test_columns_add_up_in_ascending_order_by_fused_multiply_adds(
    form: Format, seed: int, T: int, N: int, vectors: int, threads: int
) -> None:
    raw, x = random_blocks(form, seed, N, 16 * vectors), numbers("normal", seed, T, 16 * vectors)
    w, total = decode_blocks(form, raw), np.zeros((T, N), np.float32)
    for column in range(16 * vectors):
        total = fma32(x[:, column, None], w[:, column], total)
    got, before = product(form, raw, x, "bias", threads, seed)
    assert np.array_equal(got, total + before)
