"""Operations on tile registers, with the instructions of the set or their emulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import assert_guards, declared, guarded, seeds

from pellucid.kernels.core import library
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Address, Record


class TilesRecord(Record):
    state: Address
    a: Address  # (rows, A_STRIDE) signed bytes
    b: Address  # (K/4, 16, 4) signed bytes
    c: Address  # (rows, C_STRIDE/4) int32
    rows: int


K, A_STRIDE, C_STRIDE, STATE = (4, 32, 64), 80, 96, 64 + 8 * 1024


def build(simd: Any, nbytes: int) -> Any:
    """Two products of the same operands. The second adds to the first. Rows have ``nbytes`` bytes."""
    from numba.core import types as t

    from pellucid.kernels.simd.emitter import emitted_op
    from pellucid.kernels.simd.tiles import Tiles

    at, load = TilesRecord.at, simd.load_i64

    def emit(e: Any, state: Any, rows: Any, a: Any, b: Any, c: Any) -> None:
        tiles = Tiles(e, state)
        tiles.configure([(rows, nbytes), (nbytes // 4, 64), (rows, 64)])
        tiles.load(2, a, e.const(A_STRIDE))  # set to zero below
        tiles.load(0, a, e.const(A_STRIDE))
        tiles.load(1, b, e.const(64))
        tiles.zero(2)
        tiles.multiply(2, 0, 1)
        tiles.multiply(2, 0, 1)
        tiles.store(2, c, e.const(C_STRIDE))
        tiles.release()

    twice = emitted_op(t.void, (t.int64,) * 5, emit)

    @simd.jit
    def body(record, unused, unused_too, unused_three):  # type: ignore[no-untyped-def]
        state, rows = load(record + at.state), load(record + at.rows)
        twice(state, rows, load(record + at.a), load(record + at.b), load(record + at.c))

    return body


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernel for each length of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_HOME", str(tmp_path_factory.mktemp("home")))
        kernels, name = library.Library(), declared(build)
        yield {nbytes: kernels.function(KernelKey(name, nbytes=nbytes)) for nbytes in K}
        del kernels  # frees the code, which must live until the last test


@pytest.mark.parametrize("nbytes", K)
@given(seeds, st.integers(1, 16))
def test_products_add_up_and_nothing_else_is_written(products: Any, nbytes: int, seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = guarded((rows, A_STRIDE), np.int8), guarded((nbytes // 4, 16, 4), np.int8)
    a[...], b[...] = (rng.integers(-128, 128, each.shape) for each in (a, b))
    c, state = guarded((rows, C_STRIDE // 4), np.int32), guarded(STATE, np.uint8)
    c[...] = 7
    arrays = {"state": state, "a": a, "b": b, "c": c}
    words = TilesRecord.pack({name: array.ctypes.data for name, array in arrays.items()} | {"rows": rows})
    record = np.array(words, np.int64)
    products[nbytes](record.ctypes.data, 0, 0, 0)
    for array in arrays.values():
        assert_guards(array)
    want = np.einsum("rkc,knc->rn", a[:, :nbytes].reshape(rows, -1, 4).astype(int), b.astype(int))
    assert np.array_equal(c[:, :16], 2 * want)
    assert (c[:, 16:] == 7).all()
