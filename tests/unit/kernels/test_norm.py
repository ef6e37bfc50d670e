"""Norms of whole rows and of parts of a row, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import TINY, ULP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from pellucid.kernels.ops import norm

BITS = {"rms": 16, "layer": 8}
LARGE = 1e15  # float32 cannot represent the squares of 1e30


@pytest.mark.parametrize("kind", BITS)
@given(
    kinds,
    seeds,
    tokens,
    st.integers(1, 12),
    st.integers(1, 8),
    st.sampled_from([1e-5, 1e-12]),
    st.integers(0, 15),
    st.booleans(),
    st.booleans(),
    threads,
)
def test_norm_is_within_rounding_of_float64(
    kind: str,
    values: str,
    seed: int,
    T: int,
    vectors: int,
    parts: int,
    eps: float,
    zeros: int,
    in_place: bool,
    apart: bool,
    threads: int,
) -> None:
    width = 16 * vectors
    D = width - zeros  # width of a part without its padding zeros
    x = guarded((T, parts, width))
    x[...] = 0
    x[..., :D] = numbers(values, seed, T, parts, D, large=LARGE)
    before, rng = x[..., :D].copy(), np.random.default_rng(seed)
    weights = rng.standard_normal(parts * D + 16).astype(np.float32)  # concatenated parts
    bias = np.zeros(width, np.float32)
    bias[:D] = rng.standard_normal(D)
    out = x if in_place else guarded(x.shape)
    blocks: Any = 0
    if width % 32 == 0:
        blocks = guarded((T, parts * width // 32), quantize.block_dtype(BITS[kind]))
    call(
        KernelKey("norm", kind=kind, activation_bits=BITS[kind]),
        Batch([T]),
        threads,
        x=x,
        width=width,
        count=D,
        parts=parts,
        weight=weights,
        weight_part=4 * D if apart else 0,
        bias=bias,
        eps=eps,
        out=out,
        quantized=blocks,
        factors=0,
        replicated=0,
        rows="tokens",
    )
    assert (out[..., D:] == 0).all()
    weight = weights[: parts * D].reshape(parts, D) if apart else weights[:D]
    bias = bias[:D]
    want = norm.reference(before, weight, eps, bias if kind == "layer" else None)
    exact = before.astype(np.float64)
    # Sixteen lanes each sum D/16 numbers, then four steps sum pairs of lanes; each sum rounds once.
    sums = (width / 16 + 4) * ULP
    centre = np.zeros((T, parts, 1))
    if kind == "layer":
        centre = (sums + 2 * ULP) * np.abs(exact).mean(-1, keepdims=True) + ULP * np.abs(exact)
        exact = exact - exact.mean(-1, keepdims=True)
    deviation = np.sqrt((exact * exact).mean(-1, keepdims=True) + eps)
    # An error of the mean shifts every value, and the deviation by no more than itself.
    relative = sums / 2 + 8 * ULP + np.max(centre, -1, keepdims=True) / deviation
    size = np.abs(exact) / deviation * np.abs(weight)
    tolerance = relative * size + 2 * centre / deviation * np.abs(weight) + TINY
    if kind == "layer":
        tolerance = tolerance + 2 * ULP * (np.abs(bias) + size)
    assert_close(out[..., :D], want, tolerance)
    if width % 32 == 0:
        assert blocks.tobytes() == quantize.reference(out.reshape(T, -1), BITS[kind]).tobytes()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_thread_makes_its_copy_of_a_lone_row(threads: int) -> None:
    x, weight = numbers("normal", 0, 1, 32), np.ones(32, np.float32)
    out, blocks = guarded((threads, 32)), guarded((threads, 1), quantize.block_dtype(16))
    fields = {
        "x": x,
        "width": 32,
        "count": 32,
        "parts": 1,
        "weight": weight,
        "weight_part": 0,
        "bias": 0,
        "eps": 1e-5,
        "rows": "tokens",
    }
    call(
        KernelKey("norm", kind="rms", activation_bits=16),
        Batch([1]),
        threads,
        **fields,
        out=out,
        quantized=blocks,
        factors=0,
        replicated=1,
    )
    assert len({row.tobytes() for row in out}) == len({row.tobytes() for row in blocks}) == 1
    assert np.allclose(out[0], norm.reference(x, weight, 1e-5))
    assert blocks.tobytes() == quantize.reference(out, 16).tobytes()


def test_factors_multiply_the_columns_of_the_blocks_alone() -> None:
    T, D = 5, 160
    x, weight, factors = numbers("normal", 0, T, D), numbers("normal", 1, D), np.exp(numbers("normal", 2, D))
    bias = np.zeros(D + 16, np.float32)
    out, blocks = guarded((T, D)), guarded((T, D // 32), quantize.block_dtype(8))
    call(
        KernelKey("norm", kind="layer", activation_bits=8, columns="smoothed"),
        Batch([T]),
        2,
        x=x,
        width=D,
        count=D,
        parts=1,
        weight=weight,
        weight_part=0,
        bias=bias,
        eps=1e-5,
        out=out,
        quantized=blocks,
        factors=factors,
        replicated=0,
        rows="tokens",
    )
    assert np.allclose(out, norm.reference(x, weight, 1e-5, bias[:D]), atol=1e-5)
    assert blocks.tobytes() == quantize.reference(out * factors, 8).tobytes()
