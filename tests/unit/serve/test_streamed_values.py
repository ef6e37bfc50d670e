"""Values in the stream of /look/generate: the bits of /look/trace, before the tokens that they lead to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.served import Served, models_folder, serving

from pellucid.serve.look import token_events
from pellucid.serve.look.token_events import StreamedValues
from pellucid.testing import random_model
from pellucid.trace.frames import TraceStream

PROMPT = "the cat sat on the mat"
HOW: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
POINTS = ["blocks.*.attention.pattern[heads=1,0]", "blocks.0.attention.scores", "blocks.1.attention.q", "norm"]
NORMS = ["blocks.*.residual", "blocks.*.attention.output", "blocks.1.attention.k", "embed[dims=3,1]"]
EDITS = [{"edit": "scale", "point": "blocks.0.residual", "factor": 2.0}]
MIXTURE = ["blocks.0.feedforward.experts", "blocks.1.feedforward.experts.hidden[heads=0]"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = models_folder(tmp_path_factory.mktemp("streamed"))
    mixture = Path(random_model("mixtral", folder / "mixture", kind="safetensors", vocabulary=320, context=512))
    (folder / "two").rename(folder / "other")
    mixture.rename(folder / "two")
    with serving(folder) as found:
        yield found


def events_of(served: Served, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "one", "prompt": PROMPT, **HOW, **fields}
    if body.get("stream", True):
        with httpx.stream("POST", f"{served.url}/look/generate", json=body, timeout=60) as answer:
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    answer = httpx.post(f"{served.url}/look/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["events"])


def refused(served: Served, **fields: Any) -> str:
    body = {"model": "one", "prompt": PROMPT, **HOW, **fields}
    answer = httpx.post(f"{served.url}/look/generate", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


def numbers(array: dict[str, Any]) -> np.ndarray:
    kind = {"int32": "<i4", "float32": "<f4"}[array["dtype"]]
    return np.frombuffer(base64.b64decode(array["data"]), kind).reshape(array["shape"])


def traced(served: Served, **fields: Any) -> dict[str, np.ndarray]:
    body = {"model": "one", "prompt": PROMPT, **HOW, **fields}
    answer = httpx.post(f"{served.url}/look/trace", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return {name: numbers(array) for name, array in answer.json()["arrays"].items()}


def rows_of(events: Sequence[dict[str, Any]], some: Sequence[str] = ()) -> dict[str, dict[int, np.ndarray]]:
    """The rows of each point by position. Checks their order: a token follows the values that it was drawn from.

    The points ``some`` have values at some positions only.
    """
    rows: dict[str, dict[int, np.ndarray]] = {}
    position = len(events[0]["ids"])
    for event in events:
        if event["type"] == "values":
            columns = numbers(event["norms"]).T if "norms" in event else []
            arrays = {name: numbers(array) for name, array in event["arrays"].items()}
            for name, values in [*arrays.items(), *zip(events[0].get("norms", []), columns)]:
                if name.endswith((".pattern", ".scores")):
                    values = values.swapaxes(0, 1)
                    assert values.shape[-1] == event["first"] + len(values)
                for at, row in enumerate(values, event["first"]):
                    assert at < position
                    if values.ndim == 1 and np.isnan(row):
                        continue
                    assert at not in rows.setdefault(name, {})
                    rows[name][at] = row[..., : at + 1] if values.ndim == 3 and "attention.p" in name else row
        elif event["type"] == "token":
            assert all(position - 1 in rows[name] for name in rows if name not in some), position
            position += 1
    return rows


def equal(rows: dict[str, dict[int, np.ndarray]], arrays: dict[str, np.ndarray]) -> None:
    """Rows have the bits of recorded arrays, at all positions."""
    assert rows.keys() == arrays.keys()
    for name, found in rows.items():
        if name.endswith((".pattern", ".scores")):
            whole = arrays[name].swapaxes(0, 1)
            assert list(found) == [*range(len(whole))]
            assert all(np.array_equal(row[:, : at + 1], whole[at, :, : at + 1]) for at, row in found.items())
            continue
        assert list(found) == [*range(len(arrays[name]))], name
        together = np.stack([*found.values()])
        assert together.dtype == arrays[name].dtype
        assert np.array_equal(together, arrays[name]), name


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("model", "more"), [("one", []), ("two", MIXTURE)])
def test_values_are_those_of_a_trace(served: Served, model: str, more: list[str], stream: bool) -> None:
    fields = {"model": model, "points": [*POINTS, *more], "norms": NORMS}
    arrays = traced(served, **fields)
    plain = events_of(served, model=model)
    for _ in range(2):  # the second request finds its prompt in the prefix cache
        events = events_of(served, stream=stream, **fields)
        equal(rows_of(events), arrays)
        tokens = [
            [{k: v for k, v in one.items() if k != "seconds"} for one in found if one["type"] == "token"]
            for found in (plain, events)
        ]
        assert tokens[0] == tokens[1]
        assert events[-1]["type"] == "end"


def test_values_beside_other_requests(served: Served) -> None:
    fields: dict[str, Any] = {"points": POINTS, "norms": NORMS, "max_tokens": 40}
    arrays = traced(served, **fields)
    over = threading.Event()

    def others(norms: list[str]) -> None:
        while not over.is_set():
            events_of(served, prompt=f"{PROMPT} and {norms}", max_tokens=50, norms=norms)

    threads = [threading.Thread(target=others, args=(norms,)) for norms in ([], NORMS, ["embed"])]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            events = events_of(served, **fields)
            equal(rows_of(events), arrays)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_values_of_an_edited_text(served: Served) -> None:
    fields: dict[str, Any] = {"points": POINTS, "norms": NORMS, "edits": EDITS}
    arrays, plain = traced(served, **fields), events_of(served, edits=EDITS)
    for _ in range(2):
        events = events_of(served, **fields)
        equal(rows_of(events), arrays)
        assert [one.get("token") for one in events if one["type"] == "token"] == [
            one.get("token") for one in plain if one["type"] == "token"
        ]
    assert not np.array_equal(arrays["norm"], traced(served, points=["norm"])["norm"])
    far = [{"edit": "ablate", "point": "blocks.0.residual[tokens=99]"}]
    assert "begins at position 99" in refused(served, **{**fields, "edits": far})


@pytest.mark.parametrize("seed", range(4))
def test_draft_tokens_leave_no_values(served: Served, seed: int) -> None:
    """The times of steps decide whether drafts are proposed; the slow reader's test has a rejected one in any case."""
    how: dict[str, Any] = {"prompt": "abcdefgh" * 20, "max_tokens": 80, "temperature": 0.2, "seed": seed}
    ids = [one["token"] for one in events_of(served, prompt_lookup=False, **how) if one["type"] == "token"]
    events = events_of(served, prompt_lookup=True, points=POINTS, norms=NORMS, **how)
    assert [one["token"] for one in events if one["type"] == "token"] == ids
    read = [*events[0]["ids"], *ids[:-1]]
    equal(rows_of(events), traced(served, prompt=read, points=POINTS, norms=NORMS, max_tokens=1))


