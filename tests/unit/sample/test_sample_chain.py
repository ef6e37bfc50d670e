"""The chain of sampling: each step against a plain reading of its definition, and the draw against the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import KernelError
from pellucid.sample import chain as chain_module
from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Chain, uniform
from pellucid.sample.temperature import Temperature
from pellucid.sample.top_k import TopK
from pellucid.sample.top_p import TopP

GEMMA = 262_144
INF = math.inf


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def ranked(values: np.ndarray) -> np.ndarray:
    """Places from the highest on, of equal ones the lowest first."""
    return np.lexsort((np.arange(len(values)), -values))


def ids_of(candidates: Candidates) -> list[int]:
    return list(range(len(candidates.logits))) if candidates.ids is None else candidates.ids.tolist()


# Few different values, so that there are ties; some impossible tokens, but not all.
some_logits = (
    st.lists(st.sampled_from([-INF, -3.0, 0.0, 0.5, 0.5000001, 2.0, 40.0, 3e38]), min_size=2, max_size=600)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: np.array(values, np.float32))
)


def large_logits(kind: str) -> np.ndarray:
    random = np.random.default_rng(5)
    if kind == "normal":
        return np.float32(random.normal(size=GEMMA) * 3)
    if kind == "ties":
        return np.float32(random.integers(0, 4, GEMMA))
    if kind == "equal":
        return np.zeros(GEMMA, np.float32)
    return np.float32(np.where(np.arange(GEMMA) == 77, 3e38, -1))


LARGE = ["normal", "ties", "equal", "one huge"]


def check_top_k(logits: np.ndarray, k: int) -> None:
    kept = TopK(k).apply(Candidates(None, logits))
    assert ids_of(kept) == sorted(ranked(logits)[:k].tolist())
    np.testing.assert_array_equal(kept.logits, logits[ids_of(kept)])


def check_top_p(logits: np.ndarray, p: float) -> None:
    """The smallest set that reaches p, the most likely first, up to the last bit of the sum."""
    kept = ids_of(TopP(p).apply(Candidates(None, logits)))
    probabilities = softmax(logits)
    order = ranked(probabilities)[: len(kept)]
    assert kept == sorted(order.tolist())
    sums = np.cumsum(probabilities[order])
    assert sums[-1] >= p - 1e-9
    assert len(kept) == 1 or sums[-2] < p + 1e-9


@given(some_logits, st.integers(1, 700))
def test_top_k_keeps_the_k_highest_of_equal_ones_the_lowest_ids(logits: np.ndarray, k: int) -> None:
    check_top_k(logits, k)


@given(some_logits, st.floats(1e-9, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: np.ndarray, p: float) -> None:
    check_top_p(logits, p)


@pytest.mark.parametrize("kind", LARGE)
def test_steps_on_the_largest_vocabulary(kind: str) -> None:
    logits = large_logits(kind)
    for k in (1, 40, GEMMA - 1):
        check_top_k(logits, k)
    for p in (0.01, 0.5, 0.95, 0.999999):
        check_top_p(logits, p)


@given(some_logits, st.floats(1e-320, 100))
def test_temperature_divides_the_logits(logits: np.ndarray, t: float) -> None:
    got = Temperature(t).apply(Candidates(None, logits)).probabilities()
    with np.errstate(over="ignore"):
        wanted = softmax((logits.astype(np.float64) - logits.max()) / t)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=0)


@given(some_logits, st.integers(1, 9), st.floats(0.1, 1))
def test_steps_work_on_what_the_step_before_left(logits: np.ndarray, k: int, p: float) -> None:
    left = Chain((Temperature(0.7), TopK(k), TopP(p))).candidates(logits)
    among = sorted(ranked(logits)[:k].tolist())
    inner = ids_of(TopP(p).apply(Candidates(None, (logits[among].astype(np.float64) - logits.max()) / 0.7)))
    assert ids_of(left) == [among[i] for i in inner]


@given(some_logits)
def test_greedy_is_the_highest_of_equal_ones_the_lowest_id(logits: np.ndarray) -> None:
    best = int(ranked(logits)[0])
    assert Chain(greedy=True).sample(logits, 0) == best
    assert Chain((TopK(3), TopP(0.9)), greedy=True).sample(logits, 3) == best
    assert Chain((TopK(1),), seed=4).sample(logits, 3) == best


@given(some_logits, st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_a_drawn_token_is_possible_and_depends_on_seed_and_index_only(
    logits: np.ndarray, seed: int, index: int
) -> None:
    chain = Chain((Temperature(1.5),), seed=seed)
    drawn = chain.sample(logits, index)
    assert logits[drawn] > -INF
    chain.sample(logits, index + 1)
    assert Chain((Temperature(1.5),), seed=seed).sample(logits.copy(), index) == drawn


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 0.5])
def test_no_number_draws_an_impossible_token(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(chain_module, "uniform", lambda seed, index: number)
    for weights in ([0.1, 0.2, 0.3], [1.0], [0.7] * 10):
        logits = np.log(np.array([1e-300, *weights, 1e-300]))
        logits[[0, -1]] = -INF
        assert 0 < Chain().sample(logits, 0) < len(logits) - 1


def test_drawn_tokens_have_the_distribution() -> None:
    """Chi-square over 100,000 draws at 0.1 %; the seed is fixed, so this passes or fails for good."""
    logits = np.array([0.0, 1.0, -1.0, 2.0, -INF, 0.5, 0.0], np.float32)
    chain = Chain((Temperature(0.8), TopP(0.97)), seed=20260101)
    left = chain.candidates(logits)
    expected = np.zeros(len(logits))
    expected[ids_of(left)] = left.probabilities()
    draws = 100_000
    counts = np.bincount([chain.sample(logits, i) for i in range(draws)], minlength=len(logits))
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    wanted = expected[possible] * draws
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 16.3  # 3 to 5 degrees of freedom


def test_numbers_are_uniform_and_unlike_for_neighbouring_seeds_and_tokens() -> None:
    by_index = np.array([uniform(7, i) for i in range(4000)])
    by_seed = np.array([uniform(s, 7) for s in range(4000)])
    for numbers in (by_index, by_seed):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 19 degrees of freedom, 0.1 %
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06
    assert uniform(7, 7) == by_index[7] == by_seed[7]


def test_numbers_stay_what_they_are() -> None:
    """A seed keeps its meaning from one version to the next."""
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1), uniform(2**63 - 1, 2**31)] == UNIFORM


UNIFORM = [0.011546754286331562, 0.3035680343067586, 0.5023796042735054, 0.9693538397681389]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("bad", [[1.0, math.nan, 2.0], [INF, 0.0], [-INF, -INF], [math.nan] * 9])
def test_logits_without_a_distribution_are_an_error_not_nonsense(bad: list[float], greedy: bool) -> None:
    for steps in ((), (TopK(1),), (Temperature(0.5), TopK(2), TopP(0.5))):
        with pytest.raises(KernelError, match="token 3: the logit of id"):
            Chain(steps, greedy).sample(np.array(bad, np.float32), 3)
