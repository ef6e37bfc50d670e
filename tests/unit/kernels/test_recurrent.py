"""The kernels of recurrent layers, against NumPy; however sequences are cut into steps, the bits are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import (
    Batch,
    assert_close,
    assert_guards,
    call,
    guarded,
    kinds,
    numbers,
    seeds,
    threads,
    tokens,
)

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.recurrent import convolve, decay, scan

Step: TypeAlias = Callable[[Batch, np.ndarray, int], np.ndarray]
"""(batch, the rows of the step among all rows, address of the states' page 0) → the outputs of the step."""

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=4)
cuts = st.lists(st.sampled_from([1, 1, 2, 3, 7]), min_size=1, max_size=12)


def in_steps(step: Step, lengths: list[int], cuts: list[int], state: int, seed: int = 0) -> np.ndarray:
    """The outputs of sequences that grow together by ``cuts`` tokens a step, and then by the rest.

    ``state`` is the values of a sequence's state. It stays in its page or moves to another one at random.
    """
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])
    memory = guarded((2 * len(lengths) + 1, state))
    page, spare = [-1] * len(lengths), list(range(len(memory)))
    done, found = [0] * len(lengths), {}
    for cut in [*cuts, max(lengths)]:
        active = [s for s, length in enumerate(lengths) if done[s] < length]
        if not active:
            break
        counts = [min(cut, lengths[s] - done[s]) for s in active]
        after = [page[s] if page[s] >= 0 and rng.random() < 0.5 else spare.pop(0) for s in active]
        batch = Batch(
            counts, past=[done[s] for s in active], states=[page[s] for s in active], next_states=after
        )
        rows = np.concatenate([starts[s] + done[s] + np.arange(n) for s, n in zip(active, counts)])
        found |= dict(zip(rows.tolist(), step(batch, rows, memory.ctypes.data)))
        for s, n, new in zip(active, counts, after):
            if page[s] >= 0 and page[s] != new:
                spare.append(page[s])
                memory[page[s]] = np.nan  # nothing reads it any more
            done[s], page[s] = done[s] + n, new
        assert_guards(memory)
    return np.stack([found[row] for row in range(starts[-1])])


@settings(max_examples=60)
@given(
    lengths,
    cuts,
    seeds,
    st.integers(1, 5),
    st.sampled_from([16, 48, 80]),
    st.booleans(),
    st.booleans(),
    threads,
)
def test_convolve(
    lengths: list[int], cuts: list[int], seed: int, taps: int, C: int, silu: bool, biased: bool, threads: int
) -> None:
    x, weight = numbers("normal", seed, sum(lengths), C), numbers("normal", seed + 1, taps, C)
    bias = numbers("normal", seed + 2, C)

    def step(batch: Batch, rows: np.ndarray, state: int) -> np.ndarray:
        out = guarded((len(rows), C))
        call(
            KernelKey("convolve", silu=silu), batch, threads, x=np.ascontiguousarray(x[rows]), width=C, taps=taps,
            weight=weight, weight_stride=4 * C, bias=bias if biased else 0, state=state,
            page_bytes=4 * max(1, taps - 1) * C, out=out,
        )  # fmt: skip
        return out

    size = max(1, taps - 1) * C
    whole = in_steps(step, lengths, [], size)
    assert whole.tobytes() == in_steps(step, lengths, cuts, size, seed % 1000).tobytes()
    for first, count in zip(np.cumsum([0, *lengths]), lengths):
        part = slice(first, first + count)
        want = convolve.reference(x[part], weight, bias if biased else 0.0, silu)
        assert_close(whole[part], want, 2e-6 * (1 + np.abs(want).max()))


