"""Adding and scaling are exact; capping is within rounding of float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import TINY, ULP, VEXP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import elementwise

vectors = st.integers(1, 6)


@given(kinds, seeds, tokens, vectors, threads)
def test_add_is_numpys(kind: str, seed: int, T: int, vectors: int, threads: int) -> None:
    a, b = guarded((T, 16 * vectors)), numbers("normal", seed + 1, T, 16 * vectors)
    a[...] = before = numbers(kind, seed, *a.shape)
    call(KernelKey("add"), Batch([T]), threads, a=a, b=b, factor=1.0, width=16 * vectors, out=a, rows="tokens")
    assert np.array_equal(a, before + b)


@given(kinds, seeds, tokens, vectors, st.sampled_from([0.22, -3.0]), threads)
def test_add_rounds_a_scaled_term_once(kind: str, seed: int, T: int, vectors: int, factor: float, threads: int) -> None:
    a, b = numbers("normal", seed, T, 16 * vectors), numbers(kind, seed + 1, T, 16 * vectors)
    out, exact = guarded(a.shape), a.astype(np.float64) + np.float64(np.float32(factor)) * b
    call(
        KernelKey("add"), Batch([T]), threads,
        a=a, b=b, factor=factor, width=16 * vectors, out=out, rows="tokens",
    )  # fmt: skip
    assert_close(out, exact, ULP * np.abs(exact) + TINY)


@given(seeds, tokens, vectors, st.sampled_from([0.5, 8.0]), threads)
def test_clip_is_numpys(seed: int, T: int, vectors: int, bound: float, threads: int) -> None:
    x = guarded((T, 16 * vectors))
    x[...] = before = numbers("outlier", seed, *x.shape)
    call(KernelKey("clip"), Batch([T]), threads, x=x, width=16 * vectors, bound=bound, rows="tokens")
    assert np.array_equal(x, np.clip(before, -np.float32(bound), np.float32(bound)))


@given(kinds, seeds, tokens, vectors, st.sampled_from([0.22, -3.0]), threads)
def test_scale_is_numpys(kind: str, seed: int, T: int, vectors: int, factor: float, threads: int) -> None:
    x = guarded((T, 16 * vectors))
    x[...] = before = numbers(kind, seed, *x.shape)
    call(KernelKey("scale"), Batch([T]), threads, x=x, width=16 * vectors, factor=factor, rows="tokens")
    assert np.array_equal(x, before * np.float32(factor))


@given(kinds, seeds, tokens, vectors, st.sampled_from([0.22, -3.0]), threads)
def test_scale_by_is_numpys(kind: str, seed: int, T: int, vectors: int, factor: float, threads: int) -> None:
    x, in_memory = guarded((T, 16 * vectors)), np.full(1, factor, np.float32)
    x[...] = before = numbers(kind, seed, *x.shape)
    call(KernelKey("scale_by"), Batch([T]), threads, x=x, width=16 * vectors, factor=in_memory, rows="tokens")
    assert np.array_equal(x, before * in_memory)


@given(kinds, seeds, tokens, vectors, st.sampled_from([3.0, 30.0]), threads)
def test_softcap_is_within_rounding_of_float64(
    kind: str, seed: int, T: int, vectors: int, cap: float, threads: int
) -> None:
    x = guarded((T, 16 * vectors))
    x[...] = before = numbers(kind, seed, *x.shape) * np.float32(8)
    call(KernelKey("softcap"), Batch([T]), threads, x=x, width=16 * vectors, cap=cap, rows="tokens")
    # 1 - 2 / (e^2x + 1): e^2x has the error VEXP and one rounding of its argument, with an effect of at most 0.3 of it;
    # the derivative of the quotient by e^2x is at most 1/2. The rest are roundings of numbers up to 2.
    assert_close(x, elementwise.softcap_reference(before, cap), cap * (VEXP / 2 + 5 * ULP))
