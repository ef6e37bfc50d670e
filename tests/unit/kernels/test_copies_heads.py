"""Heads are copied to rows of another width. Zeros fill wider rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey


@given(seeds, tokens, st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.integers(0, 40), threads)
def test_heads_are_copied(seed: int, T: int, heads: int, width: int, out_width: int, offset: int, threads: int) -> None:
    offset = min(offset, out_width - 1)
    columns, out_columns = (-(-heads * one // 16) * 16 for one in (width, out_width))
    x, out = numbers("normal", seed, T, columns), guarded((T, out_columns))
    before = numbers("normal", seed + 1, T, heads, out_width)
    out[:, : heads * out_width] = before.reshape(T, -1)
    call(
        KernelKey("heads"), Batch([T]), threads, x=x, x_stride=4 * columns, width=width, out=out,
        out_stride=4 * out_columns, out_width=out_width, offset=offset, heads=heads, rows="tokens",
    )  # fmt: skip
    wanted, both = before.copy(), min(width, out_width - offset)
    wanted[..., offset:] = 0
    wanted[..., offset : offset + both] = x[:, : heads * width].reshape(T, heads, width)[..., :both]
    assert (out[:, heads * out_width :] == 0).all()
    assert np.array_equal(out[:, : heads * out_width].reshape(wanted.shape), wanted)
