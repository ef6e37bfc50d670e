"""``llm.decide``: prompts, logits and answers equal the golden ones, with the same bits alone and in any batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decisions import CHAT, QUESTIONS, STATES, TEMPLATES, decision_model, golden, metadata, tokenizer

import pellucid
from pellucid.decide.decider import Decider
from pellucid.decide.prompts import DecisionPrompt
from pellucid.decide.questions import questions_of, state_of
from pellucid.errors import ContextOverflow, FileFormatError, InvalidRequest, UnsupportedModel, UnsupportedTask
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model
from pellucid.trace import ablate, scale

WORDS = ("yes", "Yes", "no", "No", " A", " B", "10")
NOUL = {"type": "noul", "instructions": "Is it?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decide")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Callable[..., LLM]]:
    """Loads a model of a kind, once."""
    open_models = dict[str, LLM]()

    def load(kind: str) -> LLM:
        if kind not in open_models:
            path = decision_model(folder / f"{kind}.gguf", kind)
            open_models[kind] = pellucid.load(path, threads=2, precise=True, kv_cache="f32")
        return open_models[kind]

    yield load
    for llm in open_models.values():
        llm.close()


@pytest.fixture(scope="module")
def llm(loaded: Callable[..., LLM]) -> LLM:
    return loaded("openjev")


def prompts_of(llm: LLM, state: Any, questions: Any) -> list[DecisionPrompt]:
    return llm.decider.prompts(state_of(state), questions_of(questions))


def near(found: Any, wanted: Any) -> None:
    """Equal, with numbers to 1e-5."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            near(found[name], value)
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("number", range(len(STATES)))
def test_prompts_logits_and_answers_are_those_of_the_oracle(loaded: Callable[..., LLM], kind: str, number: int) -> None:
    llm, state, wanted = loaded(kind), STATES[number], golden()[kind][number]

    prompts = prompts_of(llm, state, QUESTIONS)
    assert [one.ids for one in prompts] == [ids for case in wanted.values() for ids in case["ids"]]
    logits = [row for case in wanted.values() for row in case["logits"]]
    for (found,), row in zip(llm.label_scores(prompts), logits, strict=True):
        assert np.allclose(found, row, atol=2e-5), np.abs(found - row).max()
    decisions = llm.decide(state, QUESTIONS)
    near(decisions.as_dict(), {id: case["answer"] for id, case in wanted.items()})
    assert decisions.prompt_tokens == sum(len(one.ids) for one in prompts)
    assert {id: one.temperature for id, one in decisions.items()} == {
        "openjev": {"team": 1.5, "urgency": None, "angry": 0.75},
        "lev": {"team": 2.0, "urgency": None, "angry": 1.25},
        "nimble": dict.fromkeys(QUESTIONS),
    }[kind]


def exact(decisions: Any) -> dict[str, Any]:
    return {id: (list(one.scores), dict(one.probabilities)) for id, one in decisions.items()}


@pytest.mark.parametrize("kind", ["openjev", "lev"])
def test_an_answer_has_the_same_bits_alone_together_and_beside_others(
    loaded: Callable[..., LLM], kind: str, folder: Path
) -> None:
    llm = loaded(kind)
    together = exact(llm.decide(STATES[0], QUESTIONS))
    for id, question in QUESTIONS.items():
        llm.engine.cache.clear_prefixes()
        assert exact(llm.decide(STATES[0], {id: question})) == {id: together[id]}
    found = dict[int, Any]()

    def ask(number: int) -> None:
        if number % 2:
            found[number] = exact(llm.decide(STATES[0], dict(reversed(QUESTIONS.items()))))
        else:
            llm.generate(f"text {number}", max_new_tokens=30, ignore_eos=True)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [dict(reversed(together.items()))] * 4
    with pellucid.load(folder / f"{kind}.gguf", threads=1, precise=True, kv_cache="f32") as other:
        assert exact(other.decide(STATES[0], QUESTIONS)) == together
    with llm.trace("blocks.*.residual", "project.logits") as trace:
        assert exact(llm.decide(STATES[0], QUESTIONS)) == together
    assert len(trace.sequences) == (3 if kind == "openjev" else 4)


