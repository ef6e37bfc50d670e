"""Copying columns of rows is exact. An edit equals NumPy, and an edit without effect changes no bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey

vectors = st.integers(1, 9)
some_parts = st.sampled_from([0, 1, 3])  # 0: a row per token


def some_columns(rng: np.random.Generator, width: int) -> tuple[int, int]:
    first = int(rng.integers(width))
    return first, int(rng.integers(1, width - first + 1))


def some_rows(rng: np.random.Generator, T: int) -> np.ndarray:
    return rng.permutation(T)[: rng.integers(T + 1)]


def some_places(rng: np.random.Generator, T: int, parts: int) -> tuple[np.ndarray, int, dict]:
    """The row of x for each token, the number of rows of x, and a kernel's fields."""
    if not parts:
        return np.arange(T), T, {"places": 0, "place_stride": 0, "part": 0, "of": "tokens"}
    places, part = np.zeros((T, 16), np.int32), int(rng.integers(parts))
    places[:, :parts] = rng.permutation(T * parts).reshape(T, parts)
    return places[:, part], T * parts, {"places": places, "place_stride": 64, "part": part, "of": "tokens"}


@given(kinds, seeds, tokens, vectors, threads, some_parts)
def test_copy_takes_columns_of_rows(kind: str, seed: int, T: int, vectors: int, threads: int, parts: int) -> None:
    rng, width = np.random.default_rng(seed), 16 * vectors
    first, count = some_columns(rng, width)
    place, total, fields = some_places(rng, T, parts)
    x, rows = guarded((total, width)), some_rows(rng, T)
    x[...] = numbers(kind, seed, total, width)
    out = guarded((len(rows), count))
    call(
        KernelKey("trace_copy"), Batch([T]), threads,
        x=x, width=width, first=first, count=count, rows=np.array([len(rows), *rows], np.int64), out=out,
        out_stride=4 * count, **fields,
    )  # fmt: skip
    assert out.tobytes() == np.ascontiguousarray(x[place[rows], first : first + count]).tobytes()


@given(kinds, seeds, tokens, vectors, threads, some_parts)
def test_edit_is_numpys(kind: str, seed: int, T: int, vectors: int, threads: int, parts: int) -> None:
    rng, width = np.random.default_rng(seed), 16 * vectors
    first, count = some_columns(rng, width)
    place, total, fields = some_places(rng, T, parts)
    x, rows = guarded((total, width)), some_rows(rng, T)
    x[...] = before = numbers(kind, seed, total, width)
    values = numbers("normal", seed + 1, len(rows), count)
    factors, given_values = rng.choice([0.0, 1.0, -0.5], len(rows)), rng.random(len(rows)) < 0.5
    if kind == "large" and len(rows):
        x[place[rows[0]]] = before[place[rows[0]]] = np.inf  # a factor of 0 must still give 0
        factors[0] = 0.0
    entries = [
        [row, np.float64(factor).view(np.int64), values[i].ctypes.data if given_values[i] else 0]
        for i, (row, factor) in enumerate(zip(rows, factors))
    ]
    call(
        KernelKey("trace_edit"), Batch([T]), threads,
        x=x, width=width, first=first, count=count, **fields,
        entries=np.array([len(rows), *(int(word) for entry in entries for word in entry)], np.int64),
    )  # fmt: skip
    for i, row in enumerate(place[rows]):
        part = before[row, first : first + count]
        added = values[i] if given_values[i] else np.zeros(count, np.float32)
        if factors[i] == 0.0:
            assert x[row, first : first + count].tobytes() == added.tobytes()
        elif factors[i] == 1.0 and not given_values[i]:
            assert x[row, first : first + count].tobytes() == part.tobytes()
        else:
            exact = factors[i] * part.astype(np.float64) + added
            size = np.abs(factors[i] * part.astype(np.float64)) + np.abs(added)
            assert_close(x[row, first : first + count], exact, 2 * ULP * size + 2.0**-149)
        before[row, first : first + count] = x[row, first : first + count]
    assert x.tobytes() == before.tobytes(), "an edit has changed other rows or columns"
