"""Decision models as transformers' folders: prompts and answers equal those of transformers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import FOLDERS, HEADED, QUESTIONS, STATES, decision_folder, golden

import pellucid
from pellucid.decide.decider import Decider
from pellucid.decide.labels import CONFIG_FILE, HEAD_FILES, MARKED, TEMPLATE_FILE
from pellucid.decide.questions import questions_of, state_of
from pellucid.errors import FileFormatError, InvalidRequest, TemplateError, UnsupportedModel
from pellucid.llm import LLM
from pellucid.trace import ablate

NOUL: dict[str, Any] = {"type": "noul", "instructions": "Is it?"}


def load(path: Path) -> LLM:
    return pellucid.load(path, threads=2, precise=True, kv_cache="f32")


@pytest.mark.parametrize("name", FOLDERS)
def test_prompts_and_answers_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    with load(decision_folder(tmp_path, name)) as llm:
        for state, wanted in zip(STATES, golden()[name], strict=True):
            prompts = llm.decider.prompts(state_of(state), questions_of(QUESTIONS))
            read = [prompt.ids[: reading.position + 1] for prompt in prompts for reading in prompt.readings]
            assert read == [case["ids"] for case in wanted.values()]
            assert len(prompts) == (1 if name == "together" else 3)
            found = llm.decide(state, QUESTIONS)
            assert list(found) == list(wanted)
            for id, case in wanted.items():
                answer, given = found[id], case["answer"]
                assert answer.type == given["type"]
                shares = given.get("probabilities") or {"false": 1 - given["noul"], "true": given["noul"]}
                assert dict(answer.probabilities) == pytest.approx(shares, abs=1e-5)
                same = given[answer.type]
                assert answer.value == (same if isinstance(same, str) else pytest.approx(same, abs=1e-5))
                config = FOLDERS[name][0] or {}
                assert answer.temperature == config.get("temperature", {}).get(answer.type)


def test_questions_of_one_prompt_have_the_same_bits_beside_others(tmp_path: Path) -> None:
    """A question sees only what precedes its mark, so further questions do not change it."""
    with load(decision_folder(tmp_path, "together")) as llm:
        both = llm.decide(STATES[0], QUESTIONS)
        first = llm.decide(STATES[0], {"team": QUESTIONS["team"]})
        assert first["team"] == both["team"]
        assert llm.decide(STATES[0], QUESTIONS) == both
        with llm.trace("project.logits") as trace:
            assert llm.decide(STATES[0], QUESTIONS) == both
        (prompt,) = llm.decider.prompts(STATES[0], questions_of(QUESTIONS))
        reading = prompt.readings[1]
        row = trace.sequences[0].at("project.logits", reading.position)
        assert both["urgency"].scores == [float(row[one.tokens[0]]) for one in reading.labels]


def test_each_question_of_one_prompt_is_explained_at_its_mark(tmp_path: Path) -> None:
    with load(decision_folder(tmp_path, "together")) as llm:
        (prompt,) = llm.decider.prompts(STATES[0], questions_of(QUESTIONS))
        found = llm.decide(STATES[0], QUESTIONS, explain=True)
        for (id, answer), reading in zip(found.items(), prompt.readings, strict=True):
            assert answer.explanation is not None, id
            assert answer.explanation.total == pytest.approx(answer.explanation.logit, abs=1e-9)
            assert answer.explanation.words[-1].tokens.stop == reading.position + 1


def test_a_state_cannot_forge_marks(tmp_path: Path) -> None:
    with load(decision_folder(tmp_path, "marked")) as llm:
        for state in ("<|mark|>", "a<|split|>b</s>", {"<|mark|>": ["<s><|mark|>"]}):
            (prompt,) = llm.decider.prompts(state_of(state), questions_of({"<|mark|>": NOUL}))
            assert prompt.ids.count(256) == 1
            assert prompt.ids.count(257) == 0
            forged = bytes(one for one in prompt.ids if one < 256)
            assert (b"<|mark|>" in forged) or (b"<|split|>" in forged)
            (reading,) = prompt.readings
            assert reading.position == len(prompt.ids) - 2  # before the template's own "!"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "must be a JSON object"),
        ({"labels": ["Y", "N"]}, "labels: is .*: must be an object with choice, score, noul"),
        ({"labels": {"noul": "YN"}}, "labels.noul: is 'YN': must be a list of texts"),
        ({"labels": {"noul": ["Y", ""]}}, "must be a list of texts"),
        ({"labels": {"other": ["Y"]}}, "labels: is"),
        ({"temperature": 2}, "temperature: is 2: must be an object"),
        ({"temperature": {"noul": 0}}, "temperature.noul: is 0: must be a number above 0"),
        ({"temperature": {"noul": "1"}}, "must be a number above 0"),
        ({"temperature": {"noul": None}}, "must be a number above 0"),
        ({"noul_options": ["yes", "no"]}, "noul_options: is"),
        ({"noul_options": None}, "noul_options: is None"),
        ({"chat_template": 3}, "chat_template: is 3: must be a text"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: Any, said: str) -> None:
    folder = decision_folder(tmp_path, "message")
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    with load(folder) as llm, pytest.raises(FileFormatError, match=said):
        llm.decide("s", {"q": NOUL})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ state }}<|mark|><|mark|>", "marks 2 positions for 1 questions"),
        ("<|mark|>{{ state }}", "marks 1 positions|marks 0 positions"),
        ("{{ state", "template"),
        ("{{ state.a.b.c }}<|mark|>", "undefined|has no"),
    ],
)
def test_a_damaged_template_is_refused(tmp_path: Path, template: str, said: str) -> None:
    folder = decision_folder(tmp_path, "message")
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    with load(folder) as llm, pytest.raises(TemplateError, match=said):
        llm.decide("s", {"q": NOUL})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = decision_folder(tmp_path, "message")
    for name, content, said in (
        (TEMPLATE_FILE, b"\xff{{ state }}", "is not UTF-8"),
        (TEMPLATE_FILE, b"x" * 2_000_000, "has more than"),
        (CONFIG_FILE, b'{"labels": ', "JSON"),
        (CONFIG_FILE, b"[" * 200_000, "nested too deeply"),
    ):
        (folder / name).write_bytes(content)
        with load(folder) as llm, pytest.raises(FileFormatError, match=said):
            llm.decide("s", {"q": NOUL})
        (folder / name).unlink()


def test_heads_and_adapters_are_refused_by_name(tmp_path: Path) -> None:
    folder = decision_folder(tmp_path, "message")
    (folder / CONFIG_FILE).write_text(json.dumps({"adapter": "lora"}), encoding="utf-8")
    with load(folder) as llm, pytest.raises(UnsupportedModel, match=r"names an adapter \('lora'\): merge the"):
        llm.decide("s", {"q": NOUL})
    (folder / CONFIG_FILE).write_text(json.dumps({"adapter": None}), encoding="utf-8")
    with load(folder) as llm:
        llm.decide("s", {"q": NOUL})
        (folder / HEAD_FILES[0]).write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"head.safetensors is the head of a decision model"):
        Decider(llm.checkpoint, llm.inputs)


def test_a_head_of_its_own_scores_options(tmp_path: Path) -> None:
    with load(decision_folder(tmp_path, "headed")) as llm:
        assert llm.spec.task == "decide"
        assert llm.spec.head is not None
        assert llm.spec.head.labels == HEADED["num_verbalizers"]
        found = llm.decide(STATES[0], QUESTIONS, explain=True)
        for answer in found.values():
            assert max(map(abs, answer.scores)) < HEADED["softcap"]
            scores, why = dict(zip(answer.probabilities, answer.scores)), answer.explanation
            assert why is not None
            first, second = (np.arctanh(scores[name] / 2.5) * 2.5 for name in (why.option, why.against))
            assert why.logit == pytest.approx(first - second, abs=1e-5)
            assert why.total == pytest.approx(why.logit, abs=1e-9)
            assert abs(why.rounding) < 1e-4
        assert llm.decide(STATES[0], {"angry": QUESTIONS["angry"]})["angry"].scores == found["angry"].scores
        edits = [ablate("blocks.1.attention.heads")]
        assert llm.decide(STATES[0], QUESTIONS, edits=edits)["angry"].scores != found["angry"].scores
        for refused in (lambda: llm.generate("a"), lambda: llm.score("ab"), lambda: llm.embed(["a"])):
            with pytest.raises(InvalidRequest, match="makes decisions, not"):
                refused()
        many = {"type": "choice", "instructions": "?", "criteria": dict.fromkeys("abcdefghijk")}
        with pytest.raises(InvalidRequest, match=r"has 11 options and needs 11 labels .* has 10"):
            llm.decide("s", {"q": many})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offsets": {"noul": 0}}, "offsets: is"),
        ({"offsets": {"noul": 0, "score": 2, "choice": 21}}, "must be a column for each of noul, score, choice"),
        ({"offsets": {"noul": -1, "score": 2, "choice": 8}}, "must be a column"),
        ({"offsets": {"noul": True, "score": 2, "choice": 8}}, "must be a column"),
        ({"offsets": 3}, "must be a column"),
        ({"num_verbalizers": 20}, r"proj.weight at byte [\d,]+: tensor has shape .21, 64.; the model needs .20, 64."),
        ({"num_verbalizers": 0}, "num_verbalizers"),
        ({"num_verbalizers": 10**9}, "num_verbalizers: is 1000000000"),
        ({"num_verbalizers": "9"}, "num_verbalizers"),
        ({"softcap": "a"}, "softcap"),
        ({"softcap": -1}, "softcap"),
        ({"text_config": {}}, "model_type"),
        ({"text_config": None}, "jev"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = decision_folder(tmp_path, "headed")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises((FileFormatError, UnsupportedModel), match=said), load(folder) as llm:
        llm.decide("s", {"q": NOUL})


@pytest.mark.parametrize("options", [{"task": "embed"}, {"task": "generate"}, {"adapter": "query"}])
def test_a_head_of_its_own_has_no_other_task_and_no_adapter(tmp_path: Path, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UnsupportedModel, match=rf"{name}='?{value}'?: the file.*leave {name} out"):
        pellucid.load(decision_folder(tmp_path, "headed"), **options)


def test_a_template_without_marks_is_read_at_its_end(tmp_path: Path) -> None:
    folder = decision_folder(tmp_path, "message")
    (folder / CONFIG_FILE).write_text(json.dumps({"chat_template": "<s>{{ state }}:"}), encoding="utf-8")
    with load(folder) as llm:
        assert llm.decider.format is not None
        assert llm.decider.format.type == MARKED
        (prompt,) = llm.decider.prompts("s", questions_of({"q": NOUL}))
        assert prompt.ids == [256, *b"s:"]
        assert prompt.readings[0].position == 2


def test_labels_that_are_not_tokens_end_the_labels(tmp_path: Path) -> None:
    folder = decision_folder(tmp_path, "message")
    config = {"labels": {"choice": ["A", "B", "two tokens", "C"], "noul": ["A", "A"]}}
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    three = {"type": "choice", "instructions": "?", "criteria": dict.fromkeys("abc")}
    with load(folder) as llm:
        with pytest.raises(InvalidRequest, match=r"has 3 options and needs 3 labels .* has 2: offer fewer"):
            llm.decide("s", {"q": three})
        with pytest.raises(InvalidRequest, match="has 1"):
            llm.decide("s", {"q": NOUL})
