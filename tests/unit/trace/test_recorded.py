"""Recorded runs: saved, opened without the model, resumed from any step. Damaged files are refused."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hostile_runs import PATTERN, SHAPES, run_bytes
from support.sources import LETTERS, source_model

import pellucid
from pellucid.errors import FileFormatError, InvalidRequest, PellucidError
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import RecordedRun, scale

PROMPT = "to see that it rains"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "seed": 7, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("recorded") / "llama.gguf"
    random_model("llama", path, layers=2, context=256)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def run(llm: LLM) -> RecordedRun:
    return llm.record(PROMPT, "blocks.*.residual", "blocks.0.attention.pattern", **OPTIONS)


def test_a_run_has_what_happened(llm: LLM, run: RecordedRun) -> None:
    plain = llm.generate(PROMPT, **OPTIONS)
    assert (run.ids, run.text, run.seed) == (plain.ids, plain.text, 7)
    assert run["blocks.0.residual"].shape[0] == len(run.prompt) + len(run.ids) - 1
    assert len(run.pieces) == len(run.prompt) + len(run.ids)
    assert [step["name"] for step in run.chain] == [step.name for step in plain.chain]
    assert len(repr(run).splitlines()) == 1


def test_a_run_is_the_same_after_it_was_saved(run: RecordedRun, tmp_path: Path) -> None:
    run.save(tmp_path / "one.run")
    found = RecordedRun.open(tmp_path / "one.run")
    assert {
        name: getattr(found, name) for name in ("model", "prompt", "ids", "pieces", "text", "seed", "options", "chain")
    } == {name: getattr(run, name) for name in ("model", "prompt", "ids", "pieces", "text", "seed", "options", "chain")}
    assert list(found) == list(run)
    for name in run:
        assert np.array_equal(found[name], run[name])
    with pytest.raises(InvalidRequest, match="has no such array"):
        found["blocks.9.residual"]


@pytest.mark.parametrize("step", [0, 1, 5, 11])
def test_without_a_change_the_rest_is_the_same(llm: LLM, run: RecordedRun, tmp_path: Path, step: int) -> None:
    run.save(tmp_path / "one.run")
    opened = RecordedRun.open(tmp_path / "one.run")
    again = llm.resume(opened, step, "blocks.*.residual")
    assert (again.ids, again.text, again.seed) == (run.ids, run.text, run.seed)
    assert again["blocks.1.residual"].tobytes() == run["blocks.1.residual"].tobytes()


def test_another_token_changes_what_follows(llm: LLM, run: RecordedRun) -> None:
    other = llm.resume(run, 4, token=65)
    assert other.ids[:5] == [*run.ids[:4], 65]
    assert len(other.ids) == 12
    by_text = llm.resume(run, 4, token="A")
    assert by_text.ids[4] == llm.tokenizer.encode("A", add_special=False)[0]
    greedy = llm.resume(run, 4, temperature=0)
    expected = llm.generate([*run.prompt, *run.ids[:4]], max_new_tokens=8, temperature=0, ignore_eos=True)
    assert greedy.ids[4:] == expected.ids
    assert llm.resume(other, 5).ids == other.ids


def test_what_cannot_be_resumed(llm: LLM, run: RecordedRun, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="step=13"):
        llm.resume(run, 13)
    with pytest.raises(InvalidRequest, match="the text is 2 tokens"):
        llm.resume(run, 3, token="ab")
    with pytest.raises(InvalidRequest, match="a recorded run can hold only plain values"):
        llm.record(PROMPT, until=lambda text: True)
    random_model("llama", tmp_path / "other.gguf", layers=2, vocabulary=400)
    with pellucid.load(tmp_path / "other.gguf") as other, pytest.raises(InvalidRequest, match="load the run's model"):
        other.resume(run, 3)
    with pytest.raises(InvalidRequest, match="cannot be written"):
        run.save(tmp_path / "no" / "folder.run")


def test_the_text_is_that_of_a_generation(llm: LLM) -> None:
    plain = llm.generate(PROMPT, **OPTIONS)
    stop = plain.text[5:7]
    made = llm.generate(PROMPT, stop=[stop], **OPTIONS)
    run = llm.record(PROMPT, stop=[stop], **OPTIONS)
    assert run.text == made.text
    again = llm.resume(run, 2)
    assert (again.text, again.ids) == (made.text, made.ids)


def test_a_run_with_edits_is_resumed_with_them(llm: LLM) -> None:
    edit = scale("blocks.0.residual", 0.3)
    run = llm.record(PROMPT, edits=[edit], **OPTIONS)
    assert len(run.edits) == 1
    with pytest.raises(InvalidRequest, match="the run used"):
        llm.resume(run, 3)
    assert llm.resume(run, 3, edits=[edit]).ids == run.ids


def test_options_come_through_a_file(llm: LLM, tmp_path: Path) -> None:
    bias = {65: 3.0, 70: -100.0}
    run = llm.record(PROMPT, logit_bias=bias, max_new_tokens=None, max_time=0.05, temperature=0, ignore_eos=True)
    run.save(tmp_path / "one.run")
    opened = RecordedRun.open(tmp_path / "one.run")
    assert llm.resume(opened, 2, max_new_tokens=3).ids == run.ids[:5]
    ended = llm.record(PROMPT, **OPTIONS)
    with pytest.raises(InvalidRequest, match="the run ends at this step"):
        llm.resume(ended, len(ended.ids))
    assert ended == ended
    assert "nope" not in ended


@pytest.mark.parametrize("name", ["marian", "t5-odd", "bart"])
def test_a_translation_is_recorded_with_its_source(name: str, tmp_path: Path) -> None:
    source = "".join(LETTERS[10:40])
    points = ["blocks.*.residual", "blocks.*.cross.pattern", "encoder.blocks.*.attention.pattern"]
    with pellucid.load(source_model(name, tmp_path), threads=2) as llm:
        with llm.trace(*points) as trace:
            plain = llm.generate(source, **OPTIONS)
        (traced,) = trace.sequences
        llm.record(source, *points, **OPTIONS).save(tmp_path / "one.run")
        run = RecordedRun.open(tmp_path / "one.run")
        assert (run.ids, run.text) == (plain.ids, plain.text)
        assert (run.source, run.prompt) == (llm.tokenizer.encode(source), list(llm.spec.start))
        assert run.source_pieces == traced.source_pieces
        assert run.pieces[:-1] == traced.pieces
        for point in run:
            assert run[point].tobytes() == traced[point].tobytes()
        heads = llm.spec.blocks[0].cross.heads
        assert run["blocks.0.cross.pattern"].shape == (heads, len(run.pieces) - 1, len(run.source))
        again = llm.resume(run, 5, *points)
        assert (again.ids, again.text, again.source) == (run.ids, run.text, run.source)
        assert all(again[point].tobytes() == run[point].tobytes() for point in run)
        other = next(token for token in range(5, 40) if token != run.ids[3])
        changed = llm.resume(run, 3, token=other)
        assert changed.ids[:4] == [*run.ids[:3], other]
        expected = llm.request(source, resumed=changed.ids[:4], **{**OPTIONS, "max_new_tokens": 8})
        expected.wait()
        assert changed.ids[4:] == expected.result().ids
        assert changed.prompt == run.prompt


def test_a_run_needs_a_text_for_each_token_of_its_source(tmp_path: Path) -> None:
    with pellucid.load(source_model("marian", tmp_path), threads=2) as llm:
        run = llm.record(LETTERS[10] * 4, max_new_tokens=2, ignore_eos=True)
    replace(run, source_pieces=run.source_pieces[1:]).save(tmp_path / "one.run")
    with pytest.raises(FileFormatError, match="source_pieces: must have a text for each token"):
        RecordedRun.open(tmp_path / "one.run")


def test_damaged_files_are_refused(run: RecordedRun, tmp_path: Path) -> None:
    path = tmp_path / "one.run"
    run.save(path)
    whole, rng = path.read_bytes(), random.Random(5)
    length = int.from_bytes(whole[:8], "little")
    for _ in range(300):
        data = bytearray(whole)
        kind = rng.randrange(3)
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(8 + length)] = rng.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(PellucidError):  # any other error is a bug
            RecordedRun.open(path)
    header = json.loads(whole[8 : 8 + length])
    document = json.loads(header["__metadata__"]["pellucid.run"])
    for name, value in (
        ("version", 2),
        ("ids", ["a"]),
        ("prompt", [-1]),
        ("pieces", []),
        ("options", []),
        ("text", 5),
        ("edits", [1]),
    ):
        changed = {**header, "__metadata__": {"pellucid.run": json.dumps({**document, name: value})}}
        head = json.dumps(changed).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + length :])
        with pytest.raises(FileFormatError, match=name):
            RecordedRun.open(path)
    (tmp_path / "empty.run").write_bytes(b"")
    with pytest.raises(FileFormatError, match="is empty"):
        RecordedRun.open(tmp_path / "empty.run")


@pytest.mark.parametrize(("name", "shape"), SHAPES.values(), ids=SHAPES)
def test_shapes_that_no_run_has_are_refused(tmp_path: Path, name: str, shape: list[int]) -> None:
    path = tmp_path / "one.run"
    path.write_bytes(run_bytes({name: ("F32", shape)}))
    with pytest.raises(FileFormatError, match="shape") as raised:
        RecordedRun.open(path)
    assert len(str(raised.value)) < 400
    path.write_bytes(run_bytes({PATTERN: ("F32", [2, 0, 3]), "embed": ("F32", [3, 4])}))
    assert RecordedRun.open(path)["embed"].shape == (3, 4)


@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 4, 1 << 24, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, -1]), max_size=7)
)
def test_any_shape_is_read_or_refused(shape: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    count = np.prod([float(one) for one in shape])
    if not 0 <= count < 1 << 16:
        return
    path = tmp_path_factory.mktemp("shapes") / "one.run"
    path.write_bytes(run_bytes({"blocks.0.residual": ("F32", shape)}))
    with contextlib.suppress(FileFormatError):
        assert RecordedRun.open(path)["blocks.0.residual"].shape == tuple(shape)