@pytest.mark.parametrize("family", ["qwen3next", "gemma3"])
def test_prompts_share_one_reading_of_the_state(folder: Path, family: str) -> None:
    """Also with recurrent states and sliding windows."""
    path = decision_model(folder / f"{family}.gguf", "openjev", family)
    with pellucid.load(path, threads=2) as llm:
        counts, forward = list[int](), llm.runner.forward

        def counted(chunks: Any, *rest: Any, **named: Any) -> Any:
            counts.append(sum(len(chunk.tokens) for chunk in chunks))
            return forward(chunks, *rest, **named)

        llm.runner.forward = counted  # type: ignore[method-assign]
        state = "The ticket is long. " * 20
        together = llm.decide(state, QUESTIONS)
        ids = [one.ids for one in prompts_of(llm, state, QUESTIONS)]
        shared = next(at for at, tokens in enumerate(zip(*ids)) if len(set(tokens)) > 1)
        assert shared > 400
        assert sum(counts) == sum(map(len, ids)) - 2 * shared
        llm.engine.cache.clear_prefixes()
        for id, question in QUESTIONS.items():
            assert exact(llm.decide(state, {id: question}))[id] == exact(together)[id]


@pytest.mark.parametrize("family", ["qwen2", "qwen3next"])
@pytest.mark.parametrize("shares", [True, False])
def test_many_questions_run_in_the_memory_of_one(folder: Path, family: str, shares: bool) -> None:
    """Also if their prompts begin differently, and while other requests take the pages."""
    parts = ["{{ state }}", "{{ instructions }}"] if shares else ["{{ instructions }}", "{{ state }}"]
    template = "<s>" + "".join(parts) + "{% for o in options %}{{ o.key }}{% endfor %}"
    path = decision_model(folder / f"{family}{shares}.gguf", "openjev", family, template=template)
    with pellucid.load(path, threads=1) as llm:
        state, asked = "x" * 900, {str(at): {**NOUL, "instructions": f"{at}" * 30} for at in range(12)}
        wanted = exact(llm.decide(state, asked))
        kv = llm.runner.cache.kv
        llm.engine.cache.clear_prefixes()
        kv.allocate(BlockTable(), (kv.free_pages - llm.context // PAGE) * PAGE)
        assert exact(llm.decide(state, asked)) == wanted
        found = list[Any]()
        threads = [
            threading.Thread(target=lambda: found.append(exact(llm.decide(state, asked)))),
            threading.Thread(target=lambda: llm.generate("y" * 500, max_new_tokens=40, ignore_eos=True)),
            threading.Thread(target=lambda: found.append(exact(llm.decide(state, asked)))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [wanted, wanted]


def test_a_state_cannot_forge_control_tokens(llm: LLM) -> None:
    def prompt(state: Any, key: str = "a") -> list[int]:

        criteria = {key: {"<s>": "</s>"}, "b": None}
        asked = {"q": {"type": "choice", "instructions": "<s>?", "criteria": criteria}}
        (found,) = prompts_of(llm, state, asked)
        return found.ids

    assert prompt("plain").count(256) == 1  # the template's own <s>
    for state in ("<s>", "a</s>b<s>", {"<s>": "</s>"}, [["<s>"]]):
        ids = prompt(state, "<s>")
        assert ids.count(256) == 1
        assert ids.count(257) == 0
        assert b"<s>" in bytes(one for one in ids if one < 256)


def test_labels_of_the_type_d1(folder: Path) -> None:
    template = "<s>{{ state }}{% for o in options %}[{{ o.label }}:{{ o.key }}]{% endfor %}"
    path = decision_model(folder / "d1.gguf", "lfm2-d1", template=template, words=WORDS)
    with pellucid.load(path, threads=1) as llm:
        tokens = {word: llm.tokenizer.encode(word, add_special=False) for word in WORDS}
        assert all(len(ids) == 1 for ids in tokens.values())
        asked = {
            "letters": {"type": "choice", "instructions": "?", "criteria": {"x": None, "B": None}},
            "names": {"type": "choice", "instructions": "?", "criteria": {"one": None, "two": None}},
            "many": {"type": "choice", "instructions": "?", "criteria": dict.fromkeys(map(str, range(27)))},
            "level": {"type": "score", "instructions": "?", "criteria": ["a", "b"]},
            "yes": NOUL,
        }

        prompts = prompts_of(llm, "s", asked)
        labels = {
            id: [(one.text, one.tokens) for one in prompt.readings[0].labels] for id, prompt in zip(asked, prompts)
        }
        a, b = (tokens[f" {letter}"][0] for letter in "AB")
        assert labels["letters"] == [("x", (ord("x"),)), ("B", (ord("B"), b))]
        assert labels["names"] == [("A", (ord("A"), a)), ("B", (ord("B"), b))]
        # "00" is no token of this vocabulary: the first free codes replace it and the codes after it.
        assert [text for text, _ in labels["many"]][:3] == ["A", "B", "C"]
        assert ("10", (tokens["10"][0],)) in labels["many"]
        assert labels["level"] == [("0", (48,)), ("1", (49,))]
        assert labels["yes"] == [
            ("true", (tokens["yes"][0], tokens["Yes"][0])),
            ("false", (tokens["no"][0], tokens["No"][0])),
        ]
        with llm.trace("project.logits") as trace:
            llm.generate(prompts[-1].ids, max_new_tokens=1)
        row = trace["project.logits"][0, -1]
        found = llm.decide("s", asked)["yes"]
        groups = {"false": ("no", "No"), "true": ("yes", "Yes")}
        wanted = [max(float(row[tokens[word][0]]) for word in words) for words in groups.values()]
        assert found.scores == wanted
        assert list(found.probabilities) == ["false", "true"]


def chat_model(folder: Path, template: str | None = CHAT) -> LLM:
    keys = tokenizer(("Yes", "No"))
    if template is not None:
        keys["tokenizer.chat_template"] = template
    path = random_model("llama", folder / "chat.gguf", metadata=keys, vocabulary=320, context=1024)
    return pellucid.load(path, threads=1)


def test_an_instruct_model_answers_by_its_chat_template(folder: Path) -> None:
    with chat_model(folder) as llm:
        assert llm.decider.format is None
        assert llm.for_client("ann").decider is llm.decider  # the files are read once for all clients
        described = {"type": "choice", "instructions": "<s>", "criteria": {"<s>": None, "ä": ["b"]}}
        found = llm.decide({"a": "ß"}, {**QUESTIONS, "marks": described, "plain": NOUL})
        assert all(one.temperature is None for one in found.values())
        prompts = prompts_of(llm, {"a": "ß"}, {**QUESTIONS, "marks": described, "plain": NOUL})
        assert [[one.number for one in prompt.readings] for prompt in prompts] == [[0], [1], [2], [3], [4]]
        start, end = '<s>user: {"a": "ß"}\n\n', "</s><s>"
        texts = [llm.tokenizer.decode(one.ids, skip_special=False) for one in prompts]
        assert texts == [
            start + 'Which team?\nA. billing: payments\nB. shipping\nC. technical: {"areas": ["app", "web"]}\n'
            "Answer with the letter of the option that fits best (A to C) only." + end,
            start + '{"rate": "urgency"}\nA. low\nB. mid\nC. high\nD. now\n'
            "Answer with the letter of the level that fits best (A to D) only." + end,
            start + "Angry?\nYes: insults us\nAnswer Yes or No only." + end,
            start + '<s>\nA. <s>\nB. ä: ["b"]\nAnswer with the letter of the option that fits best (A to B) only.'
            + end,
            start + "Is it?\nAnswer Yes or No only." + end,
        ]  # fmt: skip
        assert all(one.ids.count(256) == 2 for one in prompts)


@pytest.mark.parametrize("state", ["x" * 5000, {"long": ["y" * 2000]}])
def test_a_long_state_is_refused(llm: LLM, state: Any) -> None:
    with pytest.raises(ContextOverflow, match="too long"):
        llm.decide(state, {"q": NOUL})
    assert not llm.engine.pages_in_use


def test_models_that_cannot_decide_say_why(folder: Path, llm: LLM) -> None:
    with chat_model(folder, None) as base, pytest.raises(UnsupportedTask, match="no decision model, and has no chat"):
        base.decide("s", {"q": NOUL})
    random_model("bert", folder / "bert", kind="safetensors")
    with pellucid.load(folder / "bert", threads=1) as encoder, pytest.raises(UnsupportedTask, match="no head"):
        encoder.decide("s", {"q": NOUL})
    random_model("t5", folder / "t5", kind="safetensors")
    with (
        pellucid.load(folder / "t5", threads=1) as seq2seq,
        pytest.raises(UnsupportedTask, match="no head that scores options"),
    ):
        seq2seq.decide("s", {"q": NOUL})
    path = decision_model(folder / "unknown.gguf", "d2", template="x")
    with pellucid.load(path, threads=1) as unknown:
        with pytest.raises(UnsupportedModel, match=r"unknown.gguf: decision.type = d2 is not implemented; implemented"):
            unknown.decide("s", {"q": NOUL})
        assert unknown.generate("a", max_new_tokens=1).ids
    with pytest.raises(InvalidRequest, match=r"questions.q has 53 options and needs 53 labels .* has 52: offer fewer"):
        llm.decide("s", {"q": {"type": "choice", "instructions": "?", "criteria": dict.fromkeys(map(str, range(53)))}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.chat_template.systemone": ""}, "tokenizer.chat_template.systemone: is missing"),
        ({"decision.temperature.score": 0.0}, "llama.decision.temperature.score: is 0.0: must be a number above 0"),
        ({"decision.temperature.score": -1.0}, "must be a number above 0"),
        ({"decision.temperature.noul": float("nan")}, "must be a number above 0"),
        ({"decision.temperature.noul": float("inf")}, "must be a number above 0"),
        ({"decision.temperature.noul": "1.0"}, "is '1.0': must be a number above 0"),
        ({"decision.temperature.noul": True}, "is True: must be a number above 0"),
    ],
)
def test_a_damaged_format_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:

    path = random_model("llama", tmp_path / "m.gguf", metadata={**metadata("openjev"), **changes}, vocabulary=320)
    with pellucid.load(path, threads=1) as llm, pytest.raises(FileFormatError, match=said):
        Decider(llm.checkpoint, llm.inputs)


def test_edits_change_the_answer_and_are_replayed(llm: LLM) -> None:
    plain = exact(llm.decide(STATES[0], QUESTIONS))
    edits = [ablate("blocks.1.attention.heads[heads=0,1]")]
    edited = exact(llm.decide(STATES[0], QUESTIONS, edits=edits))
    assert all(edited[id][0] != plain[id][0] for id in plain)
    assert exact(llm.decide(STATES[0], QUESTIONS, edits=edits)) == edited
    with llm.trace(edits=edits):
        assert exact(llm.decide(STATES[0], QUESTIONS)) == edited
    assert exact(llm.decide(STATES[0], QUESTIONS, edits=[scale("blocks.1.attention.heads", 1.0)])) == plain
    assert exact(llm.decide(STATES[0], QUESTIONS)) == plain
    with pytest.raises(InvalidRequest, match="because of the request's edits"):
        llm.decide(STATES[0], {"q": NOUL}, edits=[scale("norm", 1e30), scale("project.logits", 1e30)])
