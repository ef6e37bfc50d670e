"""The server: OpenAI's client gets the results of the Python API, unauthorized requests fail, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.served import Served, models_folder, serving
from support.viewer import wait_until

import pellucid
from pellucid.llm import LLM
from pellucid.serve.guard import AccessRules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
LONG = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, AccessRules(hosts=["127.0.0.1", "localhost"])) as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        yield made


def test_chat(client: openai.OpenAI, llm: LLM) -> None:
    made = client.chat.completions.create(
        model="one", messages=MESSAGES, seed=3, n=2, max_completion_tokens=9, logprobs=True, top_logprobs=2,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    wanted = llm.samples(MESSAGES, 2, seed=3, max_new_tokens=9, logprobs=2, ignore_eos=True, **PLAIN)
    assert [one.message.content for one in made.choices] == [one.text for one in wanted]
    assert made.choices[0].finish_reason == "length"
    assert made.choices[0].logprobs is not None
    assert made.choices[0].logprobs.content is not None
    assert wanted[0].logprobs is not None
    assert [one.logprob for one in made.choices[0].logprobs.content] == wanted[0].logprobs.chosen.tolist()
    spelt = [bytes(one.bytes or []) for one in made.choices[0].logprobs.content]
    assert spelt == [llm.tokenizer.token_bytes(token) for token in wanted[0].ids]
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (wanted[0].usage.prompt_tokens, 18)


def test_a_stream_joins_to_the_answer(client: openai.OpenAI, llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    pieces, reasons, usage = ["", ""], list[Any](), None
    with client.chat.completions.create(
        model="one", messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}, **options
    ) as stream:
        for event in stream:
            for choice in event.choices:
                pieces[choice.index] += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            usage = event.usage or usage
    wanted = llm.chat(MESSAGES, temperature=0, max_new_tokens=40, ignore_eos=True)
    assert pieces == [wanted.text] * 2
    assert reasons == ["length"] * 2
    assert usage is not None
    assert usage.completion_tokens == 80
    text = "".join(
        event.choices[0].text
        for event in client.completions.create(model="one", prompt="to see", stream=True, **options)
    )
    assert text == llm.generate("to see", temperature=0, max_new_tokens=40, ignore_eos=True).text


def test_completions_and_models(client: openai.OpenAI, llm: LLM) -> None:
    made = client.completions.create(
        model="one", prompt=["to see", "rain"], temperature=0, echo=True, logprobs=1, max_tokens=1
    )
    for choice, text in zip(made.choices, ("to see", "rain")):
        scores = llm.score(text).logprobs.chosen.tolist()
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1 : 1 + len(scores)] == scores
    assert [model.id for model in client.models.list()] == ["one", "two", "encoder"]
    assert client.models.retrieve("two").id == "two"


def test_best_of_has_log_probabilities_only_if_asked(client: openai.OpenAI) -> None:
    common: dict[str, Any] = {"model": "one", "prompt": "to see", "best_of": 3, "max_tokens": 4}
    assert client.completions.create(**common).choices[0].logprobs is None
    assert client.completions.create(**common, logprobs=0).choices[0].logprobs is not None


def test_a_constraint(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="one", messages=MESSAGES, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["abc"]}}},
    )  # fmt: skip
    assert json.loads(made.choices[0].message.content or "") == "abc"


LIGHTS: Any = {
    "type": "function",
    "function": {
        "name": "lights",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
            "additionalProperties": False,
        },
    },
}
OTHER: Any = {"type": "function", "function": {"name": "other"}}


@pytest.fixture(scope="module")
def caller(folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a server whose model has tools."""
    with (
        serving(folder, tools=True) as made,
        openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_tools(caller: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "one", "tools": [LIGHTS, OTHER], "max_tokens": 300}
    made = caller.chat.completions.create(messages=MESSAGES, tool_choice="required", n=3, seed=1, **asked)
    for choice in made.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        for call in choice.message.tool_calls or pytest.fail("no call"):
            arguments = json.loads(call.function.arguments)
            if call.function.name == "other":
                assert arguments == {}
            else:
                assert arguments["room"] in ("hall", "attic")
                assert isinstance(arguments["on"], bool)
    only = {"type": "function", "function": {"name": "lights"}}
    made = caller.chat.completions.create(
        messages=MESSAGES, tool_choice=only, parallel_tool_calls=False, seed=2, **asked
    )
    (call,) = made.choices[0].message.tool_calls or []
    assert call.function.name == "lights"
    answered = [
        *MESSAGES, made.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]  # fmt: skip
    again = caller.chat.completions.create(messages=answered, tool_choice="none", **asked)
    assert again.choices[0].message.tool_calls is None


def test_a_stream_of_calls_joins_to_the_answer(caller: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "one", "messages": MESSAGES, "tools": [LIGHTS, OTHER], "tool_choice": "required", "seed": 5,
    }  # fmt: skip
    wanted = caller.chat.completions.create(**asked).choices[0].message.tool_calls or []
    found, reasons = list[list[str]](), list[str]()
    for event in caller.chat.completions.create(stream=True, **asked):
        for call in event.choices[0].delta.tool_calls or []:
            assert call.function is not None
            if call.id:
                assert call.index == len(found)
                found.append([call.function.name or "", ""])
            found[call.index][1] += call.function.arguments or ""
        reasons += [event.choices[0].finish_reason] if event.choices[0].finish_reason else []
    assert found == [[one.function.name, one.function.arguments] for one in wanted]
    assert reasons == ["tool_calls"]


def test_reasoning_is_apart_from_the_answer(caller: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "one", "messages": MESSAGES, "max_tokens": 200, "temperature": 0,
        "extra_body": {"enable_thinking": True, "logit_bias": {"60": 100}},
    }  # fmt: skip
    made: Any = caller.chat.completions.create(**asked).choices[0].message
    assert made.reasoning_content.strip()
    assert made.content == ""
    pieces = [event.choices[0].delta for event in caller.chat.completions.create(stream=True, **asked)]
    assert "".join(getattr(one, "reasoning_content", "") for one in pieces) == made.reasoning_content
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["abc"]}}}
    plain = caller.chat.completions.create(
        model="one", messages=MESSAGES, response_format=shape, extra_body={"reasoning_effort": "none"}
    )  # type: ignore[call-overload]
    assert json.loads(plain.choices[0].message.content) == "abc"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"tools": [LIGHTS]}, "this model's chat template has no tools"),
        ({"tools": [{}]}, "tools[0].type is missing"),
        ({"tools": 5}, "tools=5"),
        ({"tools": [{**OTHER, "function": {"name": "x", "description": 5}}]}, "tools[0].function.description=5"),
        ({"tools": [{**OTHER, "function": {"name": "x", "parameters": []}}]}, "tools[0].function.parameters=[]"),
        ({"tool_choice": "some"}, "tool_choice='some'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls=1"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs has tools"),
        ({"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": "a"}]}, "messages[0].role is missing"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]={}"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
            "tool_calls[0].function.arguments='{': is not JSON",
        ),
        (
            {"grammar": 'start: "a"', "response_format": {"type": "json_object"}},
            "grammar does not go with response_format",
        ),
    ],
)
def test_wrong_chats(served: Served, body: Any, word: str) -> None:
    asked = {"model": "one", "messages": MESSAGES, **body}
    answer = httpx.post(served.url + "/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, "must be an object"),
        ("/v1/chat/completions", b"[" * 99_999, 400, "not JSON"),
        ("/v1/chat/completions", {"model": "three", "messages": MESSAGES}, 404, "this server has one, two, encoder"),
        ("/v1/chat/completions", {"model": "one", "messages": MESSAGES, "temperature": -1}, 400, "temperature=-1"),
        ("/v1/chat/completions", {"model": "one", "messages": MESSAGES, "stream": 1}, 400, "stream=1"),
        ("/v1/chat/completions", {"model": "one", "messages": MESSAGES, "stream": True, "n": 99}, 400, "n=99"),
        ("/v1/completions", {"model": "one", "prompt": "a " * 3000}, 400, "the context is 1,024"),
        ("/v1/completions", {"model": "one", "prompt": "a", "stream": True, "best_of": 2}, 400, "best_of"),
        ("/v1/completions", {"model": "one", "prompt": "a", "max_tokens": 0}, 400, "max_tokens=0"),
        ("/v1/completions", {"model": "one", "prompt": "a", "stream_options": 5, "stream": True}, 400, "stream_opt"),
        ("/v1/embeddings", {"model": "one", "input": "a"}, 400, "not sentence vectors"),
        ("/v1/chat/completions", {"model": "one", "messages": MESSAGES, "prompt": "a"}, 400, "unknown option 'prompt'"),
        ("/tokenize", {"model": "one", "prompt": 5}, 400, "prompt=5"),
        ("/detokenize", {"model": "one", "tokens": [320]}, 400, "below 320"),
        ("/v1/completions", b" " * (17 << 20), 413, "longer than 16 MiB"),
    ],
)
def test_a_wrong_request_has_openais_form_of_an_error(
    served: Served, path: str, body: Any, status: int, word: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(served.url + path, content=raw)
    assert answer.status_code == status
    assert word in answer.json()["error"]["message"]


JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 1 << 70, 1.5, 1e308, "", "x", "a" * 5000, "\x00", "\ud800", [], [[]], {}, {"a": 1}),
    *([1, 2], [-1], ["a"], [None], [{"role": 5}], [{"role": "user", "content": [{"type": "image_url"}]}], {"5": 1}),
    *({"x": []}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": {"type": "foo"}}}),
]
FIELDS = [
    *("model", "messages", "prompt", "n", "best_of", "echo", "logprobs", "top_logprobs", "max_tokens", "stop"),
    *("temperature", "top_p", "top_k", "seed", "presence_penalty", "logit_bias", "response_format", "stream"),
    *(
        "stream_options",
        "tools",
        "tool_choice",
        "chat_template_kwargs",
        "parallel_tool_calls",
        "keep_special",
        "priority",
        "deadline",
        "regex",
        "grammar",
        "json_schema",
        "choices",
        "samplers",
    ),
    *("until", "watch", "prompt_lookup", "prompt_logprobs", "max_time", "input", "tokens", "banned", "suffix", "self"),
]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
    "/v1/completions": {"prompt": "to see", "max_tokens": 3},
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(JUNK)), max_size=3), st.sampled_from(list(VALID)))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_field_breaks_the_server(served: Served, changes: list[tuple[str, Any]], path: str) -> None:
    body = json.dumps({"model": "one", **VALID[path], **dict(changes)})
    answer = httpx.post(served.url + path, content=body.encode(), timeout=60)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def test_tokens_and_health(served: Served, llm: LLM) -> None:
    made = httpx.post(served.url + "/tokenize", json={"model": "one", "prompt": "to see"}).json()
    assert made["tokens"] == llm.tokenizer.encode("to see")
    back = httpx.post(served.url + "/detokenize", json={"model": "one", "tokens": made["tokens"]}).json()
    assert back["prompt"] == "to see"
    chat = httpx.post(served.url + "/tokenize", json={"messages": MESSAGES}).json()
    assert chat["tokens"] == llm.tokenizer.encode_chat(MESSAGES)
    (end,) = httpx.post(served.url + "/tokenize", json={"prompt": "</s>"}).json()["tokens"]
    assert httpx.post(served.url + "/detokenize", json={"tokens": [end]}).json()["prompt"] == "</s>"
    assert httpx.get(served.url + "/health").json()["status"] == "ok"