def test_a_long_prompt_comes_in_parts(served: Served) -> None:
    fields: dict[str, Any] = {"prompt": [65 + n % 26 for n in range(900)], "max_tokens": 3}
    fields |= {"points": ["blocks.0.residual[tokens=5:]"], "norms": ["blocks.*.residual"]}
    assert "two parts of this point" in refused(served, **fields)
    fields["norms"] = ["blocks.1.residual", "embed[tokens=3:7]"]
    arrays, events = traced(served, **fields), events_of(served, **fields)
    rows = rows_of(events, ["embed"])
    for name, first in (("blocks.0.residual", 5), ("blocks.1.residual", 0), ("embed", 3)):
        assert list(rows[name]) == [*range(first, first + len(arrays[name]))]
        assert np.array_equal(np.stack([*rows[name].values()]), arrays[name]), name


def test_a_slow_reader_loses_values_and_is_told(served: Served) -> None:
    events_of(served)
    llm = served.llm()
    stream = TraceStream(llm.points, ["blocks.0.residual"], 3, norms=["embed"])
    values, width = StreamedValues(stream, 4), llm.spec.embedding.width

    def step(first: int, count: int) -> None:
        columns = np.arange(2 * width, dtype=np.float32)
        stream.put(0, "tokens", range(first, first + count), np.tile(columns, (count, 1)) + first)

    def positions(stop: int) -> list[tuple[int, dict[str, list[int]], list[int]]]:
        return [
            (one["first"], {name: array["shape"] for name, array in one["arrays"].items()}, one["norms"]["shape"])
            for one in values.events(stop)
        ]

    step(0, 4)
    assert positions(4) == [(0, {"blocks.0.residual": [4, width]}, [4, 1])]
    step(4, 3)  # two draft tokens, which are rejected
    step(5, 1)
    assert positions(5) == [(4, {"blocks.0.residual": [1, width]}, [1, 1])]
    assert positions(7) == [(5, {"blocks.0.residual": [1, width]}, [1, 1])]
    step(6, 1)
    step(7, 2)
    step(8, 3)  # three blocks wait
    step(9, 1)
    step(10, 1)
    assert [first for first, *_ in positions(11)] == [6, 7], "8, 9 and 10 may be rejected drafts"
    step(11, 1)
    assert positions(12) == [(11, {"blocks.0.residual": [1, width]}, [1, 1])]
    assert values.end() == [{"type": "dropped", "frames": 2}]
    assert stream.closed


def test_what_cannot_be_streamed_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no point has this name" in refused(served, points=["blocks.0.nothing"])
    assert "no point has this name" in refused(served, norms=["blocks.0.nothing"])
    assert "the limit is 64" in refused(served, points=["embed"] * 65)
    assert "the limit is 64" in refused(served, norms=["embed"] * 65)
    assert "is not a value of a step" in refused(served, points=["sample.entropy"])
    assert "two parts" in refused(served, points=["embed[dims=0]", "embed[dims=1]"])
    monkeypatch.setattr(token_events, "MAX_TOKEN", 511)
    width = served.llm().spec.embedding.width
    assert f"take up to {8 * width:,} bytes; the limit is 511" in refused(served, points=["blocks.*.residual"])
    pattern = ["blocks.0.attention.pattern[heads=0]"]
    assert f"take up to {4 * (len(PROMPT) + 800):,} bytes" in refused(served, points=pattern, max_tokens=800)
    assert events_of(served, norms=["blocks.*.residual"], points=pattern)[-1]["type"] == "end"


def test_nobody_else_watches_such_a_request(served: Served) -> None:
    body = {"model": "one", "prompt": PROMPT, "norms": ["embed"], **HOW, "max_tokens": 700}
    with httpx.stream("POST", f"{served.url}/look/generate", json=body, timeout=60) as answer:
        number = answer.headers["x-request-id"]
        live = httpx.get(f"{served.url}/v1/requests/{number}/trace", params={"points": "embed"})
        assert live.status_code == 400
        assert "with its own edits or trace" in live.json()["error"]["message"]
