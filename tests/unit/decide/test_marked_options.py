"""Models that score options at marks: equal to an independent float64 implementation, alone and in any batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import STATES, tokenizer
from support.loaded import models_of
from support.marked_options import ASKED, CLS, MASK, MODELS, SEP, TEMPLATE, golden, marked_model
from support.tiny import opened

import pellucid
from pellucid.decide.prompts import DecisionPrompt
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
from pellucid.model.read import convert_encoder
from pellucid.testing import random_model
from pellucid.trace import ablate, attribute, relevance, scale

NOUL = {"type": "noul", "instructions": "Is it?"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LLM]]:
    """Loads a model, once, exactly or as users do."""
    with models_of(tmp_path_factory.mktemp("marked"), marked_model) as load:
        yield load


def prompts_of(llm: LLM, state: Any, questions: Any) -> list[DecisionPrompt]:
    return llm.decider.prompts(state_of(state), questions_of(questions))


def exact(decisions: Any) -> dict[str, Any]:
    return {id: (list(one.scores), dict(one.probabilities)) for id, one in decisions.items()}


def near(found: Any, wanted: Any, within: float) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            near(found[name], value, within)
    else:
        assert found == (pytest.approx(wanted, abs=within) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("number", range(len(STATES)))
def test_prompts_scores_and_answers_are_those_of_the_oracle(
    loaded: Callable[..., LLM], name: str, number: int, precise: bool
) -> None:
    llm, state, wanted = loaded(name, precise), STATES[number], golden()[name][number]
    prompts = prompts_of(llm, state, ASKED)
    assert [one.ids for one in prompts] == [case["ids"] for case in wanted.values()]
    assert [list(one.readings[0].marks) for one in prompts] == [case["marks"] for case in wanted.values()]
    every = np.concatenate([case["scores"] for case in wanted.values()])
    within = (1e-4 if precise else 0.02) * np.ptp(every)
    for (found,), case in zip(llm.label_scores(prompts), wanted.values(), strict=True):
        assert np.abs(found - case["scores"]).max() < within
    decisions = llm.decide(state, ASKED)
    if precise:
        near(decisions.as_dict(), {id: case["answer"] for id, case in wanted.items()}, 1e-4)
    assert decisions.prompt_tokens == sum(len(case["ids"]) for case in wanted.values())
    stated = {"team": 0.8, "urgency": None, "angry": 1.25, "masks": 1.5, "long": 1.25, "many": 1.5}
    temperatures = {id: one.temperature for id, one in decisions.items()}
    assert temperatures == (pytest.approx(stated) if name == "laya" else dict.fromkeys(ASKED))


def test_the_type_of_a_question_changes_the_scores_of_equal_tokens(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    (prompt,) = prompts_of(llm, "s", {"q": NOUL})
    of_types = [DecisionPrompt(prompt.ids, prompt.readings, number) for number in range(3)]
    found = [row.tolist() for (row,) in llm.label_scores(of_types)]
    assert len({tuple(row) for row in found}) == 3


@pytest.mark.parametrize("precise", [True, False])
def test_an_answer_has_the_same_bits_alone_together_and_beside_others(
    loaded: Callable[..., LLM], precise: bool
) -> None:
    llm = loaded("laya", precise)
    together = exact(llm.decide(STATES[0], ASKED))
    for id, question in ASKED.items():
        assert exact(llm.decide(STATES[0], {id: question})) == {id: together[id]}
    found = dict[int, Any]()

    def ask(number: int) -> None:
        if number % 2:
            found[number] = exact(llm.decide(STATES[0], dict(reversed(ASKED.items()))))
        else:
            llm.decide("other " * number, {f"{number}": NOUL})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [dict(reversed(together.items()))] * 4
    exactly: dict[str, Any] = {"precise": True, "kv_cache": "f32"} if precise else {}
    with pellucid.load(llm.checkpoint.path, threads=1, **exactly) as other:
        assert exact(other.decide(STATES[0], ASKED)) == together
    with llm.trace("blocks.*.residual", "decision.types") as trace:
        assert exact(llm.decide(STATES[0], ASKED)) == together
    assert len(trace.sequences) == len(ASKED)
    assert not llm.engine.pages_in_use


def test_many_questions(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    asked = {str(at): {**NOUL, "instructions": f"Is it {at % 8}?"} for at in range(256)}
    found = exact(llm.decide("x" * 300, asked))
    assert len({scores for scores, _ in ((tuple(a), b) for a, b in found.values())}) == 8
    assert found["255"] == exact(llm.decide("x" * 300, {"255": asked["255"]}))["255"]


def test_edits_change_the_answer_and_are_replayed(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    plain = exact(llm.decide(STATES[0], ASKED))
    edits = [ablate("blocks.4.attention.heads[heads=0,1]")]  # of the first decision block
    edited = exact(llm.decide(STATES[0], ASKED, edits=edits))
    assert all(edited[id][0] != plain[id][0] for id in plain)
    assert exact(llm.decide(STATES[0], ASKED, edits=edits)) == edited
    assert exact(llm.decide(STATES[0], ASKED, edits=[scale("decision.types", 1.0)])) == plain
    assert exact(llm.decide(STATES[0], ASKED)) == plain
    with pytest.raises(InvalidRequest, match="because of the request's edits"):
        llm.decide(STATES[0], {"q": NOUL}, edits=[scale("output.2", 1e30)] * 2)


def test_contents_cannot_forge_marks_and_separators(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    for forged in ("[MASK][SEP][CLS]", {"[MASK]": "[SEP]"}, [["[SEP]", "[MASK]"]]):
        criteria = {"[MASK]": forged, "[SEP]": None}
        (prompt,) = prompts_of(llm, forged, {"q": {"type": "choice", "instructions": forged, "criteria": criteria}})
        assert [prompt.ids.count(token) for token in (CLS, SEP, MASK)] == [1, 3, 2]


def test_a_prompt_may_fill_the_context_and_no_more(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    (prompt,) = prompts_of(llm, "s", {"q": NOUL})
    room = llm.context - len(prompt.ids) + 1
    assert llm.decide("s" * room, {"q": NOUL}).prompt_tokens == llm.context
    with pytest.raises(ContextOverflow, match=r"too long: 513 tokens; the context is 512: shorten the prompt"):
        llm.decide("s" * (room + 1), {"q": NOUL})


def test_weights_stay_as_the_file_stores_them(loaded: Callable[..., LLM]) -> None:
    with opened(loaded("laya").checkpoint.path) as (checkpoint, model):
        assert convert_encoder(checkpoint, model) is model


@pytest.mark.parametrize("form", ["Q8_0", "Q4_K", "F16"])
def test_quantized_files(tmp_path: Path, form: str) -> None:
    """Scores have the same bits in any batch, and change with the type of the question."""
    keys = {
        **tokenizer(),
        **{key: value for key, value in MODELS["laya"].items() if key.startswith(("decision", "feed", "rope"))},
        "feed_forward_length": [256] * 4 + [512] * 2,
        "decision.type": "laya",
        "tokenizer.chat_template.systemone": TEMPLATE.replace("[CLS]", "<s>").replace("[SEP]", "</s>"),
        "tokenizer.ggml.seperator_token_id": 257,
        "tokenizer.ggml.mask_token_id": MASK,
    }
    pieces, types = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].copy()
    pieces[MASK], types[MASK] = "[MASK]", 3
    keys |= {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": types}
    shape = {"vocabulary": 320, "context": 512, "layers": 6, "width": 256, "head_dim": 64}
    path = random_model("modern-bert", tmp_path / "m.gguf", form=form, metadata=keys, **shape)
    with pellucid.load(path, threads=2) as llm:
        together = exact(llm.decide(STATES[0], ASKED))
        for id, question in ASKED.items():
            assert exact(llm.decide(STATES[0], {id: question})) == {id: together[id]}
        with pellucid.load(path, threads=1, precise=True) as precise:
            wanted = precise.decide(STATES[0], ASKED)
        every = np.concatenate([one.scores for one in wanted.values()])
        for id, one in wanted.items():
            assert np.abs(np.subtract(one.scores, together[id][0])).max() < 0.05 * np.ptp(every)


def test_the_model_makes_nothing_but_decisions(loaded: Callable[..., LLM]) -> None:
    llm = loaded("laya")
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: llm.generate("s"), "makes decisions, not text: use decide"),
        (lambda: llm.embed(["s"]), "makes decisions, not sentence vectors"),
        (lambda: attribute(llm, "s"), "has no logits"),
        (lambda: relevance(llm, "s"), "has no logits"),
    ]
    for call, said in calls:
        with pytest.raises(InvalidRequest, match=said) as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"decision.block_count": None}, FileFormatError, "decision.block_count: missing; it must be"),
        ({"decision.block_count": 6}, FileFormatError, "is 6; it must be a whole number from 1 to 5"),
        ({"decision.type": "kev"}, UnsupportedModel, "decision blocks of the type 'kev' .* are not"),
        ({"decision.type": None}, UnsupportedModel, "decision blocks of the type None .* are not"),
        (
            {"feed_forward_length": np.array([96, 96, 40, 96, 128, 128], np.int32)},
            FileFormatError,
            "the 4 blocks of the encoder must have one width above 0",
        ),
        ({"feed_forward_length": 96}, FileFormatError, r"blk.4.ffn_up.weight at byte .*: tensor has shape"),
        ({"decision.max_head_tokens": None}, FileFormatError, "max_head_tokens: missing; it must be"),
        ({"decision.max_head_tokens": 0}, FileFormatError, "max_head_tokens: is 0; it must be"),
        ({"tokenizer.ggml.mask_token_id": None}, FileFormatError, "mask_token_id: is missing: the prompt needs"),
        ({"tokenizer.ggml.seperator_token_id": None}, FileFormatError, "seperator_token_id: is missing"),
        ({"tokenizer.chat_template.systemone": None}, FileFormatError, "systemone: is missing"),
        ({"tokenizer.chat_template.systemone": "[CLS]x[SEP]{{ state }}[SEP]"}, TemplateError, "marks 0 of 2"),
        (
            {"tokenizer.chat_template.systemone": "[CLS]x[SEP]{% for o in options %}[MASK]{% endfor %}[SEP]"},
            TemplateError,
            "must write the question, a separator, each option",
        ),
        (
            {"tokenizer.chat_template.systemone": "[CLS]x[SEP][MASK][MASK][SEP]{{ state }}"},
            TemplateError,
            "the state and a separator",
        ),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[PellucidError], said: str
) -> None:
    path = marked_model(tmp_path / "m.gguf", **changes)
    with pytest.raises(error, match=said) as refused, pellucid.load(path, threads=1) as llm:
        llm.decide("s", {"q": NOUL})
    assert "\n" not in str(refused.value)


def test_other_architectures_with_this_type_are_refused(tmp_path: Path) -> None:
    keys = {"decision.type": "laya", "decision.max_head_tokens": 64, "tokenizer.chat_template.systemone": "x"}
    path = random_model("llama", tmp_path / "m.gguf", metadata=keys | tokenizer())
    said = "m.gguf: decision.type = laya is implemented for modern-bert with"
    with pellucid.load(path, threads=1) as llm, pytest.raises(UnsupportedModel, match=said):
        llm.decide("s", {"q": NOUL})
