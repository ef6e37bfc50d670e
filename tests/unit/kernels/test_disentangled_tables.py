"""The kernels "position_keys" and "position_queries": each number is at its place, and nothing else is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, numbers, seeds, threads

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.attention.disentangled import key_bytes, query_bytes
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.core.definitions import KernelKey

sizes = st.tuples(st.integers(1, 150), st.integers(1, 3), st.sampled_from([16, 48]))


def written(kernel: str, kv_dtype: str, x: np.ndarray, nbytes: int, threads: int) -> np.ndarray:
    R, H, K = x.shape
    out = guarded(nbytes, np.uint8)
    batch = Batch([R], head_dim=K)
    call(KernelKey(kernel, kv_dtype=kv_dtype), batch, threads, x=x, heads=H, head_dim=K, scale=0.25, out=out)
    return out


def from_bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kv_dtype", ["f16", "bf16"])
@given(seeds, sizes, threads)
def test_keys_are_columns_of_pages(kv_dtype: str, seed: int, sizes: tuple[int, int, int], threads: int) -> None:
    R, H, K = sizes
    x = numbers("normal", seed, *sizes)
    out = written("position_keys", kv_dtype, x, key_bytes(kv_dtype, *sizes), threads)
    if kv_dtype == "bf16":
        pairs = from_bf16(out).reshape(H, -1, K // 2, PAGE, 2)
        columns = pairs.swapaxes(-1, -2).reshape(H, -1, K, PAGE)
    else:
        columns = out.view(np.float32).reshape(H, -1, K, PAGE)
    rows = columns.transpose(1, 3, 0, 2).reshape(-1, H, K)[:R]
    assert np.array_equal(rows, kv_layout.rounded(x, "bf16") if kv_dtype == "bf16" else x)


@given(seeds, sizes, threads)
def test_queries_are_rows_of_heads(seed: int, sizes: tuple[int, int, int], threads: int) -> None:
    R, H, K = sizes
    x = numbers("normal", seed, *sizes)
    out = written("position_queries", "f16", x, query_bytes(*sizes), threads)
    rows = out.view(np.float32).reshape(H, -1, K).swapaxes(0, 1)
    assert np.array_equal(rows[:R], x * np.float32(0.25))
    assert (rows[R:] == rows[R - 1]).all()
