"""The product of bfloat16 pairs: near float64, and bit for bit the fused sum over ascending pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import packed_matrix
from support.kernels import TINY, ULP, Batch, assert_close, call, fma32, guarded, kinds, numbers, seeds, threads, tokens
from support.products import multiply

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import floats
from pellucid.weights.pack import BF16_PAIRS, decode_blocks, to_bf16


def product(
    w: np.ndarray, x: np.ndarray, addend: str = "zeros", threads: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Round x (T, D) and w (N, D), and multiply them. Returns the product and the addend, both (T, N)."""
    matrix, operand = packed_matrix(BF16_PAIRS, to_bf16(w)), guarded(x.shape)
    call(KernelKey("to_bf16"), Batch([len(x)]), threads, x=x, width=x.shape[1], out=operand, rows="tokens")
    key = KernelKey("matmul_bf16", packed=matrix.packed)
    return multiply(key, matrix, operand, x.shape[1], addend, threads, seed)


addends = st.sampled_from(["zeros", "bias", "residual"])


@settings(max_examples=50)
@given(
    kinds.filter(lambda kind: kind != "subnormal"),
    seeds,
    tokens,
    st.integers(1, 70),
    st.integers(1, 6),
    addends,
    threads,
)
def test_product_is_within_rounding_of_float64(
    kind: str, seed: int, T: int, N: int, vectors: int, addend: str, threads: int
) -> None:
    D = 16 * vectors
    x, w = numbers(kind, seed, T, D), numbers("normal", seed + 1, N, D)
    got, before = product(w, x, addend, threads, seed)
    size = np.abs(x, dtype=np.float64) @ np.abs(w.T, dtype=np.float64) + np.abs(before)
    # One rounding per column and one for the addend, each of a number that is little larger than the sum of |products|.
    assert_close(got, floats.bf16_reference(x, w, before), (D + 2) * (ULP * size + TINY))


@settings(max_examples=20)
@given(seeds, st.integers(1, 40), st.integers(1, 70), st.integers(1, 5), threads)
def test_pairs_add_up_in_ascending_order_the_second_number_first(
    seed: int, T: int, N: int, vectors: int, threads: int
) -> None:
    x, w = numbers("normal", seed, T, 16 * vectors), numbers("normal", seed + 1, N, 16 * vectors)
    halves, weights, total = floats.bf16_rounded(x), floats.bf16_rounded(w), np.zeros((T, N), np.float32)
    for first in range(0, 16 * vectors, 2):
        for column in (first + 1, first):
            total = fma32(halves[:, column, None], weights[:, column], total)
    got, before = product(w, x, "bias", threads, seed)
    assert np.array_equal(got, total + before)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        (1.0, 1.0),
        (1 + 2**-8, 1.0),  # half way: to the even number
        (1 + 3 * 2**-8, 1 + 2**-6),
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (3.4e38, np.inf),
        (np.inf, np.inf),
        (-np.inf, -np.inf),
    ],
)
def test_numbers_are_rounded_to_the_nearest(value: float, nearest: float) -> None:
    assert floats.bf16_rounded(np.array([[value, -value]], np.float32)).tolist() == [[nearest, -nearest]]


def test_nan_stays_nan() -> None:
    values = np.array([[0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    assert np.isnan(floats.bf16_rounded(values)).all()
    assert np.isnan(decode_blocks(BF16_PAIRS, to_bf16(values))).all()
