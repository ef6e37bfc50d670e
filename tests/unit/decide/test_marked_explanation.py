"""Explanations of models that score options at marks: equal to a float64 implementation without a backward pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.decisions import STATES
from support.loaded import models_of
from support.marked_options import ASKED, MODELS, marked_model
from support.marked_relevance import FixedModel

from pellucid.decide.prompts import DecisionPrompt
from pellucid.decide.questions import Decision, DecisionExplanation, questions_of, state_of
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.trace import ablate, scale
from pellucid.trace.traced_model import residual_points

CASES = [(name, id) for name in MODELS for id in ("team", "urgency", "angry", "masks", "long")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LLM]]:
    """Loads a model, once, exactly or as users do."""
    with models_of(tmp_path_factory.mktemp("marked"), marked_model) as load:
        yield load


def asked(
    llm: LLM, id: str, state: Any = STATES[0], **more: Any
) -> tuple[Decision, DecisionExplanation, DecisionPrompt]:
    """The decision, its explanation, and the prompt of a question."""
    questions = {id: ASKED[id]}
    decision = llm.decide(state, questions, explain=True, **more)[id]
    (prompt,) = llm.decider.prompts(state_of(state), questions_of(questions))
    assert decision.explanation is not None
    return decision, decision.explanation, prompt


def compared_marks(decision: Decision, prompt: DecisionPrompt) -> tuple[int, int]:
    """The marks of the explained option and of the next."""
    explanation, keys = decision.explanation, list(decision.probabilities)
    assert explanation is not None
    marks = prompt.readings[0].marks
    return marks[keys.index(explanation.option)], marks[keys.index(explanation.against)]


@pytest.mark.parametrize(("name", "id"), CASES)
def test_words_and_parts_are_those_of_the_fixed_model(loaded: Callable[..., LLM], name: str, id: str) -> None:
    llm = loaded(name)
    decision, found, prompt = asked(llm, id)
    model = FixedModel(name, prompt.ids, prompt.token_type)
    marks = compared_marks(decision, prompt)
    tokens, constant = model.relevances(*marks)
    wanted = model.scores[marks[0]] - model.scores[marks[1]]
    assert tokens.sum() + constant == pytest.approx(wanted, abs=1e-9)
    within = 1e-4 * max(1.0, np.abs(tokens).max())
    assert found.logit == pytest.approx(wanted, abs=within)
    assert found.constant == pytest.approx(constant, abs=within)
    assert [at for one in found.words for at in one.tokens] == list(range(len(prompt.ids)))
    for word in found.words:
        assert word.value == pytest.approx(tokens[word.tokens.start : word.tokens.stop].sum(), abs=within), word
    after = [word for word in found.words if word.tokens.start > max(marks)]
    assert max(abs(word.value) for word in after) > 100 * within, "the tokens after the marks count, too"

    parts = {part.name: part.value for part in found.parts}
    for layer in range(model.blocks):
        heads = model.writes[f"blk.{layer}.heads"]
        for head, written in enumerate(heads):
            value = model.contribution(written, layer, *marks)
            assert parts[f"blocks.{layer}.attention.heads.{head}"] == pytest.approx(value, abs=within)
        value = model.contribution(model.writes[f"blk.{layer}.feedforward"], layer, *marks)
        assert parts[f"blocks.{layer}.feedforward"] == pytest.approx(value, abs=within)
    value = model.contribution(model.embedded, 0, *marks)
    assert parts["embed"] + parts["embed.norm"] == pytest.approx(value, abs=within)
    types = np.broadcast_to(model.w["token_types.weight"][prompt.token_type], model.embedded.shape)
    value = model.contribution(types, model.encoder, *marks)
    assert parts["decision.types"] == pytest.approx(value, abs=within)


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_words_and_parts_sum_to_the_difference_of_the_scores(
    loaded: Callable[..., LLM], name: str, state: Any, precise: bool
) -> None:
    llm = loaded(name, precise)
    plain, found = llm.decide(state, ASKED), llm.decide(state, ASKED, explain=True)
    for id, decision in found.items():
        assert decision.scores == plain[id].scores
        explanation = decision.explanation
        assert explanation is not None
        score = dict(zip(decision.probabilities, decision.scores))
        first, second = sorted(score, key=lambda key: -score[key])[:2]
        assert (explanation.option, explanation.against) == (first, second)
        assert explanation.logit == score[first] - score[second]
        assert explanation.total == pytest.approx(explanation.logit, abs=1e-9)
        assert sum(part.value for part in explanation.parts) == pytest.approx(explanation.logit, abs=1e-9)
        spread = sum(abs(word.value) for word in explanation.words)
        assert abs(explanation.rounding) < (1e-5 if precise else 0.05) * max(spread, 1.0)
        wanted = state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)
        assert [word.text for word in explanation.words if word.place == "state"] == wanted.split()


def test_the_residual_stream_begins_before_the_first_block(loaded: Callable[..., LLM]) -> None:
    blocks = [f"blocks.{layer}.residual" for layer in range(6)]
    assert residual_points(loaded("laya")) == ["embed.norm", *blocks]


def test_a_state_with_the_text_of_the_mark_keeps_its_place(loaded: Callable[..., LLM]) -> None:
    _, found, _ = asked(loaded("laya"), "angry", "it [MASK]is late")
    assert [word.text for word in found.words if word.place == "state"] == ["it", "is", "late"]
    assert [word.text for word in found.words if word.place == "question"] == ["Angry?"]


def test_edited_decisions_are_explained_with_their_edits(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    _, plain, _ = asked(llm, "team")
    for layer in (1, 4):  # of the encoder, and of the decision blocks
        decision, found, _ = asked(llm, "team", edits=[ablate(f"blocks.{layer}.attention.heads")])
        score = dict(zip(decision.probabilities, decision.scores))
        assert found.logit == score[found.option] - score[found.against] != plain.logit
        assert found.total == pytest.approx(found.logit, abs=1e-9)
        assert [part.value for part in found.parts if part.layer == layer and part.kind == "head"] == [0.0] * 4
    _, found, _ = asked(llm, "team", edits=[scale("decision.norm", 2.0)])
    edited = next(part for part in found.parts if part.kind == "edit")
    assert edited.name == "decision.norm.edit"
    of_encoder = [one.value for one in found.parts if one.layer in range(4) or one.kind == "embedding"]
    types = next(one.value for one in found.parts if one.name == "decision.types")
    assert edited.value == pytest.approx(sum(of_encoder) - types, abs=1e-5)  # twice what the encoder adds
    assert found.total == pytest.approx(found.logit, abs=1e-9)
    with pytest.raises(InvalidRequest, match=r"remove the edit of output\.1, or leave explain out$"):
        asked(llm, "team", edits=[scale("output.1", 2.0)])
