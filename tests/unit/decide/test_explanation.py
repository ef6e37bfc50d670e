"""Explanations of decisions: words whose relevances sum to the difference of two options' logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import QUESTIONS, STATES, TEMPLATES, decision_model

import pellucid
from pellucid.decide.decider import explained_words
from pellucid.decide.questions import DecisionExplanation
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, scale


@pytest.fixture(scope="module", params=TEMPLATES)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = decision_model(tmp_path_factory.mktemp("explain") / "model.gguf", request.param)
    with pellucid.load(path, threads=2, precise=True, kv_cache="f32") as made:
        yield made


@pytest.mark.parametrize("state", STATES)
def test_words_sum_to_the_difference_of_the_logits(llm: LLM, state: Any) -> None:
    plain, found = llm.decide(state, QUESTIONS), llm.decide(state, QUESTIONS, explain=True)
    assert {id: one.scores for id, one in plain.items()} == {id: one.scores for id, one in found.items()}
    for id, decision in found.items():
        assert plain[id].explanation is None
        explanation = decision.explanation
        assert explanation is not None
        assert len(repr(explanation).splitlines()) == 1
        rated = len(decision.scores) != len(decision.probabilities)
        names = [f"rating {at}" for at in range(9)] if rated else list(decision.probabilities)
        score = dict(zip(names, decision.scores))
        assert explanation.logit == pytest.approx(score[explanation.option] - score[explanation.against], abs=1e-6)
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-9)
        assert sum(part.value for part in explanation.parts) == pytest.approx(explanation.logit, abs=1e-9)
        assert abs(explanation.rounding) < 1e-5
        if not rated:
            first, second = sorted(decision.probabilities, key=lambda key: -decision.probabilities[key])[:2]
            assert (explanation.option, explanation.against) == (first, second)
        words = [one.text for one in explanation.words if one.place == "state"]
        sorts = llm.decider.scheme.sorted_keys
        wanted = state if isinstance(state, str) else json.dumps(state, ensure_ascii=False, sort_keys=sorts)
        assert words == wanted.split()
        assert DecisionExplanation.from_dict(json.loads(json.dumps(explanation.as_dict()))) == explanation
        assert all(one.text in explanation._repr_html_() for one in explanation.ranked()[:3] if one.text.isalpha())
        shown = decision.as_dict()["explanation"]
        assert "parts" not in shown
        assert [one["text"] for one in shown["words"] if one["place"] == "state"] == words


def test_an_edited_decision_is_explained_with_its_edits(llm: LLM) -> None:
    edits = [ablate("blocks.2.attention.heads")]
    plain, edited = (llm.decide("s t", QUESTIONS, explain=True, edits=one) for one in (None, edits))
    for id, decision in edited.items():
        explanation, before = decision.explanation, plain[id].explanation
        assert explanation is not None
        assert before is not None
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-9)
        assert [part.value for part in explanation.parts if part.layer == 2 and part.kind == "head"] == [0.0] * 4
        assert explanation.logit != before.logit
    with pytest.raises(InvalidRequest, match=r"remove the edit of norm, or leave explain out$"):
        llm.decide("s t", QUESTIONS, explain=True, edits=[scale("norm", 2.0)])


def test_a_question_with_one_option_has_no_explanation(llm: LLM) -> None:
    asked = {"q": {"type": "choice", "instructions": "?", "criteria": {"only": None}}}
    assert llm.decide("s", asked, explain=True)["q"].explanation is None


def test_words_have_their_places(tmp_path: Path) -> None:
    path = random_model("llama", tmp_path / "m.gguf", vocabulary=320)
    with pellucid.load(path, threads=1) as llm:
        ids = [256, *b"  ask me\nstate:ask it?now", 257, *b" end \n"]
        shares = np.arange(len(ids), dtype=np.float64)
        words = explained_words(llm.tokenizer, ids, shares, "ask it?", "ask me")
        assert [(one.text, one.place) for one in words] == [
            ("<s>", "prompt"),
            ("ask", "question"),
            ("me", "question"),
            ("state:", "prompt"),
            ("ask", "state"),
            ("it?", "state"),
            ("now", "prompt"),
            ("</s>", "prompt"),
            ("end", "prompt"),
            (" \n", "prompt"),
        ]
        assert sum(one.value for one in words) == shares.sum()
        assert [at for one in words for at in one.tokens] == list(range(len(ids)))
        other = explained_words(llm.tokenizer, ids, shares, {"not": "there"}, "nor this")
        assert {one.place for one in other} == {"prompt"}
