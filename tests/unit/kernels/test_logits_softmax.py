"""Weights of a distribution and their sums, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import assert_guards, guarded, numbers, seeds

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import logits as logits_softmax
from pellucid.kernels.ops.logits import SOFTMAX_BLOCK, SoftmaxRecord
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address

KERNEL = "logits.softmax"


def run(
    logits: np.ndarray, highest: float, scale: float, wanted: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(logits)
    weights = guarded(n, np.float64)
    blocks, totals = guarded(-(-n // SOFTMAX_BLOCK), np.float64), guarded(2, np.float64)
    Call(KernelKey(KERNEL), SoftmaxRecord)(
        logits=address(logits), count=n, highest=highest, scale=scale, weights=address(weights) if wanted else 0,
        blocks=address(blocks), totals=address(totals),
    )  # fmt: skip
    for array in (weights, blocks, totals):
        assert_guards(array)
    return weights, blocks, totals


def check(logits: np.ndarray, scale: float) -> None:
    highest = float(logits.max())
    weights, blocks, totals = run(logits, highest, scale)
    wanted, wanted_blocks, (total, moment) = logits_softmax.softmax_reference(logits, highest, scale)
    np.testing.assert_allclose(weights, wanted, rtol=3e-15, atol=1e-300)
    np.testing.assert_allclose(blocks, wanted_blocks, rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(totals, [total, moment], rtol=1e-13, atol=1e-290)
    assert weights[logits == highest].tolist() == [1.0] * int((logits == highest).sum())


@given(st.sampled_from(["normal", "zeros", "equal", "outlier", "wide", "large"]), seeds, st.integers(16, 2100),
       st.sampled_from([1.0, 1.25, 0.01, 1e30, 1e-30]), st.floats(0, 0.9))  # fmt: skip
def test_weights_and_sums(kind: str, seed: int, n: int, scale: float, forbidden: float) -> None:
    logits = numbers(kind, seed, n)
    logits[np.random.default_rng(seed).random(n) < forbidden] = -np.inf
    logits[seed % n] = max(logits.max(), np.float32(0))
    check(logits, scale)


@pytest.mark.parametrize("n", [16, 17, 31, 1023, 1024, 1025, 1039, 1040, 262_144])
def test_every_length_has_its_rest(n: int) -> None:
    check(numbers("normal", n, n) * 8, 0.7)


def test_without_weights_the_sums_are_the_same_bits() -> None:
    logits = numbers("normal", 3, 5000)
    highest = float(logits.max())
    first, second = run(logits, highest, 0.8), run(logits, highest, 0.8, wanted=False)
    for one, other in zip(first[1:], second[1:]):
        np.testing.assert_array_equal(one, other)
    assert (second[0].view(np.uint8) == 0xFF).all()
