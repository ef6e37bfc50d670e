"""Scores → probabilities, answers and confidence, by the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.decide.labels import SCHEMES, DecisionFormat
from pellucid.decide.questions import Option, Question, choice_confidence, decision, score_confidence
from pellucid.util.probabilities import softmax

THREE = Question("q", "choice", "?", (Option("a"), Option("b"), Option("c")))


def answer(question: Question, *scores: list[float], temperature: float | None = None, rated: bool = False) -> Any:
    rows = [np.array(row, np.float32) for row in scores]
    keys = [one.key for one in question.options]
    return decision(question, keys, rows, [False, True][: len(rows)], temperature, rated)


@pytest.mark.parametrize(
    ("options", "largest", "published"), [(3, 0.61, 0.42), (4, 0.40, 0.20), (5, 0.74, 0.67), (3, 0.84, 0.76)]
)
def test_confidence_of_a_choice_is_as_published(options: int, largest: float, published: float) -> None:
    p = np.array([largest, *[(1 - largest) / (options - 1)] * (options - 1)])
    assert abs(choice_confidence(p) - published) <= 0.01


@pytest.mark.parametrize(
    ("p", "published"),
    [
        ([0.95, 0.05], 0.90),
        ([0, 0.57, 0.43], 0.35),
        ([0, 0.74, 0.26], 0.61),
        ([0, 0.91, 0.09], 0.87),
        ([0, 0.48, 0.52, 0], 0.52),
        ([0, 0, 0.86, 0.14, 0], 0.89),
    ],
)
def test_confidence_of_a_score_is_as_published(p: list[float], published: float) -> None:
    assert abs(score_confidence(np.array(p)) - published) <= 0.01


def test_one_option_is_certain() -> None:
    found = answer(Question("q", "choice", "?", (Option("only"),)), [-3.0])
    assert (found.value, found.probabilities, found.confidence) == ("only", {"only": 1.0}, 1.0)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=12), st.floats(0.05, 20))
def test_a_softmax_sums_to_one_and_keeps_the_order(scores: list[float], temperature: float) -> None:
    p = softmax(np.array(scores), temperature)
    assert math.isclose(p.sum(), 1, rel_tol=1e-12)
    assert (np.diff(p[np.argsort(scores)]) >= 0).all()
    ratio = np.log(p[0]) - np.log(p[1]) if min(p[0], p[1]) > 1e-290 else None  # smaller numbers have fewer digits
    assert ratio is None or math.isclose(ratio, (scores[0] - scores[1]) / temperature, rel_tol=1e-6, abs_tol=1e-6)


@given(st.lists(st.floats(-50, 50, width=32), min_size=9, max_size=9), st.one_of(st.none(), st.floats(0.05, 20)))
def test_bits_are_the_same_on_all_processors(scores: list[float], temperature: float | None) -> None:
    """NumPy's exponentials and products of vectors differ between instruction sets; ``math`` does not."""
    levels = Question("q", "score", "?", tuple(Option(str(at)) for at in range(9)))
    found = answer(levels, scores, temperature=temperature)
    weights = [math.exp((score - max(scores)) / (temperature or 1.0)) for score in scores]
    p = [weight / math.fsum(weights) for weight in weights]
    assert list(found.probabilities.values()) == p
    assert found.value == math.fsum(at * share for at, share in enumerate(p))
    distance = math.fsum(abs(at - p.index(max(p))) * share for at, share in enumerate(p))
    assert found.confidence == max(0.0, 1.0 - distance / np.abs(np.arange(9) - 4.0).mean())


def test_both_orders_are_averaged() -> None:
    found = answer(THREE, [1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    e = math.e / (math.e + 2)
    each = [(e + (1 - e) / 2) / 2, (1 - e) / 2, (e + (1 - e) / 2) / 2]  # the first label is "a", then "c"
    assert list(found.probabilities.values()) == pytest.approx(each)
    assert found.scores == [0.5, 0.0, 0.5]


def test_a_rated_yes_is_the_mean_rating() -> None:
    question = Question("q", "noul", "?", (Option("false"), Option("true")))
    found = answer(question, [-1e9] * 6 + [0.0, -1e9, 0.0], rated=True)
    assert found.value == pytest.approx((6 + 8) / 2 / 8)
    assert found.probabilities == {"false": 1 - found.value, "true": found.value}
    assert found.confidence is None


def test_the_answer_has_the_form_of_the_api() -> None:
    levels = Question("q", "score", "?", (Option("0", "low"), Option("1", {"is": "high"})))
    assert answer(levels, [0.0, 0.0]).as_dict() == {
        "type": "score",
        "score": 0.5,
        "legend": {"0": "low", "1": {"is": "high"}},
        "probabilities": {"0": 0.5, "1": 0.5},
        "confidence": 0.0,
    }
    assert answer(THREE, [0.0, 9.0, 0.0]).as_dict()["choice"] == "b"


def test_temperatures_of_a_band_precede_those_of_a_type() -> None:
    stated = DecisionFormat("lev", "", {"choice": 2.0, "choice.small": 3.0, "choice.3_5": 4.0, "score": 5.0})
    many = Question("q", "choice", "?", tuple(Option(str(at)) for at in range(9)))
    assert stated.temperature(THREE, SCHEMES["lev"].bands) == 3.0
    assert stated.temperature(many, SCHEMES["lev"].bands) == 2.0
    assert stated.temperature(THREE, SCHEMES["openjev"].bands) == 4.0
    assert stated.temperature(Question("q", "score", "?", many.options), SCHEMES["openjev"].bands) == 5.0
    assert stated.temperature(Question("q", "noul", "?", THREE.options[:2]), SCHEMES["lev"].bands) is None
