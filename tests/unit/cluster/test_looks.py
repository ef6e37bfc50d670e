"""The page's requests to a server with replicas get the same answers as from a server with its own engine."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from support.replicas import ReplicaProcess, loads_from
from support.served import Served, models_folder, serving

from pellucid.cluster import wire
from pellucid.testing import random_model

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat"
HOW: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
VALUES = np.arange(64, dtype="<f4") / 100
EDITS: list[dict[str, Any]] = [
    {"edit": "ablate", "point": "blocks.0.attention.heads[heads=1]"},
    {"edit": "scale", "point": "blocks.1.feedforward.output", "factor": 2.0},
    {"edit": "add", "point": "blocks.1.residual[tokens=1]", "values": VALUES.tolist(), "factor": 0.5},
    {"edit": "replace", "point": "blocks.0.residual[tokens=0]",
     "values": base64.b64encode(VALUES.tobytes()).decode(), "shape": [64]},
]  # fmt: skip


class Servers(NamedTuple):
    """A server with its own engines, and a server with engines on replicas."""

    here: Served
    there: Served

    def both(self, method: str, path: str, **fields: Any) -> tuple[httpx.Response, httpx.Response]:
        body = None if method == "GET" else json.dumps({"model": "one", **fields})
        found = [httpx.request(method, f"{one.url}{path}", content=body, timeout=60) for one in (self.here, self.there)]
        return found[0], found[1]

    def same(self, path: str, **fields: Any) -> Any:
        """Send a request to both servers, and assert that the answers have the same bytes. Returns the answer."""
        here, there = self.both("POST", path, **fields)
        assert here.status_code == there.status_code, there.text
        assert here.content == there.content
        return here.json()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = models_folder(tmp_path_factory.mktemp("looks"))
    random_model("marian", folder / "translator", kind="safetensors")
    names = ("one", "encoder", "translator")
    with (
        ReplicaProcess(folder / "one", "one", threads=2) as one,
        ReplicaProcess(folder / "encoder", "encoder", threads=2) as encoder,
        ReplicaProcess(folder / "translator", "translator", threads=2) as translator,
        serving(folder, names=names) as here,
        serving(
            folder,
            load=loads_from(
                folder, {"one": [one.address], "encoder": [encoder.address], "translator": [translator.address]}
            ),
            names=names,
        ) as there,
    ):
        yield Servers(here, there)


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without fields that differ each time."""
    return [{k: v for k, v in one.items() if k not in ("seconds", "usage")} for one in events]


def test_the_model_is_described(servers: Servers) -> None:
    for name in ("one", "encoder"):
        here, there = servers.both("GET", f"/look/models/{name}")
        assert here.status_code == there.status_code == 200
        assert here.content == there.content
        assert here.json()["points"]
    here, there = servers.both("GET", "/look/models/nothing")
    assert (here.status_code, here.content) == (there.status_code, there.content)
    here, there = servers.both("GET", "/look/state/one")
    end = time.monotonic() + 20  # a replica reports its state periodically
    while there.json()["threads"] != 2 and time.monotonic() < end:
        here, there = servers.both("GET", "/look/state/one")
    replicas = there.json().pop("replicas")
    assert here.json().keys() == there.json().keys() - {"replicas"}
    assert there.json()["threads"] == 2
    assert [state["threads"] for state in replicas.values()] == [2] * len(replicas)
    assert replicas


def test_values(servers: Servers) -> None:
    points = ["blocks.*.attention.pattern", "blocks.*.residual[tokens=2:5]", "project.logits", "sample.top_k"]
    norms = ["blocks.*.attention.output"]
    views = [{"title": "some", "point": "blocks.0.attention.pattern", "head": 1, "rows": [3, 9], "pool": 2}]
    made = servers.same("/look/trace", prompt=PROMPT, points=points, norms=norms, views=views, **HOW)
    assert {"blocks.1.residual", "blocks.0.attention.output", "some", "project.logits"} <= set(made["arrays"])
    edited = servers.same("/look/trace", prompt=PROMPT, points=points, edits=EDITS, **HOW)
    assert edited["arrays"] != made["arrays"]
    seeded = {"temperature": 1.2, "seed": 5, "max_tokens": 8}
    servers.same("/look/trace", messages=[{"role": "user", "content": "Hi"}], points=["embed"], **seeded)
    for fields in ({"points": ["pool"], "norms": ["blocks.*.residual"]}, {"points": ["embed[dims=1,3]"]}):
        servers.same("/look/trace", model="encoder", prompt="a sentence", **fields)


