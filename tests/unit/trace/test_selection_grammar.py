"""Selections against NumPy indexing of the whole recorded array, and selections of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import forbid_token, mask, scale
from pellucid.trace.selection import select

PROMPT = "to see that it rains in the east"
ONE: dict[str, Any] = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("grammar") / "llama.gguf"
    random_model("llama", path, layers=2, width=64, heads=4, kv_heads=2, context=256)
    llm = pellucid.load(path, threads=2)
    yield llm
    llm.close()


ENDS = st.one_of(st.none(), st.integers(-64, 64))


@settings(max_examples=200)
@given(start=ENDS, stop=ENDS, step=st.one_of(st.none(), st.integers(1, 70)))
def test_ranges_of_dims_are_slices(llm: LLM, start: int | None, stop: int | None, step: int | None) -> None:
    written = ":".join("" if end is None else str(end) for end in (start, stop, step))
    expected = tuple(np.arange(64)[start:stop:step].tolist())
    if expected:
        (part,) = select(llm.points, [f"blocks.0.residual[dims={written}]"])
        assert part.dims == expected
    else:
        with pytest.raises(InvalidRequest, match="there are 64 dims"):
            select(llm.points, [f"blocks.0.residual[dims={written}]"])


@pytest.mark.parametrize(
    ("part", "index"),
    [
        ("heads=-1", [3]),
        ("heads=-1,0", [3, 0]),
        ("heads=::2", [0, 2]),
        ("heads=-3:-1", [1, 2]),
        ("heads=1::2", [1, 3]),
        ("heads=2:99", [2, 3]),
        ("heads=-9:2", [0, 1]),
    ],
)
def test_heads_are_indices(llm: LLM, part: str, index: list[int]) -> None:
    name = "blocks.0.attention.q"
    with llm.trace(name) as whole:
        llm.generate(PROMPT, **ONE)
    with llm.trace(f"{name}[{part}]") as trace:
        llm.generate(PROMPT, **ONE)
    assert np.array_equal(trace[name], whole[name][:, :, index])
    with llm.trace(name) as changed:
        llm.generate(PROMPT, edits=[scale(f"{name}[{part}]", 2.0)], **ONE)
    expected = whole[name].copy()
    expected[:, :, index] *= 2
    assert np.array_equal(changed[name], expected)


@pytest.mark.parametrize("part", ["heads=-5", "heads=4", "heads=2:2", "dims=16", "dims=-17"])
def test_numbers_outside_are_refused(llm: LLM, part: str) -> None:
    with pytest.raises(InvalidRequest, match="numbered from 0"):
        select(llm.points, [f"blocks.0.attention.q[{part}]"])


@pytest.mark.parametrize("keys", ["::2", "1::3", "0,3::2"])
def test_open_ranges_of_keys_with_steps(llm: LLM, keys: str) -> None:
    name = "blocks.0.attention.scores"
    with llm.trace("blocks.0.attention.pattern") as trace:
        llm.generate(PROMPT, edits=[mask(f"{name}[heads=0; tokens=-1; keys={keys}]")], **ONE)
    last = trace["blocks.0.attention.pattern"][0, 0, -1]
    hidden = np.zeros(len(last), bool)
    for one in keys.split(","):
        first, _, step = one.partition("::")
        hidden[int(first or 0) :: int(step or len(last))] = True
    assert (last[hidden] == 0).all()
    assert last.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("blocks.0.residual[tokens=99]", "tokens='99' selects position 99"),
        ("blocks.0.residual[tokens=0,99]", "tokens='0,99' selects position 99"),
        ("blocks.0.residual[tokens=generated]", "tokens='generated' selects position"),
        ("blocks.0.attention.pattern[keys=50]", "keys='50' selects position 50"),
    ],
)
def test_recordings_of_nothing_are_refused(llm: LLM, name: str, problem: str) -> None:
    count = len(llm.inputs.prompt(PROMPT))
    with pytest.raises(InvalidRequest, match=problem) as raised, llm.trace(name):
        llm.generate(PROMPT, **ONE)
    assert f"select positions below {count}" in str(raised.value)


@pytest.mark.parametrize("keys", ["2:9999", "-9999:3", "3,0"])
def test_ranges_of_keys_are_clipped(llm: LLM, keys: str) -> None:
    name = "blocks.0.attention.pattern"
    with llm.trace(name) as whole:
        llm.generate(PROMPT, **ONE)
    count = whole[name].shape[-1]
    index = np.array([3, 0]) if keys == "3,0" else np.arange(count)[slice(*map(int, keys.split(":")))]
    with llm.trace(f"{name}[keys={keys}]") as trace:
        llm.generate(PROMPT, **ONE)
    assert np.array_equal(trace[name], whole[name][..., index])
    with llm.trace(name) as changed:
        llm.generate(PROMPT, edits=[scale(f"{name}[keys={keys}]", 0.5)], **ONE)
    expected = whole[name].copy()
    expected[..., index] *= 0.5
    assert np.array_equal(changed[name], expected)


def test_each_position_of_an_edit_is_in_the_text(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="it selects position 99, and a prompt of"):
        llm.generate(PROMPT, edits=[scale("blocks.0.residual[tokens=0,99]", 2.0)], **ONE)


def test_a_recording_after_the_end_warns(llm: LLM) -> None:
    made = llm.generate(PROMPT, **{**ONE, "max_new_tokens": 12})
    how = {"temperature": 0, "max_new_tokens": 12, "stop_token_ids": [made.ids[2]]}
    count = len(llm.inputs.prompt(PROMPT))
    name = f"blocks.0.residual[tokens={count + 10}]"
    with llm.trace(name), pytest.warns(UserWarning, match="nothing was recorded: tokens="):
        llm.generate(PROMPT, **how)


def test_a_token_id_is_no_index_from_the_end() -> None:
    with pytest.raises(InvalidRequest, match="token=-1"):
        forbid_token(-1)
