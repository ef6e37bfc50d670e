"""The highest logits, exactly in the order of a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import assert_guards, guarded, seeds

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.ops import logits as logits_top
from pellucid.kernels.ops.logits import TopRecord
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address

KERNEL = "logits.top"


def run(logits: np.ndarray, k: int) -> np.ndarray:
    places, values = guarded(k, np.int64), guarded(k, np.float32)
    Call(KernelKey(KERNEL), TopRecord)(
        logits=address(logits), count=len(logits), k=k, places=address(places), values=address(values)
    )
    assert_guards(places)
    assert_guards(values)
    return places


@given(
    st.lists(st.sampled_from([-np.inf, -3.0, -0.0, 0.0, 1.5, 2.0, 3e38]), min_size=1, max_size=700), st.integers(1, 700)
)
def test_ties_and_lengths(values: list[float], k: int) -> None:
    logits = np.array(values, np.float32)
    k = min(k, len(logits))
    np.testing.assert_array_equal(run(logits, k), logits_top.top_reference(logits, k))


@given(seeds, st.integers(1, 3000), st.integers(1, 512))
def test_random(seed: int, n: int, k: int) -> None:
    logits = np.float32(np.random.default_rng(seed).normal(size=n))
    k = min(k, n)
    np.testing.assert_array_equal(run(logits, k), logits_top.top_reference(logits, k))


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "random"])
@pytest.mark.parametrize("k", [1, 40, 512])
def test_the_largest_vocabulary_in_any_order(order: str, k: int) -> None:
    n = 262_144
    logits = np.arange(n, dtype=np.float32)
    if order == "descending":
        logits = logits[::-1].copy()
    elif order == "equal":
        logits[:] = 1
    elif order == "random":
        np.random.default_rng(0).shuffle(logits)
    np.testing.assert_array_equal(run(logits, k), logits_top.top_reference(logits, k))
