"""A listed selection keeps its written order in recordings, edits, frames and files. Duplicates are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import RecordedRun, add, replace, scale
from pellucid.trace.selection import select

PROMPT = "to see that it rains in the east"
HOW: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("order") / "moe.gguf"
    random_model("qwen2moe", path, layers=2, width=64, heads=4, kv_heads=2, context=256)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


def written(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


PARTS = (
    ("blocks.1.residual", {"dims": [40, 3, 41, 0]}),
    ("project.logits", {"dims": [70, 26, 69]}),
    ("project.probabilities", {"dims": [70, 26]}),
    ("blocks.0.attention.q", {"heads": [3, 0, 1]}),
    ("blocks.0.attention.q_rotary", {"heads": [2, 1], "dims": [5, 2]}),
    ("blocks.1.attention.pattern", {"heads": [3, 0]}),
    ("blocks.1.attention.scores", {"heads": [2, 3, 0]}),
    ("blocks.1.feedforward.router", {"dims": [6, 1]}),
    ("blocks.1.feedforward.experts", {"dims": [1, 0]}),
    ("blocks.1.feedforward.experts.hidden", {"heads": [1, 0], "dims": [9, 4]}),
)


@pytest.mark.parametrize(("name", "parts"), PARTS, ids=[name for name, _ in PARTS])
def test_a_recording_has_the_order_that_was_written(
    llm: LLM, tmp_path: Path, name: str, parts: dict[str, list[int]]
) -> None:
    asked = f"{name}[{'; '.join(f'{key}={written(numbers)}' for key, numbers in parts.items())}]"
    with llm.trace(name) as whole:
        llm.generate(PROMPT, **HOW)
    frames: list[Any] = []
    with llm.trace(asked, on=frames.append) as trace:
        llm.generate(PROMPT, prompt_lookup=False, **HOW)
    is_pattern = llm.points[name].kind in ("pattern", "scores")
    expected = whole[name]
    if "heads" in parts:
        expected = np.take(expected, parts["heads"], 1 if is_pattern else 2)
    if "dims" in parts:
        expected = expected[..., parts["dims"]]
    assert np.array_equal(trace[name], expected)
    assert np.array_equal(trace[asked], expected)
    rows = 0
    for frame in frames:
        own = expected[0, :, frame.positions.start : frame.positions.stop] if is_pattern else (
            expected[0, frame.positions.start : frame.positions.stop]
        )  # fmt: skip
        values = frame.values.swapaxes(0, 1) if is_pattern else frame.values
        assert np.array_equal(values, own[..., : values.shape[-1]])
        rows += len(frame.positions)
    assert rows == len(trace.sequences[0]), "a frame has all heads of its positions"

    run = llm.record(PROMPT, asked, **HOW)
    run.save(tmp_path / "one.run")
    opened = RecordedRun.open(tmp_path / "one.run")
    assert np.array_equal(opened[name], expected[0])
    assert {key: opened.parts[name][key] for key in parts} == parts


def test_tokens_and_keys_have_the_order_that_was_written(llm: LLM) -> None:
    pattern, asked = ("blocks.1.attention.pattern", "blocks.1.attention.pattern[heads=2; tokens=5,2:4; keys=3,0]")
    with llm.trace("embed", pattern) as whole:
        llm.generate(PROMPT, **HOW)
    with llm.trace("embed[tokens=6,generated,2:4]", asked) as trace:
        made = llm.generate(PROMPT, **HOW)
    prompt = len(llm.inputs.prompt(PROMPT))
    tokens = [6, *range(prompt, prompt + len(made.ids) - 1), 2, 3]
    assert np.array_equal(trace["embed"][0], whole["embed"][0, tokens])
    assert np.array_equal(trace[pattern][0], whole[pattern][0, 2][np.ix_([5, 2, 3], [3, 0])][None])
    (sequence,) = trace.sequences
    assert np.array_equal(sequence.at("embed", 2), whole["embed"][0, 2])
    embedded, attended = sequence.labelled()
    assert list(embedded.axes[0].labels) == tokens
    assert list(embedded.axes[0].pieces or ()) == [sequence.pieces[at] for at in tokens]
    assert [list(axis.labels) for axis in attended.axes] == [[2], [5, 2, 3], [3, 0]]


def test_rows_of_an_edit_belong_to_the_tokens_in_the_written_order(llm: LLM) -> None:
    rows = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    with llm.trace("embed") as trace:
        llm.generate(PROMPT, edits=[replace("embed[tokens=5,0:2]", rows)], **HOW)
    assert np.array_equal(trace["embed"][0, [5, 0, 1]], rows)
    with llm.trace("embed[tokens=4:,1]") as part:
        llm.generate(PROMPT, **HOW)
    with llm.trace("embed[tokens=4:,1]") as again:
        llm.generate(PROMPT, edits=[replace("embed[tokens=4:,1]", part["embed"] + 1)], **HOW)
    assert np.array_equal(again["embed"], part["embed"] + 1)


def test_rows_of_a_dataset_have_the_written_order(llm: LLM, tmp_path: Path) -> None:
    data = llm.record_dataset([PROMPT, PROMPT[:9]], "embed[tokens=3,1:3,0]", out=tmp_path / "data")
    with llm.trace("embed") as whole:
        llm.generate(PROMPT, **HOW)
    assert data.positions[:4].tolist() == [3, 1, 2, 0]
    assert np.array_equal(data["embed"][:4], whole["embed"][0, [3, 1, 2, 0]])


def test_a_recorded_run_takes_one_range_without_steps(llm: LLM) -> None:
    for tokens in ("::2", "4,3"):
        with pytest.raises(InvalidRequest, match="takes one range of positions"):
            llm.record(PROMPT, f"embed[tokens={tokens}]", **HOW)


def test_all_heads_in_another_order_are_a_part(llm: LLM) -> None:
    run = llm.record(PROMPT, "blocks.0.attention.pattern[heads=3,2,1,0]", "blocks.0.attention.v[heads=0,1]", **HOW)
    assert run.parts == {"blocks.0.attention.pattern": {"heads": [3, 2, 1, 0]}}


def test_values_of_an_edit_have_the_order_that_was_written(llm: LLM) -> None:
    last = len(llm.inputs.prompt(PROMPT)) - 1
    with llm.trace("project.logits") as trace:
        made = llm.generate(PROMPT, edits=[replace("project.logits[dims=70,26]", [99, -99])], **HOW)
    assert made.ids == [70, 70, 70]
    assert trace["project.logits"][0, last, [26, 70]].tolist() == [-99, 99]

    name = "blocks.0.attention.q"
    with llm.trace(name) as plain:
        llm.generate(PROMPT, **HOW)
    values = np.arange(2 * 16, dtype=np.float32).reshape(2, 16)
    with llm.trace(name) as changed:
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=3,1]", values)], **HOW)
    assert np.array_equal(changed[name][0, :, [3, 1]], np.repeat(values[:, None], changed[name].shape[1], 1))
    T = last + 1
    rows = np.arange(T * 2 * 2, dtype=np.float32).reshape(T, 2, 2)
    part = f"{name}[heads=2,0; dims=7,1]"
    with llm.trace(name) as changed:
        llm.generate(PROMPT, edits=[add(part, rows, 2.0)], **HOW)
    own = np.ix_(range(T), [2, 0], [7, 1])
    assert np.array_equal(changed[name][0][own], plain[name][0][own] + 2 * rows)


def test_patterns_of_an_edit_have_the_order_that_was_written(llm: LLM) -> None:
    name, T = "blocks.1.attention.pattern", len(llm.inputs.prompt(PROMPT))
    pattern = np.zeros((2, T, T), np.float32)
    pattern[0, :, 0] = 1
    pattern[1, range(T), range(T)] = 1
    with llm.trace(name) as trace:
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=3,1]", pattern)], **HOW)
    assert np.array_equal(trace[name][0, [3, 1], :T, :T], pattern)


def test_experts_of_an_edit_have_the_order_that_was_written(llm: LLM) -> None:
    name = "blocks.1.feedforward.experts.output"
    values = np.stack([np.full(64, 1.0), np.full(64, 2.0)])
    with llm.trace(name) as trace:
        llm.generate(PROMPT, edits=[replace(f"{name}[heads=1,0]", values)], **HOW)
    assert (trace[name][0, :, 0] == 2).all()
    assert (trace[name][0, :, 1] == 1).all()


@pytest.mark.parametrize(
    "part",
    ["tokens=3,3", "tokens=2:5,0,4", "dims=3,3", "dims=0:5,4", "dims=4,0:5", "dims=0:3,2:5", "heads=1,1", "heads=0:,3"],
)
def test_doubles_are_refused(llm: LLM, part: str) -> None:
    name = f"blocks.0.attention.q[{part}]"
    with pytest.raises(InvalidRequest, match=r"has \d+ twice: name each number once"), llm.trace(name):
        pass
    with pytest.raises(InvalidRequest, match="twice"):
        llm.generate(PROMPT, edits=[scale(name, 2.0)], **HOW)


def test_another_part_than_the_recorded_one_is_refused(llm: LLM) -> None:
    name = "blocks.0.attention.q"
    with llm.trace(f"{name}[heads=3,0]") as trace:
        llm.generate(PROMPT, **HOW)
    for other in ("[heads=0,3]", "[heads=3]", "[heads=3,0; tokens=1:]"):
        with pytest.raises(InvalidRequest, match="has another part of this point"):
            trace[name + other]
    assert trace[name].shape[2] == trace[f"{name}[heads=3,0]"].shape[2] == 2


@given(numbers=st.lists(st.integers(0, 63), min_size=1, max_size=60))
def test_any_list_is_kept_or_refused(numbers: list[int], llm: LLM) -> None:
    text = f"blocks.0.residual[dims={written(numbers)}]"
    if len(set(numbers)) < len(numbers):
        with pytest.raises(InvalidRequest, match="twice"):
            select(llm.points, [text])
    else:
        assert select(llm.points, [text])[0].dims == tuple(numbers)
