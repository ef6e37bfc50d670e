"""Models that score options themselves: equal to independent float64 implementations, alone and in any batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import STATES, tokenizer
from support.loaded import models_of
from support.option_models import ASKED, CONTROL, FIRST, TEMPLATES, option_model, tensor_shapes
from support.option_oracle import Clef, Kev, Omni, clef_prompt, kev_prompt, lines, omni_prompt, options_of

import pellucid
from pellucid.decide.option_layouts import rendered
from pellucid.decide.questions import questions_of, state_of
from pellucid.errors import (
    ContextOverflow,
    FileFormatError,
    InvalidRequest,
    PellucidError,
    TemplateError,
    UnsupportedModel,
)
from pellucid.llm import LLM
from pellucid.model.decision_heads import JointHead, joint_shapes
from pellucid.testing import random_model
from pellucid.trace import ablate, attribute

KINDS = ("omni", "kev", "clef")
NOUL = {"type": "noul", "instructions": "Is it?"}
Wanted = tuple[list[list[int]], list[Any], list[np.ndarray]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LLM]]:
    """Loads a model, once, exactly or as users do."""
    with models_of(tmp_path_factory.mktemp("options"), option_model) as load:
        yield load


def wanted(kind: str, state: Any, questions: Mapping[str, Any], half: bool = False) -> Wanted:
    """The tokens of the prompts, the positions that are read, and the scores of each question."""
    if kind == "clef":
        ids, spans = clef_prompt(state, questions)
        return [ids], spans, Clef(kind, half).scores(ids, spans)
    prompt, prompts, marks, scores = omni_prompt if kind == "omni" else kev_prompt, [], [], []
    for question in questions.values():
        ids, own = prompt(state, question)
        prompts.append(ids)
        marks.append(own)
        if kind == "omni":
            scores.append(Omni(kind, half).scores(ids, question["type"])[own])
        else:
            scores.append(Kev(kind, half).scores(ids, own))
    return prompts, marks, scores


def exact(decisions: Any) -> dict[str, Any]:
    return {id: (list(one.scores), dict(one.probabilities)) for id, one in decisions.items()}


@pytest.mark.parametrize(("kind", "precise", "number"), [*product(KINDS, (True, False), range(len(STATES)))])
def test_prompts_scores_and_answers_are_those_of_the_oracle(
    loaded: Callable[..., LLM], kind: str, precise: bool, number: int
) -> None:
    llm, state = loaded(kind, precise), STATES[number]
    ids, positions, scores = wanted(kind, state, ASKED)
    prompts = llm.decider.prompts(state_of(state), questions_of(ASKED))
    assert [one.ids for one in prompts] == ids
    readings = [reading for one in prompts for reading in one.readings]
    for reading, own in zip(readings, positions, strict=True):
        if kind == "clef":
            assert reading.spans is not None
            assert (reading.spans.instructions, [*reading.spans.options]) == (own["span"], own["options"])
        else:
            assert [*reading.marks] == own
    within = (2e-5 if precise else 2e-3) * np.ptp(np.concatenate(scores))
    decisions = llm.decide(state, ASKED)
    assert decisions.prompt_tokens == sum(map(len, ids))
    for (id, question), own in zip(ASKED.items(), scores, strict=True):
        found, keys = decisions[id], [key for key, _ in options_of(question, kind)]
        by_key = dict(zip(keys, own))
        assert np.abs(np.subtract(found.scores, [by_key[key] for key in found.probabilities])).max() < within
        p = np.exp((own - own.max()) / (found.temperature or 1))
        assert found.probabilities == pytest.approx(dict(zip(keys, p / p.sum())), abs=1e-4 if precise else 5e-3)
        if question["type"] == "choice":
            assert by_key[found.value] > own.max() - 2 * within
        elif question["type"] == "noul":
            assert found.value == found.probabilities["true"]
    stated = {
        "omni": {"team": 0.8, "urgency": None, "angry": 1.25, "forged": 0.8, "many": None},
        "kev": dict.fromkeys(ASKED, 1.5),
        "clef": dict.fromkeys(ASKED),
    }
    assert {id: one.temperature for id, one in decisions.items()} == pytest.approx(stated[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_the_same_bits_alone_and_in_any_batch(loaded: Callable[..., LLM], kind: str) -> None:
    llm = loaded(kind, precise=False)
    together = exact(llm.decide(STATES[0], ASKED))
    assert exact(llm.decide(STATES[0], ASKED)) == together
    alone = {id: exact(llm.decide(STATES[0], {id: question}))[id] for id, question in ASKED.items()}
    if kind == "clef":
        assert all(alone[id] != together[id] for id in ASKED), "questions do not see each other"
    else:
        assert alone == together
    found = dict[int, Any]()

    def ask(at: int) -> None:
        found[at] = exact(llm.decide(STATES[at % 2], ASKED))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = exact(llm.decide(STATES[1], ASKED))
    assert [found[at] for at in range(6)] == [together, other] * 3
    assert other != together


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_16_bits(tmp_path: Path, kind: str) -> None:
    path = option_model(tmp_path / "half.gguf", kind, half=True)
    _, _, scores = wanted(kind, STATES[0], ASKED, half=True)
    with pellucid.load(path, threads=2, precise=True, kv_cache="f32") as llm:
        decisions = llm.decide(STATES[0], ASKED)
    for (id, question), own in zip(ASKED.items(), scores, strict=True):
        by_key = dict(zip([key for key, _ in options_of(question, kind)], own))
        wanted_scores = [by_key[key] for key in decisions[id].probabilities]
        assert np.abs(np.subtract(decisions[id].scores, wanted_scores)).max() < 2e-5 * np.ptp(np.concatenate(scores))


@pytest.mark.parametrize("kind", KINDS)
def test_edits_change_the_answer_and_are_replayed(loaded: Callable[..., LLM], kind: str) -> None:
    llm = loaded(kind)
    plain, edits = exact(llm.decide(STATES[0], ASKED)), [ablate("blocks.0.recurrent.output")]
    edited = exact(llm.decide(STATES[0], ASKED, edits=edits))
    assert all(edited[id][0] != plain[id][0] for id in plain)
    assert exact(llm.decide(STATES[0], ASKED, edits=edits)) == edited
    assert exact(llm.decide(STATES[0], ASKED)) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_contents_cannot_forge_control_tokens(loaded: Callable[..., LLM], kind: str) -> None:
    llm, names = loaded(kind), CONTROL[kind]
    every = "".join(names)
    asked: dict[str, Any] = {every: {"type": "choice", "instructions": [every], "criteria": {every: every, "b": None}}}
    plain = {"q": {"type": "choice", "instructions": "a", "criteria": {"a": "a", "b": None}}}

    def counts(state: Any, questions: Any) -> list[int]:
        (prompt,) = llm.decider.prompts(state_of(state), questions_of(questions))
        return [prompt.ids.count(FIRST + at) for at in range(len(names))]

    assert counts({every: [every]}, asked) == counts("s", plain)
    assert sum(counts("s", plain)) >= 2


def test_values_of_kev_are_lines_of_text() -> None:
    value = {"a": 1, "b": {"c": [True, None, "x\n y"], "d": {}}, "e": [[1.5, [2]], {"f": " g"}], "h": False}
    assert rendered(value) == (
        "a: 1\nb:\n  c:\n    - True\n    - \n    - x\n y\n  d:\n\ne:\n  - - 1.5\n    - - 2\n  - f:  g\nh: False"
    )
    assert rendered(value) == lines(value)
    assert rendered([" a", None]) == "- a\n- "
    assert rendered("") == rendered(None) == rendered([]) == ""


def test_long_texts_of_omni_are_cut_as_in_its_training(loaded: Callable[..., LLM]) -> None:
    llm, long = loaded("omni", precise=False), "long " * 4000
    asked = {
        "few": {"type": "choice", "instructions": long, "criteria": {"a": long, "b": long}},
        "many": {"type": "choice", "instructions": long, "criteria": {f"{at} {long[:900]}": long for at in range(40)}},
    }  # fmt: skip
    prompts = llm.decider.prompts(state_of(long), questions_of(asked))
    for prompt, question in zip(prompts, asked.values(), strict=True):
        ids, marks = omni_prompt(long, question)
        assert (prompt.ids, [*prompt.readings[0].marks]) == (ids, marks)
        assert len(ids) == 16384


def test_omni_refuses_pictures_and_sounds(loaded: Callable[..., LLM]) -> None:
    for part in ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, {"type": "input_audio"}):
        with pytest.raises(InvalidRequest, match=r"state\[0\].content.*only text") as refused:
            loaded("omni").decide([{"role": "user", "content": [part]}], {"q": NOUL})
        assert "\n" not in str(refused.value)


def test_the_questions_of_clef_are_one_prompt_with_sorted_options(loaded: Callable[..., LLM]) -> None:
    llm = loaded("clef")
    criteria = {"b": {"z": 1, "a": 2}, "a": None, "é": None, "B": None}
    asked = {"q": {"type": "choice", "instructions": {"y": 1, "x": [2]}, "criteria": criteria}, "r": NOUL}
    (prompt,) = llm.decider.prompts(state_of({"d": 1, "c": 2}), questions_of(asked))
    text = bytes(token for token in prompt.ids if token < 256).decode()
    assert '{"c":2,"d":1}' in text
    assert '{"x":[2],"y":1}' in text
    assert [part[1] for part in text.split('"option_id":')[1:5]] == ["B", "a", "b", "é"]
    assert '{"description":{"a":2,"z":1},"option_id":"b"}' in text
    assert text.index('"true"') < text.index('"false"')
    decisions = llm.decide("s", asked)
    assert [*decisions["q"].probabilities] == [*criteria]
    changed = llm.decide("s", {**asked, "r": {**NOUL, "instructions": "Is it not?"}})
    assert changed["q"].scores != decisions["q"].scores


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_too_long_is_refused(tmp_path: Path, kind: str) -> None:
    path = option_model(tmp_path / "m.gguf", kind, context_length=256)
    with pellucid.load(path, threads=1) as llm:
        (prompt,) = llm.decider.prompts("s", questions_of({"q": NOUL}))
        room = 256 - len(prompt.ids) + 1
        assert llm.decide("s" * room, {"q": NOUL}).prompt_tokens == 256
        with pytest.raises(ContextOverflow, match=r"too long: 257 tokens; the context is 256: shorten"):
            llm.decide("s" * (room + 1), {"q": NOUL})


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_sum_to_the_difference(loaded: Callable[..., LLM], kind: str) -> None:
    llm = loaded(kind)
    if kind != "omni":
        with pytest.raises(InvalidRequest, match=r"scores options by products of vectors.*: leave explain out"):
            llm.decide("s", {"q": NOUL}, explain=True)
        return
    for decision in llm.decide("late again", ASKED, explain=True).answers.values():
        found = decision.explanation
        assert found is not None
        scores = sorted(decision.scores, reverse=True)
        assert found.logit == pytest.approx(scores[0] - scores[1], abs=1e-5)
        words = sum(word.value for word in found.words)
        assert words + found.constant + found.rounding == pytest.approx(found.logit, abs=1e-9)
        assert abs(found.rounding) < 1e-2 * max(1, max(abs(word.value) for word in found.words))
        assert {"late", "again"} <= {word.text for word in found.words}


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_make_nothing_but_decisions(loaded: Callable[..., LLM], kind: str) -> None:
    llm = loaded(kind)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: llm.generate("s"), "makes decisions, not text: use decide"),
        (lambda: llm.embed(["s"]), "makes decisions, not sentence vectors"),
        (lambda: attribute(llm, "s"), "has no logits"),
    ]
    for call, said in calls:
        with pytest.raises(InvalidRequest, match=said) as refused:
            call()
        assert "\n" not in str(refused.value)


TOKENS = "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template.systemone"
UNNAMED = [*tokenizer()[TOKENS][:FIRST], *(f"<unused{at}>" for at in range(320 - FIRST))]
"""The tokens without the control tokens of a type."""


@pytest.mark.parametrize(
    ("kind", "changes", "error", "said"),
    [
        ("omni", {"decision.block_count": None}, FileFormatError, "decision.block_count: missing; it must be"),
        ("omni", {"attention.causal": None}, FileFormatError, "attention.causal: is true; it must be false"),
        ("omni", {"decision.type": "laya"}, UnsupportedModel, "type 'laya' .* implemented is lfm2-d1-omni"),
        ("omni", {"attention.layer_norm_epsilon": None}, FileFormatError, "layer_norm_epsilon: missing"),
        (
            "omni",
            {"attention.head_count_kv": np.array([0, 2, 0, 4, 2], np.int32)},
            FileFormatError,
            "head_count_kv: is .* the 2 decision blocks must have 4",
        ),
        ("omni", {"tokenizer.ggml.mask_token_id": None}, FileFormatError, "mask_token_id: is missing"),
        ("omni", {TEMPLATE: "{{ sep }}x"}, TemplateError, "must write the state as a piece"),
        ("omni", {TEMPLATE: "x{{ sep }}{{ mark_state }}"}, TemplateError, "must write the state as a piece"),
        (
            "omni",
            {TEMPLATE: "{{ sep }}{{ mark_state }}{{ sep }}{{ mark_state }}"},
            TemplateError,
            "writes more than one state",
        ),
        ("omni", {TEMPLATE: "{{ sep }}x{{ mark_option }}"}, TemplateError, "'?<<d1omni:option>>'? inside a piece"),
        ("omni", {TEMPLATE: "{{ sep }}{{ mark_state }}x"}, InvalidRequest, "2 options, of which 0 fit into the 16,384"),
        ("kev", {"without": "cls.output.weight"}, FileFormatError, "cls.output.weight: tensor missing"),
        ("kev", {"embedding_length_out": 64}, FileFormatError, "embedding_length_out: is 64; it must be 48"),
        (
            "kev",
            {"resized": "cls.output.weight", "embedding_length_out": 47},
            FileFormatError,
            "embedding_length_out: is 47; it must be even",
        ),
        ("kev", {"attention.causal": False}, FileFormatError, "attention.causal: is false; it must be true"),
        ("kev", {TOKENS: [*UNNAMED]}, FileFormatError, r"has no control token <\|box_end\|>: the prompt needs it"),
        ("kev", {TEMPLATE: "<|box_end|>"}, TemplateError, "ends 1 of 2 options"),
        ("kev", {TEMPLATE: "<|box_end|><|box_end|>"}, TemplateError, "and another token after the last"),
        ("clef", {"decision.head_count": 5}, FileFormatError, "decision.head_count: is 5, which does not divide"),
        ("clef", {"decision.block_count": None}, FileFormatError, "decision.block_count: missing"),
        ("clef", {"decision.block_count": 3}, FileFormatError, "dec.blk.4.*: tensor missing; the decision head needs"),
        ("clef", {"attention.layer_norm_epsilon": None}, FileFormatError, "layer_norm_epsilon: missing"),
        ("clef", {"without": "decision.scales"}, FileFormatError, "decision.scales: tensor missing"),
        ("clef", {"without": "decision.proj_memory.weight"}, FileFormatError, "proj_memory.weight: matrix missing"),
        (
            "clef",
            {"resized": "decision.scorer.weight"},
            FileFormatError,
            r"decision.scorer.weight at byte .*: tensor has shape \(31, 128\); the decision head needs \(32, 128\)",
        ),
        ("clef", {"decision.type": None}, UnsupportedModel, "not used by the implementation of the family"),
        ("clef", {TEMPLATE: "{{ sep }}{{ mark_option }}x"}, TemplateError, "an option before the first question"),
        ("clef", {TEMPLATE: "{{ sep }}{{ mark_question }}x"}, TemplateError, "marks 1 questions of 1, or not all"),
        (
            "clef",
            {TEMPLATE: "{{ sep }}{{ mark_question }}"},
            InvalidRequest,
            "instructions and the options of a question must not be empty",
        ),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], error: type[PellucidError], said: str
) -> None:
    path = option_model(tmp_path / "m.gguf", kind, **changes)
    with pytest.raises(error, match=said) as refused, pellucid.load(path, threads=1) as llm:
        llm.decide("s", {"q": NOUL})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "part"), [("laya", "modern-bert with decision blocks"), ("lfm2-d1-omni", "lfm2 with decision blocks")]
)
def test_other_architectures_are_refused(tmp_path: Path, kind: str, part: str) -> None:
    keys = {**tokenizer(), "decision.type": kind, "decision.max_head_tokens": 64, TEMPLATE: TEMPLATES["omni"]}
    path = random_model("llama", tmp_path / "m.gguf", vocabulary=320, metadata=keys)
    said = f"m.gguf: decision.type = {kind} is implemented for {part}, not for the family llama"
    with pellucid.load(path, threads=1) as llm, pytest.raises(UnsupportedModel, match=said):
        llm.decide("s", {"q": NOUL})


def test_the_shapes_of_the_joint_head_are_those_of_llamacpp() -> None:
    shapes = joint_shapes(JointHead(2, 2, heads=4, width=32, inner=48, eps=1e-5), 64)
    body = tensor_shapes("clef")
    own = {name: shape for name, shape in body.items() if name.startswith(("dec.", "decision.", "token_types"))}
    assert shapes == own
