"""Pooling and scaling to length 1 are within rounding of float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, VEXP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import pooling

vectors = st.integers(1, 6)
counts_of_rows = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@pytest.mark.parametrize("pooled", pooling.KINDS)
@given(kinds, seeds, counts_of_rows, vectors, threads)
def test_pool_is_within_rounding_of_float64(
    pooled: str, kind: str, seed: int, counts: list[int], vectors: int, threads: int
) -> None:
    x = numbers(kind, seed, sum(counts), 16 * vectors, large=1e4 if pooled == "sparse" else 1e15)
    out = guarded((len(counts), 16 * vectors))
    call(KernelKey("pool", kind=pooled), Batch(counts), threads, x=x, width=16 * vectors, out=out)
    wanted = pooling.pool_reference(x, counts, pooled)
    if pooled == "max":
        assert np.array_equal(out, wanted.astype(np.float32))
    elif pooled == "sparse":  # 1 + x is rounded, and e^y of the last step of the iteration has the error VEXP
        assert_close(out, wanted, 2 * VEXP + 4 * ULP * (1 + np.abs(wanted)))
    else:
        sizes = pooling.pool_reference(np.abs(x), counts, pooled)
        assert_close(out, wanted, (np.array(counts)[:, None] + 4) * ULP * sizes + 1e-44)


@given(kinds, seeds, tokens, vectors, threads)
def test_normalize_is_within_rounding_of_float64(kind: str, seed: int, T: int, vectors: int, threads: int) -> None:
    x = guarded((T, 16 * vectors))
    x[...] = before = numbers(kind, seed, *x.shape, large=1e15)
    call(KernelKey("normalize"), Batch([T]), threads, x=x, width=16 * vectors, rows="tokens")
    short = np.linalg.norm(before.astype(np.float64), axis=-1) < 1e-11
    assert np.isfinite(x).all()  # also for a vector of length zero: the kernel prevents a division by zero
    if not short.all():
        wanted = pooling.normalize_reference(before[~short])
        assert_close(x[~short], wanted, (vectors + 10) * ULP * np.abs(wanted) + 1e-44)
