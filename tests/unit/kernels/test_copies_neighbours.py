"""The kernel "neighbours": each row has the rows around it, and zeros beyond the ends of its text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, numbers, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import copies


@given(
    seeds,
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([1, 3, 5, 9]),
    threads,
)
def test_rows_are_joined_within_their_text(seed: int, counts: list[int], width: int, taps: int, threads: int) -> None:
    stride, out_stride = -(-width // 16) * 16, -(-taps * width // 16) * 16
    x = guarded((sum(counts), stride))
    x[...] = 0
    x[:, :width] = numbers("normal", seed, sum(counts), width)
    out = guarded((sum(counts), out_stride))
    call(
        KernelKey("neighbours"), Batch(counts), threads, x=x, x_stride=4 * stride, width=width, taps=taps,
        out=out, out_stride=4 * out_stride,
    )  # fmt: skip
    assert np.array_equal(out[:, : taps * width], copies.neighbours_reference(x[:, :width], counts, taps))
    assert (out[:, taps * width :] == 0).all()


def test_the_reference_is_a_convolution() -> None:
    """numpy's convolution of one column, with the taps in reverse."""
    x, kernel = numbers("normal", 1, 20, 1), numbers("normal", 2, 5)
    joined = copies.neighbours_reference(x, [20], 5) @ kernel
    np.testing.assert_allclose(joined, np.convolve(x[:, 0], kernel[::-1], "same"), rtol=1e-5, atol=1e-6)
