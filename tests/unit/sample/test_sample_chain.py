"""The chain: draws against the distribution, random numbers, and the trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sampling import Words, entropy, ranked, softmax

from pellucid.errors import KernelError
from pellucid.sample import chain as chain_module
from pellucid.sample.candidates import Candidates
from pellucid.sample.chain import Chain, Sampler, of_draw, uniform
from pellucid.sample.logprobs import of_token
from pellucid.sample.options import Options
from pellucid.sample.steps.cuts import Temperature, TopK, TopP

GEMMA = 262_144
INF = math.inf

some_logits = (
    st.lists(st.sampled_from([-INF, -3.0, 0.0, 0.5, 0.5000001, 2.0, 40.0, 3e38]), min_size=2, max_size=600)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: np.array(values, np.float32))
)


def start(chain: Chain, size: int = 600) -> Sampler:
    return chain.start(Words(size), [])


@given(some_logits)
def test_greedy_is_the_highest_of_equal_ones_the_lowest_id(logits: np.ndarray) -> None:
    best = int(ranked(logits.astype(np.float64))[0])
    assert start(Chain(greedy=True)).sample(logits).token == best
    assert start(Chain((TopK(3), TopP(0.9)), greedy=True)).sample(logits).token == best
    assert start(Chain((TopK(1),), seed=4)).sample(logits).token == best


@given(some_logits, st.integers(0, 2**63 - 1), st.integers(0, 30))
def test_a_drawn_token_is_possible_and_depends_on_seed_and_index_only(
    logits: np.ndarray, seed: int, index: int
) -> None:
    chain = Chain((Temperature(1.5),), seed=seed)
    first, second = start(chain), start(chain)
    for token in range(index):
        first.history.append(token)
        second.history.append(token + 1)
    drawn = first.sample(logits)
    assert logits[drawn.token] > -INF
    assert second.sample(logits.copy()).token == drawn.token


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 0.5])
@pytest.mark.parametrize("size", [1, 10, 3000, 100_000])
def test_no_number_draws_an_impossible_token(monkeypatch: pytest.MonkeyPatch, number: float, size: int) -> None:
    monkeypatch.setattr(chain_module, "uniform", lambda seed, index: number)
    for weights in (np.linspace(0.1, 0.9, size), np.full(size, 0.7), np.exp(-np.arange(size) / 9)):
        with np.errstate(divide="ignore"):
            logits = np.log(np.concatenate([[0] * 1500, weights, [0] * 1500]))
        token = start(Chain(), len(logits)).sample(logits).token
        assert 1500 <= token < 1500 + size


def chi_square(logits: np.ndarray, chain: Chain, draws: int = 40_000) -> tuple[float, int]:
    """Chi-square statistic of draws against the exact distribution after the chain, and its degrees of freedom."""
    sampler = start(chain, len(logits))
    left, _ = sampler.apply_steps(Candidates.of(logits, "test"))
    ids, expected = left.ids_at(np.arange(len(left))), left.probabilities() * draws
    counts = np.zeros(len(logits))
    for _ in range(draws):
        counts[sampler.sample(logits).token] += 1
    assert counts.sum() == counts[ids].sum() == draws
    counts, possible = counts[ids], expected > 0
    assert counts[~possible].sum() == 0
    many = expected >= 5  # the others are merged
    observed = [*counts[many], counts[~many].sum()] if (expected[~many].sum() >= 5) else [*counts[many]]
    wanted = [*expected[many], expected[~many].sum()] if (expected[~many].sum() >= 5) else [*expected[many]]
    return float(sum((o - w) ** 2 / w for o, w in zip(observed, wanted))), len(wanted) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"temperature": 0.8, "top_p": 0.97}, 7),
        ({"temperature": 1.3}, 30),
        ({"top_k": 0, "min_p": 0, "top_p": 1}, 5000),
    ],
)
def test_drawn_tokens_have_the_distribution(options: dict[str, Any], size: int) -> None:
    """40,000 draws at a significance of 0.1 %; the seed is fixed, so the result is always the same."""
    logits = np.float32(np.random.default_rng(size).normal(size=size) * 2)
    logits[2] = -INF
    statistic, degrees = chi_square(logits, Options.of(seed=20260101, **options).chain())
    # Wilson and Hilferty's approximation of the 99.9th percentile
    limit = degrees * (1 - 2 / (9 * degrees) + 3.0902 * math.sqrt(2 / (9 * degrees))) ** 3
    assert degrees >= 2
    assert statistic < limit


def test_numbers_are_uniform_and_unlike_for_neighbouring_seeds_and_tokens() -> None:
    by_index = np.array([uniform(7, i) for i in range(4000)])
    by_seed = np.array([uniform(s, 7) for s in range(4000)])
    second = np.array([uniform(7, i, 1) for i in range(4000)])
    for numbers in (by_index, by_seed, second):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 19 degrees of freedom, 0.1 %
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(by_index, second)[0, 1]) < 0.06
    assert uniform(7, 7) == by_index[7] == by_seed[7]


def test_numbers_stay_what_they_are() -> None:
    """A seed gives the same numbers in every version."""
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1), uniform(2**63 - 1, 2**31)] == UNIFORM


UNIFORM = [0.011546754286331562, 0.3035680343067586, 0.5023796042735054, 0.9693538397681389]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("bad", [[1.0, math.nan, 2.0], [INF, 0.0], [-INF, -INF], [math.nan] * 9])
def test_logits_without_a_distribution_are_an_error_not_nonsense(bad: list[float], greedy: bool) -> None:
    for steps in ((), (TopK(1),), (Temperature(0.5), TopK(2), TopP(0.5))):
        sampler = start(Chain(steps, greedy))
        for token in range(3):
            sampler.history.append(token)
        with pytest.raises(KernelError, match="token 3: the logit of id"):
            sampler.sample(np.array(bad, np.float32))


@given(some_logits, st.floats(1e-320, 100))
def test_temperature_divides_the_logits(logits: np.ndarray, t: float) -> None:
    left, _ = start(Chain((Temperature(t),))).apply_steps(Candidates.of(logits, "test"))
    with np.errstate(over="ignore"):
        wanted = softmax((logits.astype(np.float64) - logits.max()) / t)
    np.testing.assert_allclose(left.probabilities(), wanted, rtol=1e-12, atol=1e-300)


@given(some_logits, st.integers(1, 9), st.floats(0.1, 1), st.integers(0, 2**60))
def test_the_trace_says_what_the_steps_did(logits: np.ndarray, k: int, p: float, seed: int) -> None:
    chain = Chain((Temperature(0.7), TopK(k), TopP(p)), seed=seed)
    watched, plain = start(chain).sample(logits, watch=True), start(chain).sample(logits)
    assert (watched.token, watched.number, plain.traces) == (plain.token, plain.number, None)
    trace = of_draw(watched)
    before = softmax(logits.astype(np.float64))
    assert trace.entropy == pytest.approx(entropy(before), abs=1e-9)
    assert trace.probability == pytest.approx(before[trace.token], rel=1e-9)
    assert trace.rank == ranked(logits.astype(np.float64)).tolist().index(trace.token) + 1
    assert trace.number == uniform(seed, 0)
    with np.errstate(over="ignore"):
        current = (logits.astype(np.float64) - logits.max()) / 0.7
    for step, at in zip(trace.steps, range(3)):
        after = current
        if at:
            kept = start(Chain(chain.steps[: at + 1])).apply_steps(Candidates.of(logits, "test"))[0].ids_at(slice(None))
            after = np.full(len(logits), -INF)
            after[kept if chain.steps else slice(None)] = current[kept]
        p0, p1 = softmax(logits.astype(np.float64) if at == 0 else current), softmax(after)
        gone = (p0 > 0) & (p1 == 0)
        assert (step.removed, step.left) == (gone.sum(), (p1 > 0).sum())
        assert step.removed_mass == pytest.approx(p0[gone].sum(), abs=1e-9)
        assert step.moved == pytest.approx(np.abs(p0 - p1).sum() / 2, abs=1e-9)
        assert (step.entropy_before, step.entropy_after) == pytest.approx((entropy(p0), entropy(p1)), abs=1e-9)
        current = after
    assert trace.final_probability == pytest.approx(softmax(current)[trace.token], rel=1e-9)


def test_a_fork_goes_on_by_itself() -> None:
    chain = Options.of(seed=4, repetition_penalty=1.5, mirostat=2).chain()
    logits = np.float32(np.random.default_rng(0).normal(size=100))
    one = start(chain)
    for _ in range(5):
        one.sample(logits)
    other = one.fork()
    ahead = [one.sample(logits).token for _ in range(8)]
    assert [other.sample(logits).token for _ in range(8)] == ahead


@pytest.mark.parametrize("highest", [3, 299, 300, 399])
def test_rows_beyond_the_vocabulary_count_and_do_not_come(highest: int) -> None:
    """400 logits, 300 of them for tokens."""
    logits = np.float32(np.random.default_rng(4).normal(size=400))
    logits[highest] = 9.0
    best = int(logits[:300].argmax())
    whole = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    draw = start(Chain(greedy=True), 300).sample(logits, watch=True)
    assert (draw.token, len(draw.candidates), len(draw.logits)) == (best, 300, 400)
    assert draw.traces is not None
    assert [(step.name, step.removed, step.left) for step in draw.traces] == [("vocabulary", 100, 300)]
    assert draw.traces[0].removed_mass == pytest.approx(np.exp(whole[300:]).sum())
    row = of_token(draw.logits, best, 400, 300)
    assert (row.chosen, row.rank) == (pytest.approx(whole[best]), 1)
    assert sorted(row.top_ids[:300].tolist()) == list(range(300))
    assert (row.top_ids[300:] == -1).all()
    drawn = {start(Chain(seed=seed), 300).sample(logits).token for seed in range(50)}
    assert max(drawn) < 300
    with pytest.raises(KernelError, match="no token has a finite logit"):
        start(Chain(), 300).sample(np.where(np.arange(400) < 300, -INF, logits))
