"""Count, sum and sum of squares of finite logits, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import assert_guards, guarded, numbers, seeds

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import logits as logits_spread
from pellucid.kernels.ops.logits import SpreadRecord
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address

KERNEL = "logits.spread"


def check(logits: np.ndarray) -> None:
    totals, highest = guarded(3, np.float64), float(logits.max())
    Call(KernelKey(KERNEL), SpreadRecord)(
        logits=address(logits), count=len(logits), highest=highest, totals=address(totals)
    )
    assert_guards(totals)
    np.testing.assert_allclose(totals, logits_spread.spread_reference(logits, highest), rtol=1e-12)


@given(
    st.sampled_from(["normal", "zeros", "outlier", "wide", "large"]), seeds, st.integers(16, 2100), st.floats(0, 0.9)
)
def test_of_some(kind: str, seed: int, n: int, forbidden: float) -> None:
    logits = numbers(kind, seed, n)
    logits[np.random.default_rng(seed).random(n) < forbidden] = -np.inf
    logits[seed % n] = max(logits.max(), np.float32(0))
    check(logits)


@pytest.mark.parametrize("n", [16, 17, 31, 32, 262_144])
def test_every_length_has_its_rest(n: int) -> None:
    check(numbers("normal", n, n) * 8)
