"""Calls one kernel as the executor does, on arrays between guard bytes, and checks its results.

The threads run one after another in random order, because the result of a kernel must not depend on their order. A
share that no thread computes, or that two threads compute, shows too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.attention.rows import ScratchLayout
from pellucid.kernels.core.definitions import KernelKey, definition, kernel
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.record import SCRATCH_HEADER, StepRecord

ULP = 2.0**-24
"""Relative error of one rounding to float32."""
TINY = 2.0**-149
"""Absolute error of one rounding of subnormal numbers."""
VEXP = 1.3e-7
"""Relative error of ``simd.vexp``, the only exponential (test_simd.py)."""

GUARD = 256  # bytes before and after an array; no kernel may write them
FILL = 0xFF  # fills arrays: NaN as float16 and as float32
COUNTS = {"tokens": StepRecord.at.tokens, "outputs": StepRecord.at.outputs, "sequences": StepRecord.at.sequences}

threads = st.integers(1, 4)
tokens = st.integers(1, 20)
seeds = st.integers(0, 2**32 - 1)
SHAPES_OF_VALUES = ("normal", "zeros", "equal", "outlier", "wide", "subnormal", "large")
kinds = st.sampled_from(SHAPES_OF_VALUES)


def numbers(kind: str, seed: int, *shape: int, large: float = 1e30) -> NDArray[np.float32]:
    """Random float32 numbers; ``kind`` is an entry of ``SHAPES_OF_VALUES``."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if kind == "zeros":
        x *= 0
    elif kind == "equal":
        x[...] = rng.standard_normal()
    elif kind == "outlier":
        x.flat[rng.integers(x.size)] = 1e4
    elif kind == "wide":
        x *= 10.0 ** rng.integers(-12, 4, shape)
    elif kind == "subnormal":
        x *= 1e-39
    elif kind == "large":
        x *= large / 8
    return x.astype(np.float32)