def test_a_translation(servers: Servers) -> None:
    fields = {"model": "translator", "prompt": PROMPT}
    points = ["blocks.*.cross.pattern", "encoder.blocks.*.residual"]
    made = servers.same("/look/trace", **fields, answer=[5, 7], points=points, max_tokens=1)
    assert made["prompt"][1:] == [5, 7]
    assert made["source"]["ids"]
    servers.same("/look/lens", **fields, answer=[5, 7], token=9, position=2)
    servers.same("/look/beams", **fields, num_beams=2, max_tokens=4)
    values = {"points": [*points[:1], "project.logits"], "norms": ["blocks.*.residual"]}
    for more in ({}, {"answer": [5, 7]}, values, {**values, "answer": [5, 7]}):
        here, there = servers.both("POST", "/look/generate", **fields, **more, stream=False, **HOW)
        assert there.status_code == 200, there.text
        assert timeless(here.json()["events"]) == timeless(there.json()["events"])
        assert any(one["type"] == "values" for one in there.json()["events"]) is ("points" in more)


def test_an_answer_of_many_pieces(servers: Servers) -> None:
    made = servers.same("/look/trace", prompt=PROMPT * 20, points=["blocks.**"], max_tokens=1)
    assert len(str(made)) > 3 * wire.PIECE
    assert (
        "the limit is 67,108,864" in servers.same("/look/trace", prompt=PROMPT * 46, points=["**"])["error"]["message"]
    )


def test_lenses_beams_and_pieces(servers: Servers) -> None:
    ids = servers.same("/look/trace", prompt=PROMPT, points=["embed"])["prompt"]
    servers.same("/look/lens", prompt=PROMPT, top=3)
    servers.same("/look/attribution", prompt=ids, token=65, against=66, position=2)
    servers.same("/look/neighbours", words=["t", "h"], n=4)
    servers.same("/look/beams", prompt=PROMPT, num_beams=3, max_tokens=5)
    servers.same("/look/pieces", ids=ids)
    assert servers.same("/look/weights", point="blocks.1.feedforward.output", index=7)["kind"] == "linear"
    assert "no product" in servers.same("/look/weights", point="blocks.1.residual", index=7)["error"]["message"]
    servers.same("/look/tokenize", text="naïve \ud800 x")
    here, there = servers.both("POST", "/look/profile", tokens=3, depth=5)
    assert here.json().keys() == there.json().keys()
    stages = [{one["stage"] for one in answer.json()["operations"]} for answer in (here, there)]
    assert stages[0] == stages[1]


@pytest.mark.parametrize("edits", [[], EDITS[:1], EDITS])
def test_texts_with_edits(servers: Servers, edits: list[dict[str, Any]]) -> None:
    for how in (HOW, {"temperature": 1.3, "seed": 4, "max_tokens": 30}):
        here, there = servers.both(
            "POST", "/look/generate", prompt=PROMPT, alternatives=3, edits=edits, stream=False, **how
        )
        assert here.status_code == there.status_code == 200, there.text
        assert timeless(here.json()["events"]) == timeless(there.json()["events"])
        here, there = servers.both("POST", "/look/generate", prompt=PROMPT, edits=edits, **how)
        assert here.text.count("event: token") == there.text.count("event: token") > 0


