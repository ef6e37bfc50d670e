"""Authorized clients can trace a running request by its id."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from support.served import Served, models_folder, serving
from support.viewer import events_of, expected, wait_until, watched

from pellucid.serve.guard import AccessRules
from pellucid.serve.live_requests import Viewer
from pellucid.trace.frames import TraceStream

PROMPT = "to see that it rains in the east"
BODY = {"model": "one", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
# Its events fill the connection, so that the request waits for its reader.
LONG_CHAT = {
    "model": "one",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 900,
    "n": 8,
    "stream": True,
    "logprobs": True,
    "top_logprobs": 20,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as made:
        httpx.post(f"{made.url}/v1/completions", json=BODY, timeout=60)  # loads the model
        yield made


def arrays_of(events: list[tuple[str, Any]], point: str, choice: int = 0) -> dict[int, np.ndarray]:
    """Rows of a hook point by position."""
    rows = {}
    for kind, body in events:
        if kind == "values" and (body["point"], body["choice"]) == (point, choice):
            raw = np.frombuffer(base64.b64decode(body["data"]), "<f4").reshape(body["shape"])
            rows.update({body["first"] + i: row for i, row in enumerate(raw)})
    return rows


def test_a_request_is_watched_and_its_answer_does_not_change(served: Served) -> None:
    plain = httpx.post(f"{served.url}/v1/completions", json=BODY).json()
    served.llm().runner.cache.clear_prefixes()
    points = ["blocks.0.residual[dims=9,4,8]", "blocks.1.attention.pattern[heads=1,0]"]
    events, answer = watched(served, "mine-1", BODY, points=points, limit=4096)
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert answer.json()["choices"] == plain["choices"]
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "begin"
    assert kinds[-1] == "end"
    assert events[0][1]["version"] == 1
    assert [one["name"] for one in events[0][1]["points"]] == ["blocks.0.residual", "blocks.1.attention.pattern"]
    assert [one["dims"] for one in events[0][1]["points"]] == [[9, 4, 8], None]
    assert events[0][1]["points"][1]["heads"] == [1, 0]
    with served.llm().trace(*points) as trace:
        made = served.llm().generate(PROMPT, temperature=0, ignore_eos=True, max_new_tokens=24, top_p=1.0)
    tokens = [body for kind, body in events if kind == "token"]
    assert [one["id"] for one in tokens] == made.ids
    assert "".join(one["text"] for one in tokens) or made.text == ""
    assert tokens[0]["position"] == len(served.llm().inputs.prompt(PROMPT))
    rows = arrays_of(events, "blocks.0.residual")
    recorded = trace["blocks.0.residual"][0]
    assert len(rows) > 10
    for position, row in rows.items():
        if position < len(recorded):  # rejected draft tokens are computed too
            assert np.array_equal(row, recorded[position])
    patterns = arrays_of(events, "blocks.1.attention.pattern")
    for position, row in patterns.items():
        if position < len(recorded):
            own = trace["blocks.1.attention.pattern"][0, :, position]
            assert np.array_equal(row[:, : position + 1], own[:, : position + 1])
    assert events[-1][1] == {"frames_dropped": 0}


def test_the_openai_client_makes_requests_that_can_be_watched(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    events: list[tuple[str, Any]] = []
    viewer = threading.Thread(
        target=lambda: events.extend(events_of(served.url, "chat-7", points="blocks.*.residual", limit=4096))
    )
    viewer.start()
    expected(served, "chat-7")
    stream = client.chat.completions.create(
        model="one", messages=[{"role": "user", "content": "Hi"}], max_tokens=12, n=2, stream=True, seed=3,
        extra_headers={"X-Request-Id": "chat-7"}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    for _ in stream:
        pass
    viewer.join(60)
    assert {body["choice"] for kind, body in events if kind == "token"} == {0, 1}
    assert arrays_of(events, "blocks.1.residual", 0)
    assert arrays_of(events, "blocks.1.residual", 1)
    assert served.pages_in_use() == 0


def test_a_slow_viewer_loses_frames_and_is_told(served: Served) -> None:
    points = served.llm().points
    stream = TraceStream(points, ["blocks.0.residual"], limit=3)
    (probe,) = stream.recorders(1)
    for position in range(10):
        probe.take("tokens", range(position, position + 1), np.zeros((1, 64), np.float32))
    assert stream.dropped == 7
    assert [frame.positions.start for frame in stream.frames()] == [0, 1, 2]
    stream.close()
    assert probe.positions(0, 5) == range(0)
    assert list(stream.frames()) == []


def test_what_is_refused(served: Served) -> None:
    url = f"{served.url}/v1/requests"
    for path, status, problem in (
        ("none/trace?points=embed", 404, "no such request is running"),
        ("none/trace", 400, "name 1 to 64 points"),
        ("none/trace?points=embed&limit=x", 400, "limit='x'"),
        ("none/trace?points=embed&wait=1e9", 400, "wait="),
    ):
        answer = httpx.get(f"{url}/{path}")
        assert answer.status_code == status, answer.text
        assert problem in answer.json()["error"]["message"]
    other = httpx.post(f"{served.url}/v1/completions", json=BODY, headers={"X-Request-Id": "a/b=c"})
    assert other.status_code == 200  # an id that is ignored here
    assert other.headers["X-Request-Id"] != "a/b=c"
    events, answer = watched(served, "ok", BODY, points="embed")
    assert answer.status_code == 200
    assert events[-1][0] == "end"


def test_viewers_come_and_go_and_the_last_one_sees(served: Served) -> None:
    asked = f"{served.url}/v1/requests/gone/trace?points=blocks.0.residual&wait=20"
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(asked, timeout=0.3)  # a viewer that waits and disconnects
    wait_until(lambda: not served.awaited)
    headers, url = {"X-Request-Id": "gone"}, f"{served.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=LONG_CHAT, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        (request,) = served.app.state.live.visible_to(Viewer(""))
        for _ in range(2):
            with httpx.stream("GET", asked, timeout=20) as looked:
                seen = looked.iter_lines()  # dropping the iterator closes the answer
                assert next(seen) == "event: begin"
                with httpx.stream("GET", asked, timeout=20) as second:
                    assert second.status_code == 400
                    second.read()
                assert "the limit is one" in second.json()["error"]["message"]
            wait_until(lambda: all(stream.closed for stream in request.streams))
    wait_until(lambda: not served.app.state.live.visible_to(Viewer("")))
    assert served.pages_in_use() == 0


def test_a_name_that_stands_for_nothing_is_an_error_with_the_nearest(served: Served) -> None:
    answers: list[httpx.Response] = []

    def look() -> None:
        asked = f"{served.url}/v1/requests/wrong/trace?points=blocks.0.residul&wait=20"
        answers.append(httpx.get(asked, timeout=60))

    viewer = threading.Thread(target=look)
    viewer.start()
    expected(served, "wrong")
    httpx.post(f"{served.url}/v1/completions", json=BODY, headers={"X-Request-Id": "wrong"}, timeout=60)
    viewer.join(60)
    assert answers[0].status_code == 400
    assert "blocks.0.residual" in answers[0].json()["error"]["message"]


def test_only_those_who_may_see_a_request(folder: Path) -> None:
    with serving(folder, AccessRules(["one", "two"], admins=["root"])) as served:

        def seen(key: str) -> list[str]:
            answer = httpx.get(f"{served.url}/v1/requests", headers={"x-api-key": key})
            assert answer.status_code == 200
            return [one["id"] for one in answer.json()["data"]]

        headers = {"x-api-key": "one", "X-Request-Id": "secret-1"}
        with httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", json=LONG_CHAT, headers=headers, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert seen("one") == ["secret-1"]
            assert seen("two") == []
            assert seen("root") == ["secret-1"]
            assert httpx.get(f"{served.url}/v1/requests").status_code == 401
            asked = f"{served.url}/v1/requests/secret-1/trace?points=embed"
            assert httpx.get(asked, headers={"x-api-key": "two"}).status_code == 404
            with httpx.stream("GET", asked, headers={"x-api-key": "root"}) as looked:
                assert looked.status_code == 200
            again = httpx.post(f"{served.url}/v1/completions", json=BODY, headers=headers)
            assert again.status_code == 200
            assert again.headers["X-Request-Id"] != "secret-1"
        wait_until(lambda: seen("root") == [])
    with serving(folder, AccessRules(admins=["root"])) as served:
        assert httpx.post(f"{served.url}/v1/completions", json=BODY, timeout=60).status_code == 200
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=LONG_CHAT, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert httpx.get(f"{served.url}/v1/requests").json()["data"] == []
            seen_by_root = httpx.get(f"{served.url}/v1/requests", headers={"x-api-key": "root"})
            assert len(seen_by_root.json()["data"]) == 1