def guarded(shape: Sequence[int] | int, dtype: Any = np.float32) -> NDArray[Any]:
    """An array aligned to a cache line and filled with FILL, between two guards (see ``call``)."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(nbytes + 2 * GUARD + 64, FILL, np.uint8)
    start = GUARD + -(raw.ctypes.data + GUARD) % 64
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def assert_guards(array: NDArray[Any]) -> None:
    """Assert that nothing was written outside an array made by ``guarded``."""
    raw = array
    while raw.base is not None:
        raw = raw.base
    start = array.ctypes.data - raw.ctypes.data
    outside = np.concatenate([raw[:start], raw[start + array.nbytes :]])
    assert (outside == FILL).all(), "a kernel wrote outside its array"


@dataclass
class Batch:
    """A step: sequences with ``past`` cached tokens get ``counts`` more. Their pages are random pages of ``pool``.

    ``states`` and ``next_states`` are the pages of the sequences' states, by default new pages.
    """

    counts: Sequence[int]
    past: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    token_types: Sequence[int] = ()
    output_rows: Sequence[int] = ()
    states: Sequence[int] = ()
    next_states: Sequence[int] = ()
    head_dim: int = 16
    value_dim: int = 0  # 0: same as head_dim
    positions: int = 0  # bytes of scratch memory for the scores of positions
    most_threads: int = 4
    seed: int = 0
    keep: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts, total = np.array(self.counts, np.int32), sum(self.counts)
        past = np.array(self.past or [0] * len(counts), np.int32)
        pages = -(-(past + counts) // PAGE)
        self.pool = int(pages.sum()) + 3
        order = np.random.default_rng(self.seed).permutation(self.pool).astype(np.int32)
        table = np.full((len(counts), int(pages.max())), self.pool - 1, np.int32)
        for s, n in enumerate(pages):
            table[s, :n], order = order[:n], order[n:]
        space = ScratchLayout(self.head_dim, self.value_dim or self.head_dim, self.positions)
        scratch = space.bytes(int((past + counts).max()))
        arrays = {
            "token_ids": np.array(self.token_ids or [0] * total, np.int32),
            "token_types": np.array(self.token_types or [0] * total, np.int32),
            "positions": np.concatenate([p + np.arange(n) for p, n in zip(past, counts)]).astype(np.int32),
            "output_rows": np.array(self.output_rows or [0], np.int32),
            "first_row": np.cumsum([0, *counts[:-1]]).astype(np.int32),
            "row_count": counts,
            "length": past + counts,
            "pages": table,
            "encoder_length": np.zeros(len(counts), np.int32),
            "encoder_pages": np.zeros_like(table),
            "states": np.array(self.states or [-1] * len(counts), np.int32),
            "next_states": np.array(self.next_states or range(len(counts)), np.int32),
            "scratch": guarded(scratch * self.most_threads, np.uint8),
        }
        for thread in range(self.most_threads):
            arrays["scratch"][thread * scratch :][:SCRATCH_HEADER] = 0
        self.keep = arrays
        words = StepRecord.pack(
            {
                "tokens": total,
                "outputs": len(self.output_rows),
                "sequences": len(counts),
                "page_stride": table.shape[1],
                "group_stride": 0,
                "scratch_bytes": scratch,
                **{name: array.ctypes.data for name, array in arrays.items()},
            }
        )
        self.record = np.array(words, np.int64)


def call(key: KernelKey, batch: Batch, threads: int = 1, only: int | None = None, **fields: Any) -> None:
    """Run a kernel, one thread after another in random order, or only the thread ``only``.

    Arrays are passed as addresses. Names in COUNTS ("tokens") are passed as the offset of the count in the step record.
    """
    record = definition(key.name).record
    assert record is not None
    words = record.pack({name: _word(value) for name, value in fields.items()})
    native, row = shared().function(key), np.array(words, np.int64)
    order = np.random.default_rng(batch.seed).permutation(threads).tolist() if only is None else [only]
    for thread in order:
        assert native(row.ctypes.data, batch.record.ctypes.data, thread, threads) == 0
    for array in (*fields.values(), batch.keep["scratch"]):
        if isinstance(array, np.ndarray) and _is_guarded(array):
            assert_guards(array)


def _word(value: Any) -> int | float:
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return int(value.ctypes.data)
    if isinstance(value, str):
        return int(COUNTS[value])
    return value


def _is_guarded(array: NDArray[Any]) -> bool:
    raw = array
    while isinstance(raw.base, np.ndarray):
        raw = raw.base
    return raw is not array and raw.dtype == np.uint8 and raw.nbytes == array.nbytes + 2 * GUARD + 64


def assert_close(got: NDArray[Any], want: NDArray[Any], tolerance: NDArray[Any] | float) -> None:
    """Assert that every element is within its tolerance. The message names the worst element."""
    assert np.isfinite(got).all()
    excess = np.abs(got.astype(np.float64) - want) - tolerance
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    allowed = np.broadcast_to(tolerance, excess.shape)[worst]
    assert excess[worst] <= 0, f"at {worst}: {got[worst]} instead of {want[worst]}, tolerance {allowed}"


def fma32(x: Any, y: Any, z: Any) -> NDArray[np.float32]:
    """x * y + z in float32, rounded once.

    The product is exact in float64. The float64 sum is rounded to odd (Boldo and Melquiond 2008), so that the second
    rounding, to float32, has the result of a single rounding.
    """
    product, z = np.float64(x) * np.float64(y), np.float64(z)
    total = product + z
    back = total - product
    error = np.asarray((product - (total - back)) + (z - back))
    bits = np.atleast_1d(total).view(np.int64)
    even = np.atleast_1d(error != 0) & (bits % 2 == 0)
    away = np.atleast_1d(np.signbit(error) == np.signbit(total))
    bits = bits + np.where(even, np.where(away, 1, -1), 0)
    return bits.view(np.float64).astype(np.float32).reshape(np.shape(total))


_names = count()


def declared(build: Callable[..., Any]) -> str:
    """Declare a kernel that only this process knows. Returns its name."""
    name = f"test.{build.__name__}.{next(_names)}"
    kernel(name)(build)
    return name