@pytest.mark.parametrize("edits", [[], EDITS])
def test_values_of_a_text(servers: Servers, edits: list[dict[str, Any]]) -> None:
    points = ["blocks.*.attention.pattern[heads=1]", "blocks.0.residual", "norm"]
    fields = {"points": points, "norms": ["blocks.*.attention.output"], "edits": edits, "prompt": PROMPT}
    for how in (HOW, {"temperature": 1.3, "seed": 4, "max_tokens": 30, "prompt_lookup": False}):
        here, there = servers.both("POST", "/look/generate", stream=False, **fields, **how)
        assert here.status_code == there.status_code == 200, there.text
        assert timeless(here.json()["events"]) == timeless(there.json()["events"])
        assert sum(one["type"] == "values" for one in there.json()["events"]) > 5
        for answer in servers.both("POST", "/look/generate", **fields, **how):
            lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            kinds = [kind for kind, _ in itertools.groupby(one["type"] for one in lines)]
            assert kinds == ["prompt", *["values", "token"] * kinds.count("token"), "end"]
    wrong = {**fields, "points": ["embed[dims=1]", "embed[dims=2]"]}
    assert "two parts" in servers.both("POST", "/look/generate", **wrong)[1].json()["error"]["message"]


def test_what_is_wrong_is_named_alike(servers: Servers) -> None:
    where = "blocks.0.attention.heads[heads=1]"
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("trace", {"points": ["embed"]}),
        ("trace", {"prompt": PROMPT, "points": "embed"}),
        ("trace", {"prompt": PROMPT, "points": ["blocks.0.residul"]}),
        ("trace", {"prompt": PROMPT, "points": ["embed"], "no_such": 1}),
        ("trace", {"prompt": PROMPT, "points": ["embed"] * 65}),
        ("trace", {"prompt": PROMPT, "points": ["embed"], "max_tokens": 10**40}),
        ("pieces", {"ids": [10**30]}),
        ("lens", {"prompt": PROMPT, "points": []}),
        ("lens", {"prompt": [65] * 600}),
        ("attribution", {"prompt": PROMPT, "position": 10_000}),
        ("neighbours", {"words": []}),
        ("profile", {"tokens": 10_000}),
        ("beams", {"prompt": PROMPT, "num_beams": 99}),
        ("tokenize", {"text": "x" * 5000}),
        ("lens", {"prompt": PROMPT, "name": "x"}),
    ]
    for edit in (
        {"edit": "call", "point": where},
        {"edit": "ablate"},
        {"edit": "ablate", "point": "blocks.0.nothing"},
        {"edit": "add", "point": where, "values": "%%"},
        {"edit": "add", "point": where, "values": [1, 2, 3]},
        {"edit": "scale", "point": where, "factor": "x"},
        {"edit": "scale", "point": "sample.top_k", "factor": 2},
        {"edit": "scale", "point": "project.probabilities", "factor": 2},
        {"edit": "replace", "point": where, "values": [1e300]},
    ):
        wrong += [("trace", {"prompt": PROMPT, "edits": [edit]})]
        wrong += [("generate", {"prompt": PROMPT, "edits": [edit], "stream": True})]
    for what, fields in wrong:
        assert servers.same(f"/look/{what}", **fields)["error"]["message"]
    for raw in (b"[1]", b"{", b'{"x": ' * 500 + b"1" + b"}" * 500):
        found = [httpx.post(f"{one.url}/look/lens", content=raw) for one in servers]
        assert found[0].status_code == found[1].status_code == 400
        assert found[0].content == found[1].content


def test_work_ends_when_its_client_goes(servers: Servers) -> None:
    fleet = servers.there.llm().fleet
    body = {"model": "one", "prompt": PROMPT, "points": ["**"], "max_tokens": 900, "ignore_eos": True}
    for _ in range(8):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{servers.there.url}/look/trace", json={**body, "temperature": 1}, timeout=0.05)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        state = servers.there.llm().state()
        if not fleet.running and not state.running and not state.pages_in_use:
            break
        time.sleep(0.05)
    assert (fleet.running, state.running, state.pages_in_use) == (0, 0, 0)
    assert servers.there.unused()
