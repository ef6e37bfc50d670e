"""The causal convolution against NumPy, with the same bits for any division of sequences into steps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, assert_close, call, guarded, numbers, seeds, threads
from support.recurrent import cuts, in_steps, lengths

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import recurrent


@settings(max_examples=60)
@given(lengths, cuts, seeds, st.integers(1, 5), st.sampled_from([16, 48, 80]), st.booleans(), st.booleans(), threads)
def test_convolve(
    lengths: list[int], cuts: list[int], seed: int, taps: int, C: int, silu: bool, biased: bool, threads: int
) -> None:
    x, weight = numbers("normal", seed, sum(lengths), C), numbers("normal", seed + 1, taps, C)
    bias = numbers("normal", seed + 2, C)

    def step(batch: Batch, rows: np.ndarray, state: int) -> np.ndarray:
        out = guarded((len(rows), C))
        call(
            KernelKey("convolve", silu=silu, ahead=0), batch, threads, x=np.ascontiguousarray(x[rows]), width=C,
            taps=taps, weight=weight, weight_stride=4 * C, bias=bias if biased else 0, state=state,
            page_bytes=4 * max(1, taps - 1) * C, out=out,
        )  # fmt: skip
        return out

    size = max(1, taps - 1) * C
    whole = in_steps(step, lengths, [], size)
    assert whole.tobytes() == in_steps(step, lengths, cuts, size, seed % 1000).tobytes()
    for first, count in zip(np.cumsum([0, *lengths]), lengths):
        part = slice(first, first + count)
        want = recurrent.reference(x[part], weight, bias if biased else 0.0, silu)
        assert_close(whole[part], want, 2e-6 * (1 + np.abs(want).max()))


@settings(max_examples=20)
@given(lengths, seeds, st.integers(1, 5), st.integers(0, 4), threads)
def test_tokens_may_see_later_tokens_of_their_sequence(
    lengths: list[int], seed: int, taps: int, ahead: int, threads: int
) -> None:
    ahead = min(ahead, taps - 1)
    x, weight = numbers("normal", seed, sum(lengths), 48), numbers("normal", seed + 1, taps, 48)

    def step(batch: Batch, rows: np.ndarray, state: int) -> np.ndarray:
        out = guarded((len(rows), 48))
        call(
            KernelKey("convolve", silu=False, ahead=ahead), batch, threads, x=np.ascontiguousarray(x[rows]), width=48,
            taps=taps, weight=weight, weight_stride=4 * 48, bias=0, state=state,
            page_bytes=4 * max(1, taps - 1) * 48, out=out,
        )  # fmt: skip
        return out

    whole = in_steps(step, lengths, [], max(1, taps - 1) * 48)
    for first, count in zip(np.cumsum([0, *lengths]), lengths):
        part = slice(first, first + count)
        want = recurrent.reference(x[part], weight, ahead=ahead)
        assert_close(whole[part], want, 2e-6 * (1 + np.abs(want).max()))
