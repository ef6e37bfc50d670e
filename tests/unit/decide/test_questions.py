"""Questions and states: what is accepted, and one line of error for everything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.decide.questions import MOST_OPTIONS, MOST_QUESTIONS, Option, questions_of, state_of
from pellucid.errors import InvalidRequest

CHOICE = {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": "text"}}
SCORE = {"type": "score", "instructions": "How?", "criteria": ["low", {"is": "high"}]}
NOUL = {"type": "noul", "instructions": "True?"}


def test_questions_keep_their_order_and_content() -> None:
    found = questions_of({"c": CHOICE, "s": SCORE, "n": NOUL})
    assert [(one.id, one.type) for one in found] == [("c", "choice"), ("s", "score"), ("n", "noul")]
    assert found[0].options == (Option("a"), Option("b", "text"))
    assert found[1].options == (Option("0", "low"), Option("1", {"is": "high"}))
    assert found[2].options == (Option("false"), Option("true"))
    described = questions_of({"n": {**NOUL, "criteria": {"true": "yes indeed", "false": None}}})
    assert described[0].options == (Option("false"), Option("true", "yes indeed"))
    assert questions_of({"c": {**CHOICE, "criteria": {"only": None}}})[0].options == (Option("only"),)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "questions={}: must be a mapping of at least one id"),
        ([NOUL], "must be a mapping"),
        (None, "must be a mapping"),
        ({"q": None}, "questions.q=None: must be an object with type"),
        ({"q": "Is it?"}, "must be an object with type"),
        ({"": NOUL}, "the id of a question='': must be a text"),
        ({3: NOUL}, "the id of a question=3"),
        ({"q": {**NOUL, "type": "bool"}}, "questions.q.type='bool': must be one of choice, score, noul"),
        ({"q": {**NOUL, "type": ["noul"]}}, "questions.q.type=['noul']"),
        ({"q": {"type": "noul"}}, "questions.q.instructions is missing"),
        ({"q": {**NOUL, "instructions": ""}}, "questions.q.instructions is missing"),
        ({"q": {**NOUL, "instructions": []}}, "questions.q.instructions is missing"),
        ({"q": {**NOUL, "instructions": 3}}, "questions.q.instructions=3: must be a text, an object or a list"),
        ({"q": {**NOUL, "options": []}}, "questions.q has the unknown field 'options'"),
        ({"q": {**NOUL, "criteria": {"yes": "x"}}}, "must be an object with descriptions of true and false"),
        ({"q": {**NOUL, "criteria": ["a", "b"]}}, "descriptions of true and false"),
        ({"q": {**NOUL, "criteria": {"true": 1}}}, "questions.q.criteria.true=1: must be a text"),
        ({"q": {**CHOICE, "criteria": None}}, "questions.q.criteria=None: must be an object of at least one"),
        ({"q": {**CHOICE, "criteria": {}}}, "at least one option"),
        ({"q": {**CHOICE, "criteria": ["a", "b"]}}, "at least one option"),
        ({"q": {**CHOICE, "criteria": {"": None}}}, "the name of an option in questions.q.criteria=''"),
        ({"q": {**CHOICE, "criteria": {1: None}}}, "the name of an option in questions.q.criteria=1"),
        ({"q": {**CHOICE, "criteria": {"a": 2.5}}}, "questions.q.criteria.a=2.5"),
        ({"q": {**SCORE, "criteria": ["one"]}}, "must be a list of 2 to 10 levels"),
        ({"q": {**SCORE, "criteria": ["x"] * 11}}, "must be a list of 2 to 10 levels"),
        ({"q": {**SCORE, "criteria": "low"}}, "must be a list of 2 to 10 levels"),
        ({"q": {**SCORE, "criteria": {"0": "low", "1": "high"}}}, "must be a list of 2 to 10 levels"),
        ({"q": {**SCORE, "criteria": ["low", None]}}, "questions.q.criteria[1] is empty"),
        ({"q": {**SCORE, "criteria": ["low", ""]}}, "questions.q.criteria[1] is empty"),
        ({"q": {**NOUL, "instructions": {"x": object()}}}, "takes texts, numbers, lists and mappings"),
        ({"q": {**NOUL, "instructions": "a\ud800"}}, "has the surrogate U+D800"),
        ({"a\ud800": NOUL}, "has the surrogate U+D800"),
        ({"q": {**CHOICE, "criteria": {"\udfff": None}}}, "has the surrogate U+DFFF"),
    ],
)
def test_a_wrong_question_is_named_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        questions_of(given)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_too_many_questions_and_options_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="257 questions; the limit is 256"):
        questions_of({str(at): NOUL for at in range(MOST_QUESTIONS + 1)})
    assert len(questions_of({str(at): NOUL for at in range(MOST_QUESTIONS)})) == MOST_QUESTIONS
    with pytest.raises(InvalidRequest, match="256 options; the limit is 255"):
        questions_of({"q": {**CHOICE, "criteria": dict.fromkeys(map(str, range(MOST_OPTIONS + 1)))}})


@pytest.mark.parametrize("state", ["text", "", {"a": [1, None, 2.5, True]}, ["x", {"role": "user", "content": "hi"}]])
def test_a_state_stays_as_it_is(state: Any) -> None:
    assert state_of(state) == state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "state=None: must be a text, an object or a list"),
        (3, "state=3: must be a text"),
        (b"bytes", "must be a text"),
        ({1: 2}, "state has the key 1: keys must be texts"),
        ({"a": {2, 3}}, "state.a"),
        ("a\udc80", "has the surrogate U+DC80"),
        ([{"content": [{"type": "image_url", "image_url": "data:"}]}], "only text is supported, not image"),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, "only text is supported, not audio"),
    ],
)  # fmt: skip
def test_a_wrong_state_is_named_in_one_line(state: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        state_of(state)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_a_state_that_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested more than"):
        state_of(deep)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
LIKELY = st.dictionaries(
    st.text(max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["choice", "score", "noul", "x"]) | ANY,
            "instructions": ANY,
            "criteria": ANY,
        },
    )
    | ANY,
    max_size=3,
)


@given(LIKELY | ANY)
def test_any_json_is_read_or_refused_in_one_line(value: Any) -> None:
    try:
        found = questions_of(value)
    except InvalidRequest:  # its message is one line (tests/unit/test_errors.py)
        pass
    else:
        assert [one.id for one in found] == list(value)
        assert all(1 <= len(one.options) <= MOST_OPTIONS for one in found)
