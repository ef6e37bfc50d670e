"""Errors have the same type, code and parameter as errors of the real services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.served import Served, models_folder, serving

from pellucid.errors import CacheFull, ContextOverflow, DeadlinePassed, InvalidRequest, QueueFull
from pellucid.serve.api import ErrorDetails, error_details, status_of
from pellucid.serve.apis.anthropic import error_body as claudes
from pellucid.serve.apis.ollama_fields import error_body as ollamas
from pellucid.serve.guard import AccessRules
from pellucid.serve.openai_parts import error_body as openais

USER: list[Any] = [{"role": "user", "content": "Hi"}]
LONG: list[Any] = [{"role": "user", "content": "a " * 3000}]
WRONG = "invalid_request_error"
CASES: list[tuple[str, dict[str, Any], int, tuple[str, str | None, str | None]]] = [
    ("chat/completions", {"messages": USER, "max_tokens": 0}, 400, (WRONG, "invalid_value", "max_tokens")),
    ("chat/completions", {"messages": USER, "max_completion_tokens": 0}, 400,
     (WRONG, "invalid_value", "max_completion_tokens")),
    ("responses", {"input": "a", "max_output_tokens": 0}, 400, (WRONG, "invalid_value", "max_output_tokens")),
    ("chat/completions", {"messages": USER, "temperature": -1}, 400, (WRONG, "invalid_value", "temperature")),
    ("chat/completions", {"messages": [{"content": "a"}]}, 400,
     (WRONG, "missing_required_parameter", "messages[0].role")),
    ("chat/completions", {"messages": []}, 400, (WRONG, "invalid_value", "messages")),
    ("chat/completions", {"messages": USER, "odd": 1}, 400, (WRONG, "unknown_parameter", "odd")),
    ("chat/completions", {"messages": USER, "tools": [{"odd": 1}]}, 400,
     (WRONG, "unknown_parameter", "tools[0].odd")),
    ("chat/completions", {}, 400, (WRONG, "missing_required_parameter", "messages")),
    ("chat/completions", {"messages": LONG}, 400, (WRONG, "context_length_exceeded", "messages")),
    ("completions", {"prompt": "a " * 3000}, 400, (WRONG, "context_length_exceeded", "prompt")),
    ("responses", {"input": LONG}, 400, (WRONG, "context_length_exceeded", "input")),
    ("embeddings", {"input": "a " * 3000, "model": "encoder"}, 400, (WRONG, "context_length_exceeded", "input")),
    ("chat/completions", {"messages": USER, "model": "three"}, 404, (WRONG, "model_not_found", None)),
    ("chat/completions", {"messages": USER, "deadline": 0.001, "max_tokens": 900, "ignore_eos": True}, 408,
     ("timeout_error", "request_timeout", None)),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models_folder(tmp_path_factory.mktemp("problems")), AccessRules(keys=["secret"])) as made:
        yield made


def asked(served: Served, path: str, body: dict[str, Any], key: str = "secret") -> httpx.Response:
    return httpx.post(served.url + path, json={"model": "one", **body}, headers={"x-api-key": key}, timeout=60)


@pytest.mark.parametrize(("path", "body", "status", "wanted"), CASES)
def test_openais_errors(served: Served, path: str, body: dict[str, Any], status: int, wanted: Any) -> None:
    answer = asked(served, f"/v1/{path}", body)
    error = answer.json()["error"]
    assert (answer.status_code, (error["type"], error["code"], error["param"])) == (status, wanted), error


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"messages": USER, "max_tokens": 0}, 400, WRONG, "max_tokens=0"),
        ({"messages": USER, "max_tokens": 5, "stop_sequences": 5}, 400, WRONG, "stop_sequences=5"),
        ({"messages": LONG, "max_tokens": 5}, 400, WRONG, "the prompt is too long"),
        ({"messages": USER, "max_tokens": 5, "model": "three"}, 404, "not_found_error", "three"),
        ({"messages": USER, "max_tokens": 900, "ignore_eos": True, "deadline": 0.001}, 408, "timeout_error", ""),
    ],
)
def test_anthropics_errors(served: Served, body: dict[str, Any], status: int, kind: str, words: str) -> None:
    answer = asked(served, "/v1/messages", body)
    assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)
    assert words in answer.json()["error"]["message"]


def test_ollamas_errors(served: Served) -> None:
    for body, status, words in (
        ({"messages": USER, "options": {"num_predict": 0}}, 400, "num_predict=0"),
        ({"messages": USER, "options": {"repeat_penalty": "x"}}, 400, "repeat_penalty='x'"),
        ({"messages": USER, "model": "three"}, 404, "three"),
    ):
        answer = asked(served, "/api/chat", body)
        assert answer.status_code == status
        assert words in answer.json()["error"]


def test_a_wrong_key(served: Served) -> None:
    paths = ("/v1/completions", "/v1/messages", "/api/chat", "/completions")
    said = {path: asked(served, path, {}, "x") for path in paths}
    assert {answer.status_code for answer in said.values()} == {401}
    error = said["/v1/completions"].json()["error"]
    assert (error["type"], error["code"]) == (WRONG, "invalid_api_key")
    assert said["/v1/messages"].json()["error"]["type"] == "authentication_error"
    assert isinstance(said["/api/chat"].json()["error"], str)
    of_llamacpp = said["/completions"].json()["error"]
    assert (of_llamacpp["type"], of_llamacpp["code"]) == ("authentication_error", 401)
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_errors_of_a_busy_server() -> None:
    for error, code in (
        (QueueFull("the queue is full"), "server_is_overloaded"),
        (CacheFull("no pages"), "server_is_overloaded"),
        (DeadlinePassed("late"), "request_timeout"),
    ):
        problem, status = error_details(error, None), status_of(error)
        assert problem == ErrorDetails(code)
        assert openais(status, str(error), problem)["error"]["code"] == code
    assert openais(429, "slower")["error"] == {
        "message": "slower", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded",
    }  # fmt: skip
    assert claudes(503, "busy")["error"]["type"] == "overloaded_error"
    assert claudes(429, "slower")["error"]["type"] == "rate_limit_error"
    assert ollamas(503, "busy") == {"error": "busy"}


def test_a_parameter_is_a_field_of_the_request() -> None:
    schema = {"properties": {"prompt": {}, "text": {}}, "required": ["model", "prompt"]}
    for message, wanted in (
        ("prompt=5: must be a text", ErrorDetails("invalid_value", "prompt")),
        ("text.format={}: must be an object", ErrorDetails("invalid_value", "text.format")),
        ("prompt is missing: the request must have it", ErrorDetails("missing_required_parameter", "prompt")),
        ("the body is not JSON", ErrorDetails()),
        ("model is missing: the request must have it", ErrorDetails()),
    ):
        assert error_details(InvalidRequest(message), schema) == wanted
    assert error_details(ContextOverflow("long"), schema) == ErrorDetails("context_length_exceeded", "prompt")
    assert error_details(ContextOverflow("long"), None) == ErrorDetails("context_length_exceeded")
