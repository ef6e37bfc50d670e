"""Several residual streams: each kernel is within rounding of float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, Batch, assert_close, call, guarded, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import streams

vectors = st.integers(1, 5)
counts = st.integers(1, 5)


def coefficients(seed: int, T: int, count: int) -> np.ndarray:
    """Rows of whole vectors."""
    return numbers("normal", seed, T, -(-count // 16) * 16)


@given(seeds, tokens, vectors, counts, st.integers(0, 4), threads)
def test_predictions(seed: int, T: int, vectors: int, count: int, active: int, threads: int) -> None:
    D, active = 16 * vectors, min(active, count - 1)
    before, coefs = numbers("normal", seed, T, count, D), coefficients(seed + 1, T, count * count)
    predicted, x = guarded((T, count * D)), guarded((T, D))
    call(
        KernelKey("streams_predict"), Batch([T]), threads, streams=before, width=D, count=count, coefs=coefs,
        coefs_stride=coefs.strides[0], active=active, predicted=predicted, x=x, rows="tokens",
    )  # fmt: skip
    square = coefs[:, : count * count].reshape(T, count, count)
    want = streams.predict_reference(before, square)
    most = np.abs(before) + np.einsum("tij,tjd->tid", np.abs(square), np.abs(before))
    got = predicted.reshape(T, count, D)
    assert_close(got, want, (count + 1) * ULP * most)
    assert np.array_equal(x, got[:, active])


@given(seeds, tokens, vectors, counts, st.integers(0, 4), st.booleans(), threads)
def test_corrections(seed: int, T: int, vectors: int, count: int, active: int, scaled: bool, threads: int) -> None:
    D, active = 16 * vectors, min(active, count - 1)
    before, coefs = numbers("normal", seed, T, count, D), coefficients(seed + 1, T, count)
    x, scale = numbers("normal", seed + 2, T, D), numbers("normal", seed + 3, D)
    after, out = guarded((T, count * D)), guarded((T, D))
    call(
        KernelKey("streams_correct"), Batch([T]), threads, predicted=before, width=D, count=count, coefs=coefs,
        coefs_stride=coefs.strides[0], active=active, x=x, scale=scale if scaled else 0, streams=after, out=out,
        rows="tokens",
    )  # fmt: skip
    some = coefs[:, :count]
    want = streams.correct_reference(before, some, x, active)
    change = np.abs(x) + np.abs(before[:, active])
    most = np.abs(before) + (1 + np.abs(some))[:, :, None] * change[:, None]
    got = after.reshape(T, count, D)
    assert_close(got, want, 4 * ULP * most)
    assert np.array_equal(out, got[:, active] * scale if scaled else got[:, active])


@given(seeds, tokens, vectors, counts, threads)
def test_all_streams_but_the_first_take_what_is_spread(
    seed: int, T: int, vectors: int, count: int, threads: int
) -> None:
    D = 16 * vectors
    lanes, x = guarded((T, count, D)), numbers("normal", seed, T, D)
    lanes[...] = before = numbers("normal", seed + 1, T, count, D)
    call(
        KernelKey("streams_spread"), Batch([T]), threads, streams=lanes, width=D, count=count, x=x,
        rows="tokens",
    )  # fmt: skip
    assert np.array_equal(lanes[:, 0], before[:, 0])
    assert np.array_equal(lanes[:, 1:], before[:, 1:] + x[:, None])


@given(seeds, tokens, st.integers(1, 80), st.sampled_from([1.0, 1e-4]), threads)
def test_rows_become_as_large_as_others(seed: int, T: int, count: int, size: float, threads: int) -> None:
    width = -(-count // 16) * 16
    x, like = guarded((T, width)), np.zeros((T, width), np.float32)
    x[...] = 0
    x[:, :count] = before = numbers("normal", seed, T, count) * np.float32(size)
    like[:, :count] = numbers("normal", seed + 1, T, count)
    call(KernelKey("streams_match"), Batch([T]), threads, x=x, like=like, width=width, count=count, rows="tokens")
    want = streams.match_reference(before, like[:, :count])
    assert_close(x[:, :count], want, 20 * ULP * np.abs(want) + 1e-30)
    assert not x[:, count:].any()


@given(seeds, tokens, st.integers(1, 200), st.sampled_from([0.0, 0.8, 1.6448536]), threads)
def test_only_the_largest_values_are_left(seed: int, T: int, count: int, deviations: float, threads: int) -> None:
    width = -(-count // 16) * 16
    x = guarded((T, width))
    x[...] = 0
    x[:, :count] = before = numbers("normal", seed, T, count)
    call(
        KernelKey("sparsify"), Batch([T]), threads, x=x, width=width, count=count, deviations=deviations,
        rows="tokens",
    )  # fmt: skip
    want = streams.sparsify_reference(before, deviations)
    assert_close(x[:, :count], want, 40 * ULP * np.abs(before).max(-1, keepdims=True))
    assert not x[:, count:].any()
