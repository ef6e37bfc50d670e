"""The reading kernel reads every byte once: small whole numbers add up exactly, in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, seeds, threads

from pellucid.kernels import roof
from pellucid.kernels.library import KernelKey


@given(seeds, st.integers(1, 40), threads)
def test_sums_are_those_of_the_buffer(seed: int, strips: int, threads: int) -> None:
    data = guarded((strips * roof.STRIP // 64, 16))
    data[...] = np.random.default_rng(seed).integers(-100, 100, data.shape)
    out = guarded((threads, 16))
    call(KernelKey("roof.read"), Batch([1]), threads, data=data, strips=strips, out=out)
    assert np.array_equal(out.sum(0), data.sum(0))