def test_a_client_that_goes_costs_nothing_more(served: Served, client: openai.OpenAI) -> None:
    client.completions.create(model="one", prompt="a", max_tokens=1)
    stream = client.completions.create(model="one", prompt="a", stream=True, **LONG)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="one", prompt="a", n=32, timeout=0.1, **LONG)
    engine = served.llm().engine
    wait_until(lambda: not engine.running and not engine.waiting and served.unused())
    assert served.pages_in_use() == 0


def test_many_clients_at_once_get_what_each_would_alone(served: Served, llm: LLM) -> None:
    prompts = [[number + 2] * (3 + number * 7) for number in range(40)]
    wanted = [llm.generate(ids, seed=1, max_new_tokens=12, ignore_eos=True, **PLAIN).text for ids in prompts]

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as many:
            made = await asyncio.gather(
                *(
                    many.completions.create(
                        model="one", prompt=ids, seed=1, max_tokens=12, extra_body={"ignore_eos": True}
                    )
                    for ids in prompts
                )
            )
            return [one.choices[0].text for one in made]

    assert asyncio.run(main()) == wanted
    assert served.pages_in_use() == 0


def test_keys_hosts_and_origins(folder: Path) -> None:
    served = Served(folder, AccessRules(["secret", "other"], ["127.0.0.1", "My.example"], ["http://page.example"]))
    try:
        ask, body = served.url + "/tokenize", {"model": "one", "prompt": "a"}
        good = {"Authorization": "Bearer other"}
        assert httpx.post(ask, json=body, headers=good).status_code == 200
        assert httpx.post(ask, json=body, headers={"x-api-key": "secret"}).status_code == 200
        for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Bearer séc".encode("latin1")}):
            assert httpx.post(ask, json=body, headers=wrong).status_code == 401  # type: ignore[arg-type]
        assert httpx.get(served.url + "/health").status_code == 200
        assert httpx.post(ask, json=body, headers={**good, "Host": "evil.example"}).status_code == 403
        assert httpx.post(ask, json=body, headers={**good, "Host": "my.EXAMPLE:81"}).status_code == 200
        assert httpx.post(ask, json=body, headers={**good, "Origin": "http://evil.example"}).status_code == 403
        assert httpx.post(ask, json=body, headers={**good, "Origin": served.url}).status_code == 200
        allowed = httpx.post(ask, json=body, headers={**good, "Origin": "http://page.example"})
        assert allowed.headers["access-control-allow-origin"] == "http://page.example"
        asks = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        before = httpx.options(ask, headers={**asks, "Access-Control-Request-Headers": "x-stainless-lang"})
        assert before.status_code == 200
        assert httpx.post(ask, json=body, headers={**good, "Host": "["}).status_code in (400, 403)
    finally:
        served.close()


