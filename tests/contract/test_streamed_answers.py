"""In every API a streamed answer equals the complete answer, also on a cluster whose frames hold many tokens.

The first test fails for a streaming route without a case in ``CASES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

pytest.importorskip("zmq", reason="pip install 'pellucid[cluster]'")
pytest.importorskip("msgpack", reason="pip install 'pellucid[cluster]'")

from support.held_replica import held
from support.served import models_folder, serving

import pellucid
from pellucid.llm import LLM
from pellucid.serve.api import known_apis

Json: TypeAlias = "dict[str, Any]"
MESSAGES = [{"role": "user", "content": "Hi"}]
FREE = {"temperature": 1.4, "seed": 7, "ignore_eos": True}
FRAMES = {"one frame": 1 << 20, "frames of 7": 7}


@dataclass(frozen=True)
class Case:
    """A request body, and functions that bring both answers into one form. ``usual``: the route streams by default."""

    body: Json
    whole: Callable[[Json], Any]
    streamed: Callable[[Sequence[Json]], Any]


def chat_whole(answer: Json) -> Any:
    return [
        (one["message"]["content"], one["finish_reason"], one["logprobs"]["content"]) for one in answer["choices"]
    ], answer["usage"]["completion_tokens"]


def chat_streamed(events: Sequence[Json]) -> Any:
    made: dict[int, list[Any]] = {}
    for event in events:
        for one in event["choices"]:
            text, logprobs = one["delta"].get("content") or "", (one["logprobs"] or {}).get("content") or []
            found = made.setdefault(one["index"], ["", None, []])
            found[0], found[1], found[2] = (found[0] + text, one["finish_reason"] or found[1], found[2] + logprobs)
    return [tuple(made[at]) for at in sorted(made)], events[-1]["usage"]["completion_tokens"]


LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def completion_whole(answer: Json) -> Any:
    return completion_streamed([answer])


def completion_streamed(events: Sequence[Json]) -> Any:
    made: dict[int, list[Any]] = {}
    for event in events:
        for one in event["choices"]:
            found = made.setdefault(one["index"], ["", None, *([] for _ in LISTS)])
            found[0], found[1] = found[0] + one["text"], one["finish_reason"] or found[1]
            for at, name in enumerate(LISTS, 2):
                found[at] += (one["logprobs"] or {}).get(name, [])
    return [made[at] for at in sorted(made)], events[-1]["usage"]["completion_tokens"]


def response_whole(answer: Json) -> Any:
    texts = [part["text"] for item in answer["output"] for part in item["content"]]
    return "".join(texts), answer["status"], answer["usage"]["output_tokens"]


def response_streamed(events: Sequence[Json]) -> Any:
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = response_whole(events[-1]["response"])
    assert last[0] == text
    return last


def message_whole(answer: Json) -> Any:
    text = "".join(block["text"] for block in answer["content"])
    return text, answer["stop_reason"], answer["usage"]["output_tokens"]


def message_streamed(events: Sequence[Json]) -> Any:
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    (last,) = (event for event in events if event["type"] == "message_delta")
    return text, last["delta"]["stop_reason"], last["usage"]["output_tokens"]


def ollama(answers: Sequence[Json]) -> Any:
    text = "".join(one.get("response") or one.get("message", {}).get("content", "") for one in answers)
    logprobs = [token for one in answers for token in one.get("logprobs") or []]
    return text, answers[-1]["done_reason"], answers[-1]["eval_count"], logprobs


def infill(answers: Sequence[Json]) -> Any:
    return (
        "".join(one["content"] for one in answers),
        [token for one in answers for token in one.get("completion_probabilities", [])],
        answers[-1]["stop_type"],
        answers[-1]["tokens_predicted"],
    )


def look(events: Sequence[Json]) -> Any:
    passing = {"seconds", "id", "model", "usage"}
    return [{name: value for name, value in event.items() if name not in passing} for event in events]


OLLAMA = {"num_predict": 12, **FREE}
NO_TEXTS = {"/api/pull"}
"""Routes that stream, but no texts."""
TOGETHER = {"model": "one", "stream_options": {"include_usage": True}, "max_tokens": 12, **FREE}
CASES: dict[str, Case] = {
    "/v1/chat/completions": Case(
        {**TOGETHER, "messages": MESSAGES, "n": 3, "logprobs": True, "top_logprobs": 3}, chat_whole, chat_streamed
    ),
    "/v1/completions": Case(
        {**TOGETHER, "prompt": ["to see", "rain"], "n": 2, "logprobs": 3}, completion_whole, completion_streamed
    ),
    "/v1/responses": Case(
        {"model": "one", "input": "Hi", "max_output_tokens": 12, **FREE}, response_whole, response_streamed
    ),
    "/v1/messages": Case(
        {"model": "one", "messages": MESSAGES, "max_tokens": 12, **FREE}, message_whole, message_streamed
    ),
    "/api/chat": Case(
        {"model": "one", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "options": OLLAMA},
        lambda one: ollama([one]),
        ollama,
    ),
    "/api/generate": Case(
        {"model": "one", "prompt": "Hi", "logprobs": True, "options": OLLAMA},
        lambda one: ollama([one]),
        ollama,
    ),
    "/infill": Case(
        {"input_prefix": "a = ", "input_suffix": "\n", "n_predict": 12, **FREE}, lambda one: infill([one]), infill
    ),
    "/completion": Case({"prompt": "Hi", "n_predict": 12, "n_probs": 3, **FREE}, lambda one: infill([one]), infill),
    "/look/generate": Case(
        {"prompt": "Hi", "max_tokens": 12, "alternatives": 3, **FREE}, lambda one: look(one["events"]), look
    ),
}  # fmt: skip
CASES |= dict.fromkeys(("/completions",), CASES["/completion"])
CASES |= {path: CASES[f"/v1{path}"] for path in ("/chat/completions", "/responses")}
STREAMS = sorted(
    name.removeprefix("POST ")
    for api in known_apis().values()
    for name, route in api.routes.items()
    if route.stream and name.startswith("POST ")
)


def test_every_route_that_streams_has_a_case() -> None:
    missing = set(STREAMS) - set(CASES) - NO_TEXTS
    assert not missing, f"{missing}: say in CASES what the two forms of their answers have in common"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        yield made


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[str]:
    with serving(folder) as made:
        yield made.url


@pytest.fixture(scope="module", params=FRAMES)
def cluster(request: pytest.FixtureRequest, folder: Path, llm: LLM) -> Iterator[str]:
    with serving(folder, load=held(llm, folder / "one", FRAMES[request.param])) as made:
        yield made.url


def whole(url: str, path: str) -> Any:
    answer = httpx.post(url + path, json={**CASES[path].body, "stream": False}, timeout=60)
    assert answer.status_code == 200, answer.text
    return CASES[path].whole(answer.json())


def streamed(url: str, path: str) -> Any:
    answer = httpx.post(url + path, json={**CASES[path].body, "stream": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines())
    return CASES[path].streamed([json.loads(line) for line in lines if line.startswith("{")])


@pytest.mark.parametrize("path", CASES)
def test_alone(alone: str, path: str) -> None:
    assert streamed(alone, path) == whole(alone, path)


@pytest.mark.parametrize("path", CASES)
def test_on_a_cluster(cluster: str, alone: str, path: str) -> None:
    wanted = whole(alone, path)
    assert whole(cluster, path) == wanted
    assert streamed(cluster, path) == wanted
