"""The size of a trace's answer is known before anything runs: a request that is too large is refused at once."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sources import LETTERS, source_model

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.serve.look import trace_reading
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.testing import random_model

TEXT = "the cat sat on the mat"
GENERATED = {"temperature": 0, "max_tokens": 5, "ignore_eos": True}
PATTERN = "blocks.0.attention.pattern"
VIEWS = [
    {"title": "all", "point": PATTERN, "pool": 7},
    {"title": "some", "point": PATTERN, "head": 1, "rows": [2, 9]},
    {"title": "none", "point": PATTERN, "rows": [99, 100], "pool": 1},
]
COMMON: list[dict[str, Any]] = [
    {"points": ["**"]},
    {"points": ["embed[tokens=2:5]"], "norms": ["blocks.*.residual"]},
    {"points": ["embed[dims=0:3; tokens=::2]", "blocks.*.attention.pattern[heads=-1; tokens=1,3]"]},
    {"points": ["blocks.*.attention.scores[keys=0:4]"], "norms": ["blocks.*.attention.pattern"]},
    {"points": ["embed[tokens=-2:]"], "views": VIEWS},
]
GENERATES: list[dict[str, Any]] = [
    *({**one, **GENERATED} for one in COMMON),
    {"points": ["embed[tokens=generated]", "project.logits[dims=3]", "sample.*", "detokenize.ids"], **GENERATED},
]
SOURCES: list[dict[str, Any]] = [
    {"points": ["**"], **GENERATED},
    {"points": ["blocks.*.cross.pattern[heads=0; keys=2:5]", "encoder.**[tokens=1:4]"], "answer": [9, 8, 7]},
    {
        "norms": ["encoder.blocks.*.residual", "blocks.*.residual"],
        "views": [{"title": "x", "point": "blocks.0.cross.pattern"}],
    },
]
MODELS: dict[str, list[dict[str, Any]]] = {
    "llama": GENERATES,
    "qwen2moe": GENERATES,
    "gemma4": GENERATES,
    "qwen3next": [{"points": ["**"], **GENERATED}, {"points": ["blocks.*.recurrent.output[tokens=3:]"]}],
    "bert": COMMON,
    "marian": SOURCES,
}

GGUF = ("qwen2moe", "gemma4", "qwen3next")


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LLM]]:
    name, folder = request.param, tmp_path_factory.mktemp("size")
    path: Path
    if name == "marian":
        path = source_model(name, folder)
    else:
        path = random_model(name, folder / "it", kind="gguf" if name in GGUF else "safetensors")
    with pellucid.load(path, threads=1) as llm:
        yield name, llm


def answer(llm: LLM, **fields: Any) -> dict[str, Any]:
    reading = TraceReading.of(TRACE.decode({"model": "it", **fields}), llm)
    for group in reading.groups:
        group.start()
        group.wait()
    return reading.answer("it", "")


def test_a_trace_is_refused_before_it_runs(model: tuple[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is exact where all tokens are generated, and a refused request computes nothing."""
    name, llm = model
    prompt = "".join(LETTERS[10:24]) if name == "marian" else TEXT
    for fields in MODELS[name]:
        fields = {"prompt": prompt, **fields}
        arrays = answer(llm, **fields)["arrays"]
        size = sum(len(base64.b64decode(one["data"])) for one in arrays.values())
        size += 4 * 4 * ("cache.prefix_hit" in arrays)  # has one value, other outputs one for each of 5 tokens
        monkeypatch.setattr(trace_reading, "MAX_ANSWER", size)
        assert answer(llm, **fields)["arrays"].keys() == arrays.keys()
        monkeypatch.setattr(trace_reading, "MAX_ANSWER", size - 1)
        steps = llm.state().steps
        with pytest.raises(InvalidRequest, match=rf"may take {size:,} bytes.*; the limit is {size - 1:,}: name fewer"):
            TraceReading.of(TRACE.decode({"model": "it", **fields}), llm)
        assert llm.state().steps == steps, fields
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"points": ["blocks.0.nothing"]}, "no point has this name"),
        ({"points": ["embed[tokens=99]"]}, "no such position"),
        ({"points": ["embed[tokens=0:2]", "embed[tokens=1]"]}, "two parts of this point"),
        ({"norms": ["embed[tokens='nowhere']"]}, "does not occur in the prompt"),
        ({"views": [{"title": "a", "point": "embed"}]}, "must be a pattern"),
        ({"points": ["embed"], "edits": [{"edit": "ablate", "point": "embed[tokens=99]"}]}, "99"),
        ({"points": ["embed"], "edits": [{"edit": "replace", "point": "embed", "values": [1, 2, 3]}]}, "values"),
    ],
)
def test_what_a_trace_cannot_record_is_refused_before_it_runs(
    model: tuple[str, LLM], fields: dict[str, Any], said: str
) -> None:
    name, llm = model
    prompt, steps = "".join(LETTERS[10:24]) if name == "marian" else TEXT, llm.state().steps
    with pytest.raises(InvalidRequest, match=said):
        TraceReading.of(TRACE.decode({"model": "it", "prompt": prompt, **fields}), llm)
    assert llm.state().steps == steps