def test_models_are_loaded_when_they_are_asked_for_and_make_way(folder: Path) -> None:
    served = Served(folder, AccessRules(), limit=1)
    try:
        for name in ("one", "two", "one"):
            body = {"model": name, "prompt": "a", "max_tokens": 1}
            assert httpx.post(served.url + "/v1/completions", json=body).status_code == 200
            assert served.models.loaded == [name]
        assert served.loads == ["one", "two", "one"]
    finally:
        served.close()


def test_nobody_waits_for_a_model_of_others(folder: Path) -> None:
    go = threading.Event()

    def slow(name: str) -> LLM:
        assert name == "one" or go.wait(20)
        return pellucid.load(folder / name, threads=2)

    served = Served(folder, AccessRules(), load=slow)
    ask = {"prompt": "a", "max_tokens": 1}
    try:
        other = threading.Thread(
            target=httpx.post, args=(served.url + "/v1/completions",), kwargs={"json": {"model": "two", **ask}}
        )
        httpx.post(served.url + "/v1/completions", json={"model": "one", **ask})
        other.start()
        time.sleep(0.05)
        assert httpx.post(served.url + "/v1/completions", json={"model": "one", **ask}).status_code == 200
        go.set()
        other.join()
        assert served.models.loaded == ["one", "two"]
    finally:
        go.set()
        served.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_command_ends_when_it_is_told_to(folder: Path) -> None:
    command = [sys.executable, "-m", "pellucid", "serve", str(folder / "one"), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("serving"))
    url = line.split()[-1].removesuffix("/v1")
    body = {"model": "one", "prompt": "a", "max_tokens": 1000, "ignore_eos": True}
    found: list[Any] = []
    running = threading.Thread(
        target=lambda: found.append(httpx.post(url + "/v1/completions", json=body, timeout=60).json())
    )
    running.start()
    while not httpx.get(url + "/health").json()["loaded"]:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    running.join()
    assert found[0]["usage"]["completion_tokens"] == 1000, "a running request has its time"
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in process.stderr.read()


def test_an_address_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "pellucid", "serve", str(folder / "one"), "--port", port],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr
