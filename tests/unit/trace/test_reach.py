"""Edits without effect are refused or reported. Non-finite values after an edit are reported as its fault."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid
from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest, KernelError
from pellucid.llm import LLM
from pellucid.plan.points import AttentionMask
from pellucid.testing import random_model
from pellucid.trace import ablate, add, call, force_token, replace, scale
from pellucid.trace.edits import Edit

PROMPT = "to see that it rains in the east"
ONE: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("reach") / "llama.gguf"
    random_model("llama", path, layers=2, width=64, heads=4, kv_heads=2, context=1024)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def count(llm: LLM) -> int:
    return len(llm.inputs.prompt(PROMPT))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("reach") / "bert"
    random_model("bert", path, kind="safetensors", layers=2, width=32, heads=2)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


BEYOND: list[tuple[str, Callable[[str], Edit]]] = [
    ("blocks.0.residual", ablate),
    ("blocks.0.attention.heads[heads=2", lambda where: scale(where, 2.0)),
    ("blocks.1.feedforward.hidden", lambda where: add(where, 1.0)),
    ("embed", lambda where: replace(where, np.ones(64))),
    ("blocks.0.attention.q_rotary", lambda where: call(where, lambda values: values)),
    ("blocks.1.attention.pattern[heads=1", ablate),
    ("project.logits", lambda where: ablate(where, 1.0)),
    ("norm", ablate),
]


@pytest.mark.parametrize(("name", "make"), BEYOND, ids=[name for name, _ in BEYOND])
def test_a_position_that_no_text_has_is_refused(llm: LLM, count: int, name: str, make: Callable[[str], Edit]) -> None:
    def at(tokens: str) -> Edit:
        return make(f"{name}; tokens={tokens}]" if "[" in name else f"{name}[tokens={tokens}]")

    said = rf"begins at position 99, and a prompt of {count} tokens has no such position: select one below {count}"
    for run in (llm.generate, llm.score, lambda prompt, **how: llm.beam_search(prompt, max_new_tokens=1, **how)):
        how = ONE if run == llm.generate else {}
        with pytest.raises(InvalidRequest, match=said if run != llm.score else "begins at position 99"):
            run(PROMPT, edits=[at("99")], **how)
    with pytest.raises(InvalidRequest, match="begins at position 99"):
        llm.generate([PROMPT, PROMPT * 40], edits=[at("99:120")], **ONE)
    with pytest.raises(InvalidRequest, match="begins at position 99"), llm.trace(edits=[at("99")]):
        llm.generate(PROMPT, **ONE)
    with pytest.raises(InvalidRequest, match=rf"read up to position {count + 8} with its generated tokens"):
        llm.generate(PROMPT, edits=[at("99")], **{**ONE, "max_new_tokens": 10})
    assert llm.generate(PROMPT, edits=[at(str(count - 1))], **ONE).ids
    assert llm.generate(PROMPT, edits=[at(str(count + 8))], **{**ONE, "max_new_tokens": 10}).ids


def test_rows_that_no_position_takes_are_refused(llm: LLM, count: int) -> None:
    rows = np.ones((200, 64), np.float32)
    with pytest.raises(InvalidRequest, match=rf"200 rows .* too many for a prompt of {count} .* give {count} at most"):
        llm.generate(PROMPT, edits=[replace("blocks.0.residual", rows)], **ONE)
    with pytest.raises(InvalidRequest, match=rf"give {count - 3} at most"):
        llm.generate(PROMPT, edits=[add("blocks.0.residual[tokens=3:]", rows)], **ONE)
    with pytest.raises(InvalidRequest, match="7 rows of values for 3 selected positions"):
        llm.generate(PROMPT, edits=[replace("blocks.0.residual[tokens=2:5]", rows[:7])], **ONE)
    pattern = np.zeros((4, 200, 5), np.float32)
    pattern[:, :, 0] = 1
    with pytest.raises(InvalidRequest, match="200 rows"):
        llm.generate(PROMPT, edits=[replace("blocks.0.attention.pattern", pattern)], **ONE)
    with llm.trace("blocks.0.residual") as trace:
        llm.generate(PROMPT, edits=[replace("blocks.0.residual", rows[:count])], **ONE)
    assert (trace["blocks.0.residual"] == 1).all()
    few = llm.generate(PROMPT, edits=[replace("blocks.0.residual[tokens=2:9]", rows[:3])], **ONE)
    assert few.ids, "a row that is missing leaves its position unchanged"


def test_logits_are_edited_where_they_are_computed(llm: LLM, count: int) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"project.logits is computed from position {count - 1} on, and the edit ends at 3"
    ):
        llm.generate(PROMPT, edits=[force_token(70, "3")], **ONE)
    with pytest.raises(InvalidRequest, match="norm is computed from"):
        llm.generate(PROMPT, edits=[replace("norm", np.ones((4, 64)))], **ONE)
    scored = llm.generate(PROMPT, edits=[force_token(70, "3")], **ONE, prompt_logprobs=1)
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs.top_ids[3][0] == 70
    with llm.trace("project.logits[tokens=2:]") as trace:
        llm.generate(PROMPT, edits=[force_token(70, "3")], **ONE)
    assert trace["project.logits"][0, 1].argmax() == 70
    assert llm.score(PROMPT, edits=[force_token(70, "3")], top=1).logprobs.top_ids[3][0] == 70


def test_a_pattern_looks_at_what_its_position_sees(llm: LLM, count: int) -> None:
    name = "blocks.0.attention.pattern"
    ahead = np.zeros(count, np.float32)
    ahead[5] = 1
    with pytest.raises(InvalidRequest, match="position 3 attends to token 5, which comes after it: give 0 there"):
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=1; tokens=3]", ahead)], **ONE)
    with pytest.raises(InvalidRequest, match=r"position 0 attends to token 5, .*from 5 on \(tokens=5:\)"):
        llm.generate(PROMPT, edits=[add(f"{name}[heads=1]", ahead)], **ONE)
    rows = np.zeros((2, 4, count), np.float32)
    rows[1, 2, 8] = 0.5
    with pytest.raises(InvalidRequest, match="position 6 attends to token 8"):
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=0,3; tokens=4:]", rows)], **ONE)
    with llm.trace(name) as trace:
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=1; tokens=5:]", ahead)], **ONE)
    assert (trace[name][0, 1, 5:, 5] == 1).all()
    with llm.trace(name) as again:
        llm.generate(PROMPT, edits=[replace(name, trace[name])], **ONE)
    assert np.array_equal(again[name], trace[name])


def test_a_pattern_stays_in_its_window(tmp_path: Path) -> None:
    path = random_model("gemma2", tmp_path / "gemma2.gguf", layers=2, context=256)
    with pellucid.load(path, threads=2) as llm:
        point = next(one for one in llm.points.values() if one.mask and one.mask.window and one.kind == "pattern")
        assert point.mask is not None
        window = point.mask.window
        far = np.zeros(window + 5, np.float32)
        far[0] = 1
        edit = replace(f"{point.name}[heads=0; tokens={window + 3}]", far)
        with pytest.raises(InvalidRequest, match=rf"attends to token 0, which is outside its window of {window}"):
            llm.generate([65] * (window + 5), edits=[edit], **ONE)


@pytest.mark.parametrize(
    ("mask", "position", "seen"),
    [
        (AttentionMask(True, 0, False, False), 7, range(8)),
        (AttentionMask(True, 4, False, False), 7, range(4, 8)),
        (AttentionMask(True, 4, False, False), 2, range(3)),
        (AttentionMask(True, 4, True, False), 7, range(4, 8)),
        (AttentionMask(True, 4, True, False), 8, range(8, 9)),
        (AttentionMask(False, 0, False, False), 7, range(1 << 31)),
        (AttentionMask(True, 4, False, True), 7, range(1 << 31)),
    ],
)
def test_a_mask_says_what_a_position_sees(mask: AttentionMask, position: int, seen: range) -> None:
    assert mask.seen(position) == seen


def test_edits_of_sentences_reach_them(encoder: LLM) -> None:
    text = "one text"
    count = len(encoder.inputs.sentences([text])[0])
    with pytest.raises(InvalidRequest, match=f"a prompt of {count} tokens has no such position"):
        encoder.embed([text, text * 30], edits=[ablate("blocks.0.residual[tokens=50]")])
    with pytest.raises(InvalidRequest, match="pool has one value for each text: leave the tokens out"):
        encoder.embed([text], edits=[ablate("pool[tokens=1]")])
    far = np.zeros(count + 3, np.float32)
    far[-1] = 1
    with pytest.raises(InvalidRequest, match=f"it attends to token {count + 2}, .* give {count} keys at most"):
        encoder.embed([text], edits=[replace("blocks.0.attention.pattern[heads=0]", far)])
    later = np.zeros(count, np.float32)
    later[-1] = 1
    assert np.isfinite(encoder.embed([text], edits=[replace("blocks.0.attention.pattern[heads=0]", later)])).all()
    with pytest.raises(InvalidRequest, match="text 0: its outputs are not finite because of the request's edits"):
        encoder.embed([text], edits=[add("pool", 3e38), add("pool", 3e38)])


def test_a_text_that_ends_sooner_warns(llm: LLM, count: int) -> None:
    made = llm.generate(PROMPT, temperature=0, max_new_tokens=12, ignore_eos=True)
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "stop_token_ids": [made.ids[2]]}
    length = len(llm.generate(PROMPT, **how).ids)
    read = count + length - 1
    assert length < 12
    beyond = scale(f"blocks.0.residual[tokens={read}]", 1.0)
    said = f"it changed nothing: it begins at position {read}, and the text ended after {read} tokens"
    runs: list[Callable[[], Any]] = [
        lambda: llm.generate(PROMPT, edits=[beyond], **how),
        lambda: llm.samples(PROMPT, 2, edits=[beyond], **how),
        lambda: list(llm.stream(PROMPT, edits=[beyond], **how)),
        lambda: llm.record(PROMPT, edits=[beyond], **how),
        lambda: asyncio.run(llm.agenerate(PROMPT, edits=[beyond], **how)),
    ]
    for one in runs:
        with pytest.warns(UserWarning, match=said):
            one()
    searched: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 12, "early_stopping": True}
    found = llm.beam_search(PROMPT, stop_token_ids=made.ids, **searched)
    assert found.longest < 12
    beyond = scale(f"blocks.0.residual[tokens={count + found.longest - 1}]", 1.0)
    with pytest.warns(UserWarning, match="it changed nothing"):
        llm.beam_search(PROMPT, stop_token_ids=made.ids, edits=[beyond], **searched)
    rows = np.zeros((read + 2, 64), np.float32)
    with pytest.warns(UserWarning, match=f"2 of its {read + 2} rows changed nothing"):
        llm.generate(PROMPT, edits=[add("blocks.0.residual", rows)], **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.generate(PROMPT, edits=[scale(f"blocks.0.residual[tokens={read - 1}:]", 1.0)], **how)
        llm.generate(PROMPT, edits=[add("blocks.0.residual", rows[:read])], **how)


SPOILS = [
    ("blocks.0.residual", lambda: [scale("blocks.0.residual", 1e30), scale("blocks.0.feedforward.output", 1e30)]),
    ("project.logits", lambda: [add("project.logits", 3e38), add("project.logits", 3e38)]),
    ("norm", lambda: [scale("norm", 1e30), scale("norm", 1e30)]),
    ("blocks.1.attention.q", lambda: [call("blocks.1.attention.q", lambda x: x * 0 + 3e38)]),
]


@pytest.mark.parametrize(("point", "edits"), SPOILS, ids=[point for point, _ in SPOILS])
def test_numbers_that_edits_spoil_are_their_fault(llm: LLM, point: str, edits: Callable[[], list[Edit]]) -> None:
    plain = llm.generate(PROMPT, **ONE).ids
    said = r"the logit of id \d+ is (nan|inf) because of the request's edits \(.*use smaller edits"
    runs: list[Callable[[], Any]] = [
        lambda: llm.generate(PROMPT, edits=edits(), **ONE),
        lambda: llm.generate(PROMPT * 30, edits=edits(), **ONE),  # a prompt with several prefill steps
        lambda: llm.generate(PROMPT, edits=edits(), prompt_logprobs=0, **ONE),
        lambda: llm.score(PROMPT, edits=edits()),
        lambda: llm.beam_search(PROMPT, edits=edits(), num_beams=2, max_new_tokens=2),
    ]
    for run in runs:
        with pytest.raises(InvalidRequest, match=said) as raised:
            run()
        assert point in str(raised.value)
        assert "damaged" not in str(raised.value)
    groups = [llm.request(PROMPT, **ONE), llm.request(PROMPT, edits=edits(), **ONE)]
    for group in groups:
        group.start()
    with pytest.raises(InvalidRequest, match=said):
        groups[1].wait()
    groups[0].wait()
    assert groups[0].results()[0].ids == plain, "the request beside it goes on"


def test_without_edits_the_weights_are_to_blame(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = type(llm.runner).forward
    nan = np.float32("nan")
    monkeypatch.setattr(type(llm.runner), "forward", lambda self, chunks, **how: forward(self, chunks, **how) * nan)
    with pytest.raises(KernelError, match="the weights are damaged"), llm.trace("embed"):
        llm.generate(PROMPT, **ONE)
    monkeypatch.undo()
    run_together([llm.request(PROMPT, **ONE)])
