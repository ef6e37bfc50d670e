"""Rotary positions against float64: angles of large positions, both pairings, partly rotated heads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import positions

lengths = st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 7)), min_size=1, max_size=3)


def angles(batch: Batch, frequency: np.ndarray, threads: int, magnitude: float = 1.0) -> np.ndarray:
    out = guarded((len(batch.keep["positions"]), 2, len(frequency)))
    fields = {
        "inverse_frequency": frequency,
        "scaled_stride": 0,
        "unscaled": 0,
        "pairs": len(frequency),
        "magnitude": magnitude,
        "out": out,
        "stride": out.strides[0],
    }
    call(KernelKey("rotary_angles"), batch, threads, **fields)
    return out


def a_batch(lengths: list[tuple[int, int]]) -> Batch:
    return Batch([n for _, n in lengths], [p for p, _ in lengths])


@given(lengths, st.integers(1, 40), st.sampled_from([1.0, 1.25]), threads)
def test_angles_are_cosines_and_sines_to_one_rounding(
    lengths: list[tuple[int, int]], pairs: int, magnitude: float, threads: int
) -> None:
    batch, frequency = a_batch(lengths), 1e4 ** (-np.arange(pairs) / pairs)
    angle = batch.keep["positions"][:, None] * frequency
    want = np.stack([np.cos(angle), np.sin(angle)], 1) * magnitude
    # float64 until the end: the product of position and frequency has one rounding, 2^-53 of up to 10^5.
    assert_close(angles(batch, frequency, threads, magnitude), want, ULP * np.abs(want) + 1e-10)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@given(
    kinds,
    seeds,
    lengths,
    st.sampled_from([1, 2, 8]),
    st.sampled_from([(16, 16), (64, 64), (64, 32), (48, 16)]),
    threads,
)
def test_pairs_turn_and_the_rest_of_a_head_stays(
    pairing: str,
    kind: str,
    seed: int,
    lengths: list[tuple[int, int]],
    heads: int,
    widths: tuple[int, int],
    threads: int,
) -> None:
    (K, dims), batch = widths, a_batch(lengths)
    frequency = 1e4 ** (-np.arange(dims // 2) / (dims // 2))
    x = guarded((len(batch.keep["positions"]), heads, K))
    x[...] = before = numbers(kind, seed, *x.shape)
    table = angles(batch, frequency, threads)
    fields = {"x": x, "heads": heads, "head_dim": K, "pairs": dims // 2, "angles": table, "stride": table.strides[0]}
    call(KernelKey("rotary", pairing=pairing), batch, threads, **fields)
    want = positions.reference(before, batch.keep["positions"], frequency, pairing == "interleaved")
    # Each of two products has the rounding of the angle and its own, then one for the difference; |pair| bounds all.
    size = positions.reference(np.abs(before), np.zeros(len(x)), frequency, pairing == "interleaved")
    first = slice(0, dims, 2) if pairing == "interleaved" else slice(0, dims // 2)
    second = slice(1, dims, 2) if pairing == "interleaved" else slice(dims // 2, dims)
    pair = size[..., first] + size[..., second]
    size[..., first] = size[..., second] = pair
    tolerance = 3 * ULP * size + 1e-10 * size + 1e-44
    tolerance[..., dims:] = 0
    assert_close(x, want, tolerance)
