"""APIs other than OpenAI's: each API's unmodified client gets the results of the Python API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import ollama
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.served import Served, models_folder, serving

import pellucid
from pellucid.llm import LLM
from pellucid.serve.api import known_apis
from pellucid.serve.apis.responses_fields import RESPONSE, conversation_of, items_of
from pellucid.serve.response_store import OwnResponses, ResponseStore
from pellucid.tokenize.infill import infill_prompt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
USER: list[Any] = [{"role": "user", "content": "Hi"}]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
PLAIN_MESSAGE = {"model": "one", "max_tokens": 2, "messages": USER}
THINKS = {"enable_thinking": True}
LESS_THAN = 60  # the token "<"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("apis"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def caller(folder: Path) -> Iterator[Served]:
    """A server whose model has tools."""
    with serving(folder, tools=True) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        yield made


def claude(served: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def openai_client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


# Anthropic


def test_messages(served: Served, llm: LLM) -> None:
    more: Any = {"seed": 3, "ignore_eos": True}
    with claude(served) as client:
        made = client.messages.create(model="one", max_tokens=9, system="S", messages=USER, extra_body=more)
        wanted = llm.chat([{"role": "system", "content": "S"}, *USER], max_new_tokens=9, **more, **PLAIN)
        assert [block.text for block in made.content if block.type == "text"] == [wanted.text]
        # A list, not null: some clients refuse null, and the published schema asks for the field.
        assert [block.citations for block in made.content if block.type == "text"] == [[]]
        assert made.stop_reason == "max_tokens"
        usage = made.usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == wanted.usage.prompt_tokens
        assert usage.output_tokens == 9
        with client.messages.stream(model="one", max_tokens=9, system="S", messages=USER, extra_body=more) as stream:
            assert "".join(stream.text_stream) == wanted.text
            assert stream.get_final_message().usage.output_tokens == 9
        counted = client.messages.count_tokens(model="one", system="S", messages=USER)
        assert counted.input_tokens == wanted.usage.prompt_tokens
        stop = wanted.text[3:5]
        stopped = client.messages.create(
            model="one", max_tokens=9, system="S", messages=USER, stop_sequences=[stop], extra_body=more
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)


def test_an_answer_goes_on_with_the_last_message(served: Served, llm: LLM) -> None:
    begun: list[Any] = [*USER, {"role": "assistant", "content": "I am"}]
    ids = llm.tokenizer.encode("user: Hi\nassistant: I am", add_special=False)
    wanted = llm.generate(ids, temperature=0, max_new_tokens=9, ignore_eos=True).text
    more: Any = {"temperature": 0, "ignore_eos": True}
    with claude(served) as client:
        made = client.messages.create(model="one", max_tokens=9, messages=begun, extra_body=more)
    assert [block.text for block in made.content if block.type == "text"] == [wanted]
    with openai_client(served) as other:
        same = other.chat.completions.create(
            model="one", max_tokens=9, messages=begun, extra_body={**more, "continue_final_message": True}
        )
    assert same.choices[0].message.content == wanted


def test_tool_use(caller: Served) -> None:
    tools: Any = [{"name": "lights", "description": "Switch", "input_schema": SCHEMA}]
    asked: dict[str, Any] = {
        "model": "one",
        "max_tokens": 300,
        "tools": tools,
        "tool_choice": {"type": "tool", "name": "lights", "disable_parallel_tool_use": True},
        "extra_body": {"seed": 4},
    }
    with claude(caller) as client:
        made = client.messages.create(messages=USER, **asked)
        assert made.stop_reason == "tool_use"
        (block,) = made.content
        assert block.type == "tool_use"
        given_: Any = block.input
        assert given_["room"] in ("hall", "attic")
        with client.messages.stream(messages=USER, **asked) as stream:
            (same,) = stream.get_final_message().content
        assert same.type == "tool_use"
        assert same.input == block.input
        result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "done"}]}
        after: list[Any] = [
            *USER,
            {"role": "assistant", "content": made.content},
            {"role": "user", "content": [result]},
        ]
        again = client.messages.create(messages=after, **{**asked, "tool_choice": {"type": "none"}})
        assert all(block.type == "text" for block in again.content)


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_of_anthropics_client(caller: Served, stream: bool) -> None:
    """The runner asks for a conversation that the server keeps, and continues without it when the server refuses."""
    calls = list[str]()

    @anthropic.beta_tool
    def lights(room: Literal["hall", "attic"]) -> str:
        """Switch the lights of a room."""
        calls.append(room)
        return "done"

    with claude(caller) as client:
        runner: Any = client.beta.messages.tool_runner(
            model="one",
            max_tokens=300,
            messages=USER,
            tools=[lights],
            tool_choice={"type": "tool", "name": "lights"},
            max_iterations=2,
            stream=stream,
            extra_body={"seed": 4},
        )
        turns = [turn.get_final_message() if stream else turn for turn in runner]
        assert [turn.stop_reason for turn in turns] == ["tool_use"] * 2
        assert calls
        assert set(calls) <= {"hall", "attic"}
        with pytest.raises(anthropic.BadRequestError, match=r"thread=.*: not supported; leave it out"):
            client.post("/v1/messages", cast_to=object, body={**PLAIN_MESSAGE, "thread": {"type": "create"}})


def test_tools_have_examples_and_fields_of_anthropics_own_tools(caller: Served) -> None:
    tool: Any = {"name": "lights", "input_schema": SCHEMA}
    usual: Any = {"defer_loading": False, "allowed_callers": ["direct"], "type": "custom"}
    with claude(caller) as client:

        def count(**more: Any) -> int:
            asked: Any = {"model": "one", "messages": USER, "tools": [{**tool, **more}]}
            return client.messages.count_tokens(**asked).input_tokens

        assert count() == count(**usual) < count(input_examples=[{"room": "hall", "on": True}])
        for field, value in (("defer_loading", True), ("allowed_callers", ["code_execution_20250825"])):
            with pytest.raises(anthropic.BadRequestError, match=rf"tools\[0\].{field}="):
                count(**{field: value})


def test_thinking(caller: Served) -> None:
    asked: dict[str, Any] = {
        "model": "one",
        "max_tokens": 100,
        "messages": USER,
        "extra_body": {"temperature": 0, "logit_bias": {str(LESS_THAN): 100}, "thinking": {"type": "adaptive"}},
    }
    with claude(caller) as client:
        (block,) = client.messages.create(**asked).content
        assert block.type == "thinking"
        assert set(block.thinking) == {"<"}
        with client.messages.stream(**asked) as stream:
            (same,) = stream.get_final_message().content
    assert same.type == "thinking"
    assert same.thinking == block.thinking


# Ollama


def test_ollama(served: Served, llm: LLM) -> None:
    client = ollama.Client(host=served.url)
    options: Any = {"seed": 5, "num_predict": 9, "temperature": 1.0, "num_ctx": 512}
    own = {"seed": 5, "max_new_tokens": 9, "temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
    wanted = llm.chat(USER, **own)
    made = client.chat("one", USER, options=options)
    assert made.message.content == wanted.text
    assert (made.done_reason, made.prompt_eval_count) == (wanted.finish_reason, wanted.usage.prompt_tokens)
    pieces = list(client.chat("one:latest", USER, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == wanted.text
    assert [piece.done for piece in pieces[-2:]] == [False, True]
    raw = client.generate("one", "to see", raw=True, options=options)
    assert raw.response == llm.generate("to see", **own).text
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "to see"}]
    assert client.generate("one", "to see", system="S", options=options).response == llm.chat(asked, **own).text
    whole = "".join(one.response for one in client.generate("one", "to see", options=options, stream=True))
    assert whole == llm.chat(asked[1:], **own).text
    shaped = client.generate("one", "to see", format={"enum": ["abc"]})
    assert json.loads(shaped.response) == "abc"
    assert client.generate("one", "").done_reason == "load"
    client.close()


def test_ollamas_tools_and_thinking(caller: Served) -> None:
    client = ollama.Client(host=caller.url)
    tools: Any = [{"type": "function", "function": {"name": "lights", "parameters": SCHEMA}}]
    options: Any = {"num_predict": 300, "temperature": 0}
    # A random model seldom calls tools. With the bias it writes "<" whenever it is allowed.
    for stream in (False, True):
        made: Any = client.chat(
            "one", USER, tools=tools, stream=stream, options={**options, "logit_bias": {str(LESS_THAN): 100}}
        )
        calls = [call for piece in (made if stream else [made]) for call in piece.message.tool_calls or []]
        assert all(call.function.name == "lights" for call in calls)
    thought = client.chat(
        "one", USER, think=True, options={**options, "num_predict": 50, "logit_bias": {str(LESS_THAN): 100}}
    )
    assert thought.message.content == ""
    assert set(thought.message.thinking or "") == {"<"}
    history: list[Any] = [
        *USER,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "lights", "arguments": {}}}]},
        {"role": "tool", "content": "done", "tool_name": "lights"},
    ]
    assert client.chat("one", history, options=options).done
    client.close()


def test_ollamas_models(served: Served, folder: Path) -> None:
    client = ollama.Client(host=served.url)
    assert [model.model for model in client.list().models] == ["one", "two", "encoder"]
    shown = client.show("one")
    assert shown.capabilities == ["completion", "insert"]
    assert client.show("encoder").capabilities == ["embedding"]
    assert {model.name for model in client.ps().models} >= {"one", "encoder"}
    with pellucid.load(folder / "encoder", threads=1) as encoder:
        wanted = encoder.embed(["a b", "c"])
    made = client.embed("encoder", ["a b", "c"])
    assert [list(map(float, row)) for row in made.embeddings] == wanted.tolist()
    assert list(client.embeddings("encoder", "c").embedding) == wanted[1].tolist()
    with pytest.raises(ollama.ResponseError, match="this server has one"):
        client.show("four")
    client.close()


NOTHING: dict[str, Any] = {"type": "object", "additionalProperties": False}
ONE_CALL: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/chat/completions", {"messages": USER}, {"type": "function", "function": {"name": "f"}}),
    ("/v1/responses", {"input": USER}, {"type": "function", "name": "f"}),
    ("/v1/messages", {"messages": USER, "max_tokens": 300}, {"type": "tool", "name": "f"}),
    ("/v1/chat/completions", {"messages": USER, "parallel_tool_calls": False}, "required"),
    ("/v1/responses", {"input": USER, "parallel_tool_calls": False}, "required"),
    ("/v1/messages", {"messages": USER, "max_tokens": 300}, {"type": "any", "disable_parallel_tool_use": True}),
]


@pytest.mark.parametrize(("path", "body", "choice"), ONE_CALL)
def test_a_forced_function_is_called_once(caller: Served, path: str, body: dict[str, Any], choice: Any) -> None:
    """With the bias a text ends only where no other token is allowed, so the model repeats calls if it may."""
    function = {"name": "f", "parameters": NOTHING}
    tool: dict[str, Any] = {
        "/v1/chat/completions": {"type": "function", "function": function},
        "/v1/responses": {"type": "function", **function},
        "/v1/messages": {"name": "f", "input_schema": NOTHING},
    }[path]
    for seed in range(3):
        asked = {
            "model": "one",
            "seed": seed,
            "tools": [tool],
            "tool_choice": choice,
            "logit_bias": {"257": -100},
            **body,
        }
        made = httpx.post(caller.url + path, json=asked, timeout=60).json()
        if "choices" in made:
            made = made["choices"][0]["message"]
        (call,) = made.get("tool_calls") or made.get("output") or made["content"]
        assert "f" in (call["name"] if "name" in call else call["function"]["name"])


# OpenAI's Responses


def test_a_schema_beside_json_object(served: Served) -> None:
    shape = {"type": "json_object", "schema": SCHEMA}
    for path, body in (
        ("/v1/chat/completions", {"messages": USER, "response_format": shape}),
        ("/v1/responses", {"input": USER, "text": {"format": shape}}),
    ):
        made = httpx.post(served.url + path, json={"model": "one", "seed": 1, **body}).json()
        text = (
            made["choices"][0]["message"]["content"] if "choices" in made else made["output"][0]["content"][0]["text"]
        )
        assert json.loads(text)["room"] in ("hall", "attic")


def test_responses(served: Served, llm: LLM) -> None:
    more: Any = {"extra_body": {"ignore_eos": True, "seed": 2}, "temperature": 1.0, "max_output_tokens": 9}
    wanted = llm.chat(
        [{"role": "system", "content": "S"}, *USER], **{**PLAIN, "max_new_tokens": 9, "ignore_eos": True, "seed": 2}
    )
    with openai_client(served) as client:
        for given_ in ("Hi", USER, [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]):
            made = client.responses.create(model="one", input=given_, instructions="S", **more)
            assert made.output_text == wanted.text
            assert made.status == "incomplete"
            assert made.usage is not None
            assert made.usage.output_tokens == 9
        events = list(client.responses.create(model="one", input="Hi", instructions="S", stream=True, **more))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == wanted.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == wanted.text


def test_responses_call_tools(caller: Served) -> None:
    tools: Any = [{"type": "function", "name": "lights", "parameters": SCHEMA, "strict": True}]
    asked: dict[str, Any] = {"model": "one", "tools": tools, "extra_body": {"seed": 4}}
    with openai_client(caller) as client:
        made = client.responses.create(input="Hi", tool_choice="required", parallel_tool_calls=False, **asked)
        (call,) = made.output
        assert call.type == "function_call"
        assert json.loads(call.arguments)["room"] in ("hall", "attic")
        with client.responses.stream(input="Hi", tool_choice="required", parallel_tool_calls=False, **asked) as stream:
            (same,) = stream.get_final_response().output
        assert same.type == "function_call"
        assert same.arguments == call.arguments
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        history: Any = [*USER, call.model_dump(exclude_none=True), output]
        client.responses.create(input=history, tool_choice="none", max_output_tokens=9, **asked)
        shape: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["abc"]}}}
        assert json.loads(client.responses.create(model="one", input="Hi", text=shape).output_text) == "abc"


# llama.cpp, filling in, ranking


def test_filling_in(served: Served, llm: LLM) -> None:
    ids, _ = infill_prompt(llm.tokenizer, "to ", " see")
    assert [llm.tokenizer.token_text(ids[at]) for at in (0, 4, -1)] == [
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
    ]
    wanted = llm.generate(ids, temperature=0, max_new_tokens=9).text
    asked = {"input_prefix": "to", "prompt": " ", "input_suffix": " see", "n_predict": 9, "temperature": 0}
    made = httpx.post(served.url + "/infill", json=asked).json()
    assert (made["content"], made["stop"]) == (wanted, True)
    lines = httpx.post(served.url + "/infill", json={**asked, "stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["content"] for event in events) == wanted
    with openai_client(served) as client:
        other = client.completions.create(model="one", prompt="to ", suffix=" see", max_tokens=9, temperature=0)
    assert other.choices[0].text == wanted
    filled = ollama.Client(host=served.url)
    made = filled.generate("one", "to ", suffix=" see", options={"temperature": 0, "num_predict": 9})
    assert made.response == wanted
    filled.close()


def test_ranking(served: Served, folder: Path) -> None:
    documents = ["a b c", "to see", "x"]
    asked = {"model": "encoder", "query": "to see", "documents": documents, "top_n": 2}
    made = httpx.post(served.url + "/v1/rerank", json=asked).json()
    assert made["results"][0]["index"] == 1
    assert len(made["results"]) == 2
    assert made["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)


# Errors and descriptions


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/messages", {"messages": USER}, "max_tokens is missing"),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{}]}], "max_tokens": 5}, "content[0]"),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "tool_choice": {"type": "odd"}}, "tool_choice.type='odd'"),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "thinking": 5}, "thinking=5"),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "tools": [{"type": "bash"}]}, "tools[0].type"),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "odd": 5}, "unknown option 'odd'"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages[0].images"),
        ("/api/chat", {"messages": USER, "options": {"odd": 1}}, "unknown option 'options.odd'"),
        ("/api/chat", {"messages": USER, "format": "yaml"}, "format='yaml'"),
        ("/api/chat", {"messages": USER, "think": 5}, "think=5"),
        ("/api/generate", {"prompt": "a", "context": [-1]}, "context[0]=-1"),
        ("/api/chat", {"messages": USER, "keep_alive": True}, "keep_alive=True"),
        ("/api/chat", {"messages": USER, "keep_alive": [1]}, "keep_alive=[1]"),
        ("/api/embed", {"input": 5}, "input=5"),
        ("/v1/responses", {"input": []}, "input is empty"),
        ("/v1/responses", {"input": [{"type": "odd"}]}, "input[0]"),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id='resp_1'"),
        ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type='web_search'"),
        ("/v1/responses", {"input": [{"type": "reasoning", "content": 5}]}, "input[0].content=5"),
        ("/v1/chat/completions", {"messages": []}, "messages is empty"),
        ("/v1/chat/completions", {"messages": USER, "edits": []}, "unknown option 'edits'"),
        (
            "/v1/chat/completions",
            {"messages": USER, "response_format": {"type": "json_object", "strict": True}},
            "unknown option 'response_format.strict'",
        ),
        (
            "/v1/chat/completions",
            {"messages": USER, "response_format": {"type": "text", "schema": SCHEMA}},
            "response_format.schema does not go with the type text",
        ),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "max_new_tokens": 6}, "names of one option"),
        ("/v1/messages", {"messages": USER, "max_tokens": 5, "compaction": {}}, "compaction={}: not supported"),
        ("/v1/chat/completions", {"messages": USER, "moderation": {"model": "a"}}, "not supported"),
        ("/v1/chat/completions", {"messages": USER, "audio": {}}, "audio={}: not supported"),
        ("/v1/chat/completions", {"messages": USER, "web_search_options": {}}, "not supported"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "unknown option 'temperature'"),
        ("/infill", {"input_extra": [5]}, "input_extra[0]=5"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents="),
    ],
)  # fmt: skip
def test_wrong_requests(served: Served, path: str, body: Any, word: str) -> None:
    answer = httpx.post(served.url + path, json={"model": "one", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert word in (error if isinstance(error, str) else error["message"])


def test_bodies_that_json_does_not_have(served: Served) -> None:
    for raw, status in ((b'{"model": "one", "input": "a", "metadata": {"a": NaN}}', 400), (b'{"model": NaN}', 400)):
        assert httpx.post(served.url + "/v1/responses", content=raw).status_code == status
    half = b'{"model": "one", "input": "a", "max_output_tokens": 2, "metadata": {"a": "\\ud800"}}'
    assert httpx.post(served.url + "/v1/responses", content=half).status_code == 200
    for name in ([], {}, 5):
        body = {
            "model": "one",
            "messages": [*USER, {"role": "tool", "tool_call_id": name, "content": "x"}],
            "max_tokens": 2,
        }
        assert httpx.post(served.url + "/v1/chat/completions", json=body).status_code == 200


def test_reasoning_belongs_to_the_message_after_it() -> None:
    given_ = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "c"},
    ]
    own = OwnResponses(ResponseStore(), "")
    body = RESPONSE.decode({"input": given_})
    made = conversation_of(body, items_of(body.raw["input"], own), {}, own).messages
    assert [one["role"] for one in made] == ["user", "assistant", "tool"]
    assert made[1]["reasoning_content"] == "Hm."
    assert made[1]["tool_calls"][0]["function"]["name"] == "f"


def test_a_template_that_refuses_is_the_clients_mistake(folder: Path) -> None:
    with serving(folder) as made:
        httpx.post(made.url + "/v1/completions", json={"model": "one", "prompt": "a", "max_tokens": 1})
        llm = made.llm()
        llm.tokenizer = replace(llm.tokenizer, chat_template="{{ raise_exception('No such role') }}")
        llm.inputs = structs.replace(llm.inputs, tokenizer=llm.tokenizer)
        answer = httpx.post(made.url + "/v1/chat/completions", json={"model": "one", "messages": USER, "max_tokens": 1})
    assert answer.status_code == 400
    assert "No such role" in answer.json()["error"]["message"]


def test_an_error_in_a_stream_has_the_apis_form(served: Served) -> None:
    late = {"model": "one", "ignore_eos": True, "deadline": 0.03, "stream": True}
    for path, body in (
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 900}),
        ("/v1/chat/completions", {"messages": USER}),
        ("/api/chat", {"messages": USER}),
    ):
        made = httpx.post(served.url + path, json={**late, **body}, timeout=60)
        assert made.status_code in (200, 408), made.text
        assert "error" in made.text, (path, made.text[-300:])


@pytest.mark.parametrize(
    ("path", "status", "names"),
    [
        ("/nothing", 404, ("error", "message")),
        ("/v1/messages/nothing", 404, ("error", "message")),
        ("/api/nothing", 404, ("error",)),
        ("/v1/completions", 405, ("error", "message")),
    ],
)
def test_a_path_that_is_not_there(served: Served, path: str, status: int, names: tuple[str, ...]) -> None:
    answer = httpx.get(served.url + path)
    assert answer.status_code == status
    value = answer.json()
    for name in names:
        value = value[name]
    assert path in value
    assert ("type" in answer.json()) == path.startswith("/v1/messages")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "role", "content", "name", "text", "function"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
VALID: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": USER, "max_tokens": 3},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/responses": {"input": USER, "max_output_tokens": 3},
    "/api/chat": {"messages": USER, "options": {"num_predict": 3}},
    "/api/generate": {"prompt": "a", "options": {"num_predict": 3}},
    "/api/embed": {"input": "a"},
    "/infill": {"input_prefix": "a", "n_predict": 3},
    "/completion": {"prompt": "a", "n_predict": 3},
    "/chat/completions": {"messages": USER, "max_tokens": 3},
    "/apply-template": {"messages": USER},
    "/embedding": {"content": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
}
FIELDS = {
    name
    for api in known_apis().values()
    for route in api.routes.values()
    if route.body
    for name in route.body.schema["properties"]
} - {"max_new_tokens", "max_time"}


@pytest.mark.slow
@given(st.sampled_from(list(VALID)), st.dictionaries(st.sampled_from(sorted(FIELDS)), JUNK, max_size=2), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_field_breaks_the_server(caller: Served, path: str, changes: dict[str, Any], data: st.DataObject) -> None:
    body = {"model": "one", **VALID[path], **changes}
    if data.draw(st.booleans()):
        own = [name for name in VALID[path] if isinstance(VALID[path][name], list)]
        body |= {name: data.draw(st.lists(JUNK, max_size=2)) for name in own}
    answer = httpx.post(caller.url + path, content=json.dumps(body).encode(), timeout=60)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]


def test_metrics(served: Served) -> None:
    def value(name: str) -> float:
        text = httpx.get(served.url + "/metrics").text
        found = re.search(rf'^{name}{{model_name="two"}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    body = {"model": "two", "prompt": "to see", "max_tokens": 7, "ignore_eos": True}
    httpx.post(served.url + "/v1/completions", json=body)
    assert value("vllm:generation_tokens_total") == 7
    assert value("vllm:prompt_tokens_total") == 6
    assert value("vllm:inter_token_latency_seconds_count") == 6
    assert value("pellucid:steps_total") >= 1
    assert value("vllm:num_requests_running") == 0
    assert value("vllm:kv_cache_usage_perc") == 0
    httpx.post(served.url + "/v1/completions", json=body)
    assert value("vllm:prefix_cache_hits_total") > 0


def test_tokenizer_info(served: Served, llm: LLM) -> None:
    made = httpx.get(served.url + "/tokenizer_info").json()
    assert made["vocab_size"] == llm.tokenizer.vocab_size
    assert made["chat_template"] == llm.tokenizer.chat_template
    assert httpx.get(served.url + "/tokenizer_info", params={"model": "four"}).status_code == 404


def test_the_document_names_every_route(served: Served) -> None:
    document = httpx.get(served.url + "/openapi.json").json()
    shown = {f"{method.upper()} {path}" for path, one in document["paths"].items() for method in one}
    wanted = {re.sub(r":\w+}", "}", name) for api in known_apis().values() for name in api.routes}
    assert shown == wanted
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    assert [name for name in wanted if name.split(" ")[1].split("{")[0] not in text] == []


def test_the_document_names_the_models_wherever_a_body_has_one(served: Served) -> None:
    document = httpx.get(served.url + "/openapi.json").json()
    bodies = {
        f"{method.upper()} {path}": one["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for path, methods in document["paths"].items()
        for method, one in methods.items()
        if "requestBody" in one
    }
    routes = {re.sub(r":\w+}", "}", name): one for api in known_apis().values() for name, one in api.routes.items()}
    names = httpx.get(served.url + "/v1/models").json()["data"]
    for name, properties in bodies.items():
        body = routes[name].body
        assert body is not None
        assert set(properties) == set(body.schema["properties"])
        if "model" in properties:
            assert properties["model"] == {"type": "string", "enum": [one["id"] for one in names]}
    assert bodies.keys() == {name for name, one in routes.items() if one.body is not None}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8, pytest.param(25, marks=pytest.mark.long)])
def test_schemathesis_finds_nothing(caller: Served, tmp_path: Path, seconds: int) -> None:
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance,unsupported_method"
    # There, 501 is the answer of a model that has no head for the task, as in llama.cpp.
    expected = 'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]'
    (tmp_path / "schemathesis.toml").write_text(f'[[operations]]\ninclude-path = "/v1/systemone"\n{expected}\n')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", caller.url + "/openapi.json", "-n", "15"),
            *("--max-time", str(seconds), "-c", checks, "--seed", "1", "--generation-database", ":memory:"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]