@settings(max_examples=60)
@given(kinds, seeds, tokens, st.sampled_from([16, 32, 48]), threads)
def test_decay(kind: str, seed: int, T: int, H: int, threads: int) -> None:
    x, bias = numbers(kind, seed, T, H), numbers("normal", seed + 1, H)
    rate = -np.abs(numbers("normal", seed + 2, H))
    steps, decays = x.copy(), guarded((T, H))
    call(
        KernelKey("decay"), Batch([T]), threads, x=steps, width=H, bias=bias, rate=rate, low=0.0, high=np.inf,
        decays=decays, rows="tokens",
    )  # fmt: skip
    want, shrunk = decay.reference(x, bias, rate, high=3e38)
    rounding = 3e-7 + 1e-7 * np.minimum(np.abs(x + bias), 90)  # of the exponential, and of its argument
    assert_close(steps, want, rounding * want + 1e-37)
    assert_close(decays, shrunk, (1e-6 + 2 * rounding * np.abs(want * rate)) * shrunk + 1e-37)


def test_steps_stay_within_their_limits() -> None:
    x, decays = np.linspace(-5, 5, 16, dtype=np.float32)[None], guarded((1, 16))
    call(
        KernelKey("decay"), Batch([1]), x=x, width=16, bias=np.zeros(16, np.float32),
        rate=-np.ones(16, np.float32), low=0.1, high=2.0, decays=decays, rows="tokens",
    )  # fmt: skip
    assert (x.min(), x.max()) == (np.float32(0.1), 2.0)
    assert_close(decays, np.exp(-x.astype(np.float64)), 1e-6)


SHAPES = st.sampled_from([(1, 1, 16, 16), (4, 2, 16, 64), (6, 3, 24, 80), (2, 1, 128, 128), (3, 3, 5, 32)])


@settings(max_examples=60)
@given(lengths, cuts, seeds, SHAPES, st.booleans(), st.booleans(), st.booleans(), threads)
def test_scan(
    lengths: list[int],
    cuts: list[int],
    seed: int,
    shape: tuple[int, ...],
    delta: bool,
    skipped: bool,
    tiled: bool,
    threads: int,
) -> None:
    (H, G, K, V), T = shape, sum(lengths)
    neighbours = 1 if tiled else H // G
    q, k = (numbers("normal", seed + i, T, G, K) for i in range(2))
    if delta:
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, skip = numbers("normal", seed + 2, T, H, V), numbers("normal", seed + 3, H)
    rng = np.random.default_rng(seed)
    padded = -(-H // 16) * 16
    a, b = (rng.uniform(0, 1, (T, padded)).astype(np.float32) for _ in range(2))

    def step(batch: Batch, rows: np.ndarray, state: int) -> np.ndarray:
        out = guarded((len(rows), H, V))
        call(
            KernelKey("scan", delta=delta), batch, threads, **{
                name: np.ascontiguousarray(x[rows])
                for name, x in (("q", q), ("k", k), ("v", v), ("decays", a), ("factors", b))
            },
            head_stride=4 * padded, skip=skip if skipped else 0, heads=H, groups=G, neighbours=neighbours,
            key_dim=K, value_dim=V, key_stride=4 * G * K, group_stride=4 * K, state=state,
            page_bytes=4 * H * K * V, out=out,
        )  # fmt: skip
        return out

    whole = in_steps(step, lengths, [], H * K * V)
    assert whole.tobytes() == in_steps(step, lengths, cuts, H * K * V, seed % 1000).tobytes()
    for first, count in zip(np.cumsum([0, *lengths]), lengths):
        part = slice(first, first + count)
        want = scan.reference(
            q[part],
            k[part],
            v[part],
            a[part, :H],
            b[part, :H],
            skip if skipped else None,
            delta=delta,
            neighbours=neighbours,
        )
        assert_close(whole[part], want, 2e-5 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("delta", [False, True])
def test_the_references_take_in_a_token_after_another(delta: bool) -> None:
    """By hand: one head, one key, two tokens."""
    q, k = np.ones((2, 1, 1)), np.array([[[1.0]], [[2.0]]])
    v, a, b = np.array([[[3.0]], [[5.0]]]), np.array([[0.5], [0.5]]), np.ones((2, 1))
    out = scan.reference(q, k, v, a, b, delta=delta)
    second = 1.5 + 2 * (5 - 1.5 * 2) if delta else 1.5 + 2 * 5
    assert out.ravel().tolist() == [3.0, second]
