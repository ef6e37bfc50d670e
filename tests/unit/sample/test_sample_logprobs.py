"""Log-probabilities against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sampling import ranked

from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import joined, of_token

INF = math.inf
some_logits = (
    st.lists(st.sampled_from([-INF, -3.0, 0.0, 0.5, 0.5000001, 2.0, 40.0, 3e38]), min_size=2, max_size=600)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: np.array(values, np.float32))
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max()
    return np.asarray(x - math.log(np.exp(x).sum()))


@given(some_logits, st.integers(0, 700), st.integers(0, 599))
def test_chosen_rank_and_alternatives(logits: np.ndarray, count: int, token: int) -> None:
    token %= len(logits)
    row = of_token(Candidates.of(logits, "test"), token, count, len(logits))
    wanted, order = log_softmax(logits), ranked(logits.astype(np.float64))
    assert row.chosen == pytest.approx(wanted[token], abs=1e-12)
    assert row.rank == order.tolist().index(token) + 1
    shown = min(count, len(logits))
    assert row.top_ids.tolist() == [*order[:shown].tolist(), *[-1] * (count - shown)]
    np.testing.assert_allclose(row.top[:shown], wanted[order[:shown]], atol=1e-12)
    assert (row.top[shown:] == -INF).all()


def test_the_largest_vocabulary_to_the_last_digits() -> None:
    logits = np.float32(np.random.default_rng(1).normal(size=262_144) * 4)
    row = of_token(Candidates.of(logits, "test"), 777, 20, len(logits))
    wanted = log_softmax(logits)
    assert abs(row.chosen - wanted[777]) < 1e-13 * 20
    np.testing.assert_allclose(row.top, np.sort(wanted)[::-1][:20], rtol=1e-14)


def test_a_token_that_the_chain_has_removed() -> None:
    left = Candidates(np.array([3, 5]), np.array([1.0, 0.0], np.float32))
    row = of_token(left, 4, 3, 6)
    assert (row.chosen, row.rank, row.top_ids.tolist()) == (-INF, 3, [3, 5, -1])


def test_rows_join_to_arrays() -> None:
    candidates = Candidates.of(np.array([0.0, 1.0, 2.0], np.float32), "test")
    found = joined([of_token(candidates, token, 2, 3) for token in (0, 2)], 2)
    assert (found.ids.tolist(), found.ranks.tolist(), found.top_ids.tolist()) == ([0, 2], [3, 1], [[2, 1], [2, 1]])
    assert found.total == pytest.approx(found.chosen[0] + found.chosen[1])
    assert (len(joined([], 5)), joined([], 5).top.shape) == (0, (0, 5))
