"""Responses that the server remembers for equal requests of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support.served import Served, models_folder, serving

from pellucid.serve import response_store
from pellucid.serve.apis import look
from pellucid.serve.guard import AccessRules
from pellucid.serve.look.queries import QUERIES
from pellucid.serve.response_store import RememberedResponses

HOW = {"prompt": "the cat sat on the mat", "temperature": 1, "max_tokens": 6, "ignore_eos": True, "remembered": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models_folder(tmp_path_factory.mktemp("remembered")), AccessRules(keys=["one", "other"])) as found:
        yield found


def asked(served: Served, what: str, key: str = "one", model: str = "one", **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{served.url}/look/{what}", json={"model": model, **fields}, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def seed_of(answer: httpx.Response) -> str:
    """The seed in the last event of a stream, which no other run has."""
    *_, end = (json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: "))
    assert end["type"] == "end"
    return str(end["seed"])


@pytest.mark.parametrize("points", [(), ("blocks.0.residual",)])
def test_an_equal_request_gets_the_same_bytes(served: Served, points: tuple[str, ...]) -> None:
    first, second = (asked(served, "generate", points=points, **HOW) for _ in range(2))
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    trace = {"points": ["blocks.0.residual"], "prompt": HOW["prompt"], "temperature": 1, "remembered": True}
    assert asked(served, "trace", **trace).content == asked(served, "trace", **trace).content


def test_only_a_request_that_asks_for_it_gets_a_remembered_run(served: Served) -> None:
    seeds = [seed_of(asked(served, "generate", **HOW | {"remembered": False})) for _ in range(2)]
    seeds.append(seed_of(asked(served, "generate", **HOW)))
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("other", [{"key": "other"}, {"model": "two"}, {"max_tokens": 5}])
def test_another_key_model_or_body_gets_a_run_of_its_own(served: Served, other: dict[str, Any]) -> None:
    assert seed_of(asked(served, "generate", **HOW)) != seed_of(asked(served, "generate", **{**HOW, **other}))


def test_a_client_that_leaves_early_leaves_nothing_behind(served: Served) -> None:
    body = {"model": "one", **HOW, "max_tokens": 400}
    headers = {"Authorization": "Bearer one"}
    with httpx.stream("POST", f"{served.url}/look/generate", json=body, headers=headers) as answer:
        next(answer.iter_lines())
    whole, again = (asked(served, "generate", **body) for _ in range(2))
    assert whole.text.count('"type": "token"') == 400
    assert whole.content == again.content


def test_a_stream_above_the_limit_is_whole_and_not_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (look, response_store):
        monkeypatch.setattr(module, "MOST_REMEMBERED", 2000)
    body = {**HOW, "max_tokens": 40}
    first, second = (asked(served, "generate", **body) for _ in range(2))
    assert first.text.count('"type": "token"') == second.text.count('"type": "token"') == 40
    assert seed_of(first) != seed_of(second)


def test_queries_run_once_and_measurements_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[str]()
    for kind in ("lens", "profile"):
        query = QUERIES[kind]

        def counted(body: Any, llm: Any, kind: str = kind, run: Any = query.run) -> dict[str, Any]:
            runs.append(kind)
            return dict(run(body, llm))

        monkeypatch.setitem(QUERIES, kind, replace(query, run=counted))  # type: ignore[arg-type]
    for fields in ({"prompt": "a text of three"}, {"prompt": "a text of three"}, {"prompt": "another"}):
        asked(served, "lens", **fields)
        asked(served, "profile")
    assert runs.count("lens") == 2
    assert runs.count("profile") == 3


def test_the_oldest_responses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "MOST_REMEMBERED", 10)
    known = RememberedResponses()
    for name in "ab":
        known.put(name, b"1234", "text/plain")
    known.put("a", b"12", "text/plain")
    assert known.get("b") == (b"1234", "text/plain")  # the newest now
    known.put("c", b"12345", "text/plain")
    known.put("large", b"0" * 11, "text/plain")
    assert [known.get(name) is None for name in ("a", "b", "c", "large")] == [True, False, False, True]
    known.put("d", b"0" * 10, "text/plain")
    assert [known.get(name) is None for name in ("b", "c", "d")] == [True, True, False]
