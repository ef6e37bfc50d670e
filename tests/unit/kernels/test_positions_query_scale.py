"""Queries grow with the position, in steps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, Batch, assert_close, call, guarded, numbers, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import positions


@given(
    seeds,
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3000)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([0.1, 2.5]),
    st.sampled_from([1, 7, 512]),
    st.integers(0, 1),
    threads,
)
def test_queries_are_scaled(
    seed: int, sequences: list[tuple[int, int]], heads: int, beta: float, length: int, offset: int, threads: int
) -> None:
    counts, past = zip(*sequences)
    batch, width = Batch(counts, past), 16 * heads
    x = guarded((sum(counts), width))
    x[...] = numbers("normal", seed, sum(counts), width)
    want = positions.query_scale_reference(x, batch.keep["positions"], beta, length, offset)
    how = {"width": width, "heads": heads, "beta": beta, "length": length, "offset": offset}
    call(KernelKey("query_scale"), batch, threads, x=x, **how)
    assert_close(x, want, 3 * ULP * np.abs(want))
