"""Products and the operations that follow without a barrier partition the whole output over threads in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.layouts import PackedLayout
from pellucid.kernels.matmul.product import column_ends

FLOATS = PackedLayout("f32", 32)
Part = tuple[slice, slice]


def product(rows: int, columns: int, out: np.ndarray, **who: Any) -> None:
    groups, zeros = columns // 16, np.zeros(16, np.float32)
    weights, x = guarded((groups, 16, 16)), guarded((rows, 16))
    weights[...], x[...] = 1, 1
    call(
        KernelKey("matmul_float", packed=FLOATS), Batch([rows]), weights=weights, groups=groups,
        group_bytes=FLOATS.group_bytes(16), columns=16, x=x, x_stride=64, out=out, out_stride=4 * columns,
        addend=zeros, addend_group=0, addend_row=0, replicated=0, rows="tokens", **who,
    )  # fmt: skip


def activation(rows: int, columns: int, out: np.ndarray, **who: Any) -> None:
    x = guarded((rows, columns))
    x[...] = 1
    call(
        KernelKey("activation", kind="none", activation_bits=8), Batch([rows]), x=x, up=0, limit=0.0,
        sharpness=0.0, width=columns, out=out, quantized=0, rows="tokens", **who,
    )  # fmt: skip


def combine(rows: int, columns: int, out: np.ndarray, **who: Any) -> None:
    results, places = guarded((rows, columns)), np.zeros((rows, 16), np.int32)
    results[...] = 1
    call(
        KernelKey("combine"), Batch([rows]), results=results, width=columns, chosen=1, places=places, weights=0,
        choice_stride=64, shared=0, gate=0, bias=0, out=out, rows="tokens", **who,
    )  # fmt: skip


def copy(rows: int, columns: int, out: np.ndarray, **who: Any) -> None:
    x = guarded((rows, columns))
    x[...] = 1
    call(
        KernelKey("trace_copy"), Batch([rows]), x=x, width=columns, first=0, count=columns, places=0,
        place_stride=0, part=0, of="tokens", rows=np.array([rows, *range(rows)], np.int64),
        out=out, out_stride=4 * columns, **who,
    )  # fmt: skip


def edit(rows: int, columns: int, out: np.ndarray, **who: Any) -> None:
    values = np.ones(columns, np.float32)
    entries = [word for row in range(rows) for word in (row, 0, values.ctypes.data)]
    call(
        KernelKey("trace_edit"), Batch([rows]), x=out, width=columns, first=0, count=columns, places=0,
        place_stride=0, part=0, of="tokens", entries=np.array([rows, *entries], np.int64), **who,
    )  # fmt: skip


ALL: dict[str, Callable[..., None]] = {
    "product": product,
    "activation": activation,
    "combine": combine,
    "copy": copy,
    "edit": edit,
}


def part(run: Callable[..., None], rows: int, columns: int, threads: int, thread: int) -> Part:
    """The part of the output that a thread writes. Checks that it is a rectangle."""
    out = guarded((rows, columns))
    out[...] = 0
    run(rows, columns, out, threads=threads, only=thread)
    mine = out != 0
    if not mine.any():
        return slice(0, 0), slice(0, 0)
    high, wide = (np.flatnonzero(mine.any(axis)) for axis in (1, 0))
    rectangle = slice(high[0], high[-1] + 1), slice(wide[0], wide[-1] + 1)
    assert mine[rectangle].all()
    assert mine.sum() == len(high) * len(wide)
    return rectangle


shapes = (st.integers(1, 200), st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60)
@given(*shapes)
@example(512, 36, 16)
@example(4096, 4, 64)
@example(33, 1, 40)
def test_every_value_has_one_thread(rows: int, vectors: int, threads: int) -> None:
    times = np.zeros((rows, 16 * vectors), np.int64)
    for thread in range(threads):
        times[part(activation, rows, 16 * vectors, threads, thread)] += 1
    assert (times == 1).all()


@pytest.mark.parametrize("name", ["product", "combine", "copy", "edit"])
@settings(max_examples=20)
@given(*shapes, st.randoms(use_true_random=False))
@example(300, 36, 16, None)
def test_all_operations_divide_in_the_same_way(name: str, rows: int, vectors: int, threads: int, random: Any) -> None:
    for thread in range(threads) if random is None else [random.randrange(threads)]:
        shape = rows, 16 * vectors, threads, thread
        assert part(ALL[name], *shape) == part(activation, *shape)


@pytest.mark.parametrize(
    ("rows", "columns", "threads"), [(512, 576, 16), (512, 192, 64), (512, 1536, 64), (64, 96, 6), (256, 576, 13)]
)
def test_many_threads_have_equal_parts_of_a_prompt(rows: int, columns: int, threads: int) -> None:
    sizes = []
    for thread in range(threads):
        high, wide = part(activation, rows, columns, threads, thread)
        sizes.append((high.stop - high.start) * (wide.stop - wide.start))
    assert max(sizes) <= 1.34 * rows * columns / threads


@given(st.integers(1, 40), st.integers(1, 40))
def test_column_ends_are_those_of_the_kernels(vectors: int, threads: int) -> None:
    begin = 0
    for thread, end in enumerate(column_ends(16 * vectors, threads)):
        _, wide = part(activation, 1, 16 * vectors, threads, thread)
        assert wide == (slice(begin, end) if begin < end else slice(0, 0))
        begin = end
    assert begin == 16 * vectors


@pytest.mark.parametrize("columns", [576, 960, 1536])
def test_two_threads_read_half_of_the_weights_each(columns: int) -> None:
    high, wide = part(activation, 512, columns, 2, 0)
    assert (high, wide) == (slice(0, 512), slice(0, columns // 64 * 32))
