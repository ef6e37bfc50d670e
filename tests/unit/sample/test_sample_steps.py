"""Every sampler step in the folder against its definition in NumPy float64 (``support/sampling.py``)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling import LIMIT, REFERENCES, USUAL, Before, Words, ranked, softmax
from support.tiny import TASKS

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates, least_float32
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, options_of, steps
from pellucid.sample.steps.forbidden import Forced
from pellucid.tokenize import load_tokenizer

INF = math.inf
GEMMA = 262_144

unit = st.floats(0.01, 0.999)
ids = st.integers(0, 25)
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "penalties": {
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3, 8.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.7, -1.5]),
        "presence_penalty": st.sampled_from([0.0, 0.4, -2.0]),
        "repeat_last_n": st.integers(-1, 8),
    },
    "no_repeat_ngram": {"no_repeat_ngram_size": st.integers(1, 4)},
    "dry": {
        "dry_multiplier": st.sampled_from([0.8, 3.0]),
        "dry_base": st.sampled_from([1.0, 1.75, 50.0]),
        "dry_allowed_length": st.integers(0, 3),
        "dry_penalty_last_n": st.integers(-1, 30),
        "dry_sequence_breakers": st.sampled_from([(), ("\x01",), ("\x02", "\x03")]),
    },
    "logit_bias": {"logit_bias": st.dictionaries(ids, st.sampled_from([-3.0, 2.5, -INF]), min_size=1, max_size=5)},
    "banned": {
        "banned": st.lists(
            st.one_of(ids, st.lists(ids, min_size=1, max_size=3), st.text("\x01\x02\x03", min_size=1, max_size=2)),
            min_size=1,
            max_size=5,
        )
    },
    "allowed": {"allowed": st.lists(st.one_of(ids, st.text("\x01\x02\x03", min_size=1, max_size=2)), min_size=1)},
    "min_new_tokens": {"min_new_tokens": st.integers(1, 20)},
    "forced": {
        "target_language": st.just(""),
        "forced_bos_token_id": st.integers(-1, 25),
        "forced_eos_token_id": st.integers(-1, 25),
    },
    "temperature": {
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 1.5, 30.0]),
        "dynatemp_range": st.sampled_from([0.0, 0.5, 2.0]),
        "dynatemp_exponent": st.sampled_from([1.0, 0.5, 2.0]),
    },
    "top_k": {"top_k": st.integers(1, 60)},
    "top_p": {"top_p": unit},
    "min_p": {"min_p": unit},
    "typical": {"typical_p": unit},
    "top_n_sigma": {"top_n_sigma": st.floats(0.01, 4)},
    "epsilon": {"epsilon_cutoff": unit},
    "eta": {"eta_cutoff": unit},
    "top_h": {"top_h": unit},
    "xtc": {"xtc_probability": st.sampled_from([0.5, 1.0]), "xtc_threshold": st.floats(0.001, 0.5)},
    "mirostat": {"mirostat": st.just(2), "mirostat_tau": st.floats(0.1, 8), "mirostat_eta": unit},
}
STEPS = sorted(set(steps()) - {"constraint"})  # it has tests of its own
# Options that set the border of a set: rounding may decide at the border, so values next to it are valid too.
CUTS = (
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
    "xtc_threshold",
    "mirostat_tau",
)

# Few different values, so that there are ties; some impossible tokens, but not all.
some_logits = (
    st.lists(st.sampled_from([-INF, -3.0, 0.0, 0.5, 0.5000001, 2.0, 40.0]), min_size=40, max_size=600)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: np.array(values, np.float32))
)
history = st.lists(st.integers(0, 6), max_size=40).map(tuple)
befores = st.builds(Before, history, history, st.just((0, 3)), st.integers(0, 2**60))


def test_every_step_has_a_reference_and_is_tested_here() -> None:
    assert set(STEPS) == set(REFERENCES) == set(OPTIONS)
    for name in STEPS:
        assert set(OPTIONS[name]) == set(options_of(steps()[name]))


def bound(name: str, options: dict[str, Any], before: Before, size: int) -> tuple[SamplerStep, TokenHistory]:
    context = RequestContext(Words(size), frozenset(before.ends), before.seed, False, size, LIMIT)
    step = steps()[name](**options).bind(context)
    history = TokenHistory(before.prompt, before.seed)
    for token in before.generated:
        history.append(token)
    return step, history


def dense(candidates: Candidates, size: int) -> np.ndarray:
    out = np.full(size, -INF)
    out[slice(None) if candidates.ids is None else candidates.ids] = candidates.logits()
    return out


def check(
    name: str, logits: np.ndarray, options: dict[str, Any], before: Before, first: Candidates | None = None
) -> None:
    """Check that the same tokens remain, with the same probabilities."""
    first = Candidates(None, logits) if first is None else first
    start = dense(first, len(logits))
    reference = REFERENCES[name]
    wanted = [reference(start, options, before)]
    for option in CUTS:
        if option in options:
            wanted += [reference(start, {**options, option: options[option] * x}, before) for x in (1 - 1e-9, 1 + 1e-9)]
    step, history = bound(name, options, before, len(logits))
    if step.idle:  # a chain leaves it out
        np.testing.assert_array_equal(wanted[0] > -INF, start > -INF)
        if (start > -INF).any():
            np.testing.assert_allclose(softmax(wanted[0]), softmax(start), rtol=1e-9, atol=1e-300)
        return
    found = step.apply(first, history)
    if not found.possible:
        assert wanted[0].max() == -INF
        return
    if found.ranked:
        np.testing.assert_array_equal(np.lexsort((found.ids_at(), -found.raw)), np.arange(len(found)))
    else:
        assert found.ids is None or (np.diff(found.ids) > 0).all()
    left = dense(found, len(logits))
    alike = [one for one in wanted if ((one > -INF) == (left > -INF)).all()]
    assert alike, "other tokens are left"
    np.testing.assert_allclose(
        softmax(left), softmax(alike[0]), rtol=2e-5 if step.kind == "change" else 1e-9, atol=1e-300
    )


@pytest.mark.parametrize("name", STEPS)
@given(st.data(), some_logits, befores)
def test_a_step_is_its_definition(name: str, data: st.DataObject, logits: np.ndarray, before: Before) -> None:
    check(name, logits, data.draw(st.fixed_dictionaries(OPTIONS[name])), before)


@pytest.mark.parametrize("name", STEPS)
@given(st.data(), some_logits, befores, st.integers(1, 30), st.sampled_from([0.3, 1.0, 2.0]))
def test_a_step_works_on_what_others_left(
    name: str, data: st.DataObject, logits: np.ndarray, before: Before, k: int, t: float
) -> None:
    first = Candidates(
        np.sort(ranked(logits.astype(np.float64))[:k]), logits[np.sort(ranked(logits.astype(np.float64))[:k])], t
    )
    check(name, logits, data.draw(st.fixed_dictionaries(OPTIONS[name])), before, first)


def large(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(5)
    if kind == "normal":
        return np.float32(random.normal(size=size) * 3)
    if kind == "ties":
        return np.float32(random.integers(0, 4, size))
    if kind == "equal":
        return np.zeros(size, np.float32)
    if kind == "forbidden":
        return np.float32(np.where(np.arange(size) % 3, random.normal(size=size), -INF))
    return np.float32(np.where(np.arange(size) == size - 1, 60, random.normal(size=size)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "forbidden", "one huge"])
@pytest.mark.parametrize("size", [2, GEMMA])
@pytest.mark.parametrize("name", STEPS)
def test_the_smallest_and_the_largest_vocabulary(name: str, size: int, kind: str) -> None:
    if name == "dry" and size > 2:
        pytest.skip("looks through the vocabulary for breakers: test_sample_goldens has a real one")
    check(name, large(kind, size), dict(USUAL[name]), Before((0, 1, 0, 1), (0, 1, 0), (0,)))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_what_it_gave_whatever_was_asked_before(name: str) -> None:
    logits, before = large("normal", 3000), Before((0, 1, 0, 1), (0, 1, 0), (0,))
    step, history = bound(name, dict(USUAL[name]), before, 3000)
    first, second = (step.apply(Candidates(None, logits.copy()), history) for _ in range(2))
    np.testing.assert_array_equal(first.raw, second.raw)
    np.testing.assert_array_equal(logits, large("normal", 3000))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0.5, 9), st.floats(0.01, 1))
def test_mirostat_follows_the_surprise(chosen: list[int], tau: float, eta: float) -> None:
    logits = np.linspace(4, -4, 64, dtype=np.float32)
    step, history = bound("mirostat", {"mirostat": 2, "mirostat_tau": tau, "mirostat_eta": eta}, Before(), 64)
    other, most = step.fork(), 2 * tau
    bits = -np.log2(softmax(logits.astype(np.float64)))
    for place in chosen:
        left = step.apply(Candidates(None, logits), history)
        assert len(left) == max(int((bits <= most).sum()), 1)
        p = left.probabilities()
        place = min(place, len(left) - 1)
        step.accept(place, p[place])
        most -= eta * (-np.log2(p[place]) - tau)
    assert len(other.apply(Candidates(None, logits), history)) == max(int((bits <= 2 * tau).sum()), 1)


@pytest.mark.parametrize(
    ("name", "logits", "options", "left"),
    [
        # All tokens tie, and their surprise is above the target: a single token stays.
        ("mirostat", [0.0] * 64, {"mirostat": 2, "mirostat_tau": 2.0}, [0]),
        ("mirostat", [0.0, 3.0, 3.0, 3.0], {"mirostat": 2, "mirostat_tau": 0.5}, [1]),
        ("mirostat", [0.0] * 64, {"mirostat": 2, "mirostat_tau": 3.1}, list(range(64))),
        # A token whose probability underflows adds nothing to the entropy.
        ("top_h", [2000.0, 0.0, -5.0, 1.0], {"top_h": 0.5}, [0]),
        ("top_h", [2000.0, 1000.0, 1000.0], {"top_h": 0.999}, [0]),
        ("top_h", [0.0, -INF, -INF, -800.0], {"top_h": 0.9}, [0]),
    ],
)
def test_what_stays_where_ties_and_underflow_meet(
    name: str, logits: list[float], options: dict[str, Any], left: list[int]
) -> None:
    step, history = bound(name, options, Before(), len(logits))
    assert sorted(step.apply(Candidates(None, np.float32(logits)), history).ids_at().tolist()) == left


@given(st.floats(allow_nan=False))
def test_comparing_with_the_least_float32_is_comparing_with_the_float64(bound: float) -> None:
    least = least_float32(bound)
    assert least.dtype == np.float32
    with np.errstate(over="ignore"):
        around = [least, *(np.nextafter(least, np.float32(way)) for way in (-INF, INF)), np.float32(0)]
    for value in around:
        if math.isfinite(value):
            above = math.isfinite(bound) and Fraction(float(value)) >= Fraction(bound)
            assert bool(value >= least) == (above or bound == -INF)


# Offsets that models have, and offsets at which float32 has few values.
OFFSETS = st.sampled_from([0.0, 10.0, 1000.0, 10_000.0, 1e6, -10_000.0])
EXPONENTS = {
    "min_p": (lambda z, o: math.log(o["min_p"])),
    "epsilon": (lambda z, o: math.log(o["epsilon_cutoff"]) + math.log(np.exp(z).sum())),
    "top_n_sigma": (lambda z, o: -o["top_n_sigma"] * float(z.std())),
    "mirostat": (lambda z, o: -2 * o["mirostat_tau"] * math.log(2) + math.log(np.exp(z).sum())),
}
"""Smallest exponent that a step keeps, from its options and all exponents in float64."""


@pytest.mark.parametrize("name", EXPONENTS)
@given(st.integers(0, 2**32), OFFSETS, st.sampled_from([0.3, 1.0, 1.7]), st.data())
def test_a_cut_is_where_float64_has_it(
    name: str, seed: int, offset: float, temperature: float, data: st.DataObject
) -> None:
    """No logit next to the cut is on the wrong side, unless float64 cannot distinguish it from the cut."""
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    logits = np.float32(np.random.default_rng(seed).normal(size=2000) * 3 + offset)
    z = (logits.astype(np.float64) - float(logits.max())) / temperature
    least = min(EXPONENTS[name](z, options), 0.0)
    # Put some tokens around the cut, where a comparison in float32 goes wrong.
    near = np.float32(least * temperature + float(logits.max()))
    logits[10:13] = near, np.nextafter(near, np.float32(-INF)), np.nextafter(near, np.float32(INF))
    logits[10:13] = np.minimum(logits[10:13], logits.max())
    z = (logits.astype(np.float64) - float(logits.max())) / temperature
    least = min(EXPONENTS[name](z, options), 0.0)
    step, history = bound(name, options, Before(), len(logits))
    kept = np.zeros(len(logits), np.bool_)
    kept[step.apply(Candidates(None, logits, temperature), history).ids_at()] = True
    slack = 1e-12 * (1 + abs(least)) + 4e-16 * abs(offset) / temperature
    assert kept[z > least + slack].all()
    assert not kept[z < least - slack].any()


def test_a_language_that_the_vocabulary_lacks_is_not_the_unknown_token() -> None:
    tokenizer = load_tokenizer(TASKS["bert-fill"])
    (unknown,) = tokenizer.encode("\N{SNOWMAN}", add_special=False)
    assert tokenizer.is_special(unknown)
    context = RequestContext(tokenizer, frozenset(), 0, False, tokenizer.vocab_size)
    with pytest.raises(InvalidRequest, match="target_language='\N{SNOWMAN}': the model has no token of this"):
        Forced(target_language="\N{SNOWMAN}").bind(context)
