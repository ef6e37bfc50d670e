"""The roof kernels do all of their work: they read every byte once, and the sums contain every product, bit for bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import roof


@given(seeds, st.integers(1, 40), threads)
def test_sums_are_those_of_the_buffer(seed: int, strips: int, threads: int) -> None:
    data = guarded((strips * roof.STRIP // 64, 16))
    data[...] = np.random.default_rng(seed).integers(-100, 100, data.shape)
    out = guarded((threads, 16))
    call(KernelKey("roof.read"), Batch([1]), threads, data=data, strips=strips, out=out)
    assert np.array_equal(out.sum(0), data.sum(0))


@given(st.integers(0, 40), threads)
def test_every_thread_makes_every_product(rounds: int, threads: int) -> None:
    out = guarded((threads, 16), np.int32)
    call(KernelKey("roof.multiply"), Batch([1]), threads, rounds=rounds, factor=roof.FACTOR, out=out)
    assert np.array_equal(out, np.tile(roof.reference(rounds), (threads, 1)))


@given(st.integers(0, 40), threads)
def test_every_thread_makes_every_product_of_tiles(rounds: int, threads: int) -> None:
    out = guarded((threads, 16), np.int32)
    call(KernelKey("roof.multiply_tiles"), Batch([1]), threads, rounds=rounds, factor=roof.FACTOR, out=out)
    assert np.array_equal(out, np.tile(roof.tiles_reference(rounds), (threads, 1)))


def test_no_product_is_like_the_one_before() -> None:
    sums = [roof.reference(rounds) for rounds in range(20)]
    assert len({value for row in sums for value in row.tolist()}) == 20 * 16
