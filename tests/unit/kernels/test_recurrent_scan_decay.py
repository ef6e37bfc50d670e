"""Steps and decays of states against NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import recurrent


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
    want, shrunk = recurrent.decay_reference(x, bias, rate, high=3e38)
    rounding = 3e-7 + 1e-7 * np.minimum(np.abs(x + bias), 90)  # of the exponential and its argument
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
