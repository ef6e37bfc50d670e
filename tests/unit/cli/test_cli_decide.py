"""``pellucid decide``: its answers equal the Python API's, and each mistake is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.decisions import QUESTIONS, STATES, decision_folder, decision_model
from support.marked_options import marked_model
from support.option_models import ARCHITECTURES, option_model

import pellucid
from pellucid.llm import LLM


def test_decide(command: Command, tmp_path: Path, encoder: str, mute: str) -> None:
    model = str(decision_model(tmp_path / "decision.gguf", "openjev"))
    state, asked = tmp_path / "state.json", tmp_path / "questions.json"
    state.write_text(json.dumps(STATES[1]), encoding="utf-8")
    asked.write_text(json.dumps(QUESTIONS), encoding="utf-8")
    with pellucid.load(model) as llm:
        wanted = llm.decide(STATES[1], QUESTIONS)
        short = {"Angry?": {"type": "noul", "instructions": "Angry?"}}
        choice = {"type": "choice", "instructions": "Which?", "criteria": {"a": "first", "b": None}}
        score = {"type": "score", "instructions": "How?", "criteria": ["low", "mid", "high"]}
        others = {"Which? [a: first | b]": choice, "How? [low < mid < high]": score}
        texts = llm.decide("a text\n", short | others)
    document = command("decide", model, "--state", str(state), "--questions", str(asked), "--json").document
    assert document == {"answers": wanted.as_dict(), "usage": {"input_tokens": wanted.prompt_tokens}}
    given = [part for text in (*short, *others) for part in ("--question", text)]
    assert command("decide", model, *given, "--json", given="a text\n").document["answers"] == texts.as_dict()
    shown = command("decide", model, *given, "--explain", given="a text\n").answer
    assert f"Which?  {texts['Which? [a: first | b]'].value} (confidence" in shown
    assert re.search(r"high +\d+\.\d %", shown)
    said = re.findall(r"why (\w+) and not (\w+):", shown)
    assert len(said) == 3
    assert [{*pair} <= names for pair, names in zip(said, ({"yes", "no"}, {"a", "b"}, {"low", "mid", "high"}))]
    assert "all words of the state add" in shown
    for arguments, said in (
        (("--question", "x?"), "the state is empty: give --state FILE"),
        (("--state", "/no/such", "--question", "x?"), "/no/such: No such file"),
        (("--state", str(state)), "no question: give --question"),
        (("--state", str(state), "--question", "x? [a | ]"), "two or more different options"),
        (("--state", str(state), "--question", "x? [a<]"), "two or more different options"),
        (("--state", str(state), "--questions", str(tmp_path)), "Is a directory"),
        (("--state", str(asked), "--questions", str(state)), "questions.ticket="),
    ):
        assert said in command("decide", model, *arguments).refusal, arguments
    state.write_text("{")
    assert "is not JSON" in command("decide", model, "--state", str(state), "--question", "x?").refusal
    assert "has no chat template" in command("decide", mute, "--question", "x?", given="s").refusal
    assert (
        "makes sentence vectors, not decisions: use pellucid embed, or load a decision model"
        in command("decide", encoder, "--question", "x?", given="s").refusal
    )


@pytest.mark.parametrize(
    "text",
    [
        "Which [a | b", "Which a | b]", "Which a | b", "Which [a | b]?", "Which [a | b] please",
        "How [a < b", "How [a < b]?", "Which [a | b [c | d]", "Which ]a | b[", "[[a | b]",
        "Which [a | b]]", "Which [a < b] [c | d]",
    ],
)  # fmt: skip
def test_options_in_incomplete_brackets_are_refused(command: Command, text: str) -> None:
    said = command("decide", "model", "--question", text, given="s").refusal
    assert "its options are not in complete brackets at the end: write it" in said


@pytest.mark.parametrize(
    "text", ["Which []", "Which [a]", "Which [a | a]", "Which [a | | b]", "How [a < a]", "How [<]"]
)
def test_other_options_than_two_or_more_are_refused(command: Command, text: str) -> None:
    said = command("decide", "model", "--question", text, given="s").refusal
    assert "must have two or more different options" in said


def test_the_type_of_a_question_follows_from_its_brackets(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {
        f" {text} ": {"type": "noul", "instructions": text}
        for text in ("Is it late?", "Is x < 5?", "Is items[0] empty?", "Is it [sic] late?")
    }
    for text, words, names in (
        ("Which? [a | b: x < 5]", "Which?", {"a": None, "b": "x < 5"}),
        ("Which [of x]? [a [1] | b [2]] ", "Which [of x]?", {"a [1]": None, "b [2]": None}),
    ):
        wanted[text] = {"type": "choice", "instructions": words, "criteria": names}
    wanted["How? [a: 1 < b]"] = {"type": "score", "instructions": "How?", "criteria": ["a: 1", "b"]}
    asked, decide = list[Any](), LLM.decide

    def recorded(llm: LLM, state: Any, questions: Any, **how: Any) -> Any:
        asked.append(questions)
        return decide(llm, state, questions, **how)

    monkeypatch.setattr(LLM, "decide", recorded)
    model = str(decision_model(tmp_path / "decision.gguf", "openjev"))
    questions = [part for text in wanted for part in ("--question", text)]
    assert command("decide", model, *questions, given="s").code == 0
    assert asked == [wanted]


def test_decision_models_with_heads_of_their_own(command: Command, tmp_path: Path) -> None:
    """Models that generate no text: a head with a column for each label, and heads that score options themselves."""
    models = [decision_folder(tmp_path / "headed", "headed"), marked_model(tmp_path / "marked.gguf")]
    models += [option_model(tmp_path / f"{kind}.gguf", kind) for kind in ARCHITECTURES]
    for model in models:
        with pellucid.load(model) as llm:
            wanted = llm.decide("s", {"Angry?": {"type": "noul", "instructions": "Angry?"}})
        asked = ("decide", str(model), "--question", "Angry?")
        assert command(*asked, "--json", given="s").document["answers"] == wanted.as_dict()
        if model.stem in ("kev", "clef"):
            assert "leave explain out" in command(*asked, "--explain", given="s").refusal
            continue
        shown = command(*asked, "--explain", given="late again").out
        assert "words of the state add" in " ".join(shown.split())
        assert {"late", "again"} <= set(shown.split())
