"""LLM with the plugin gives the answers of Pellucid's own API: text, streams, options, schemas, tools, vectors."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import llm
import llm_pellucid
import pytest
from click.testing import CliRunner
from llm.cli import cli

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.testing import random_model

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }}){% endfor %}\n{% endfor %}"
)
OPTIONS = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for name in ("one", "base"):
        random_model("llama", made / name, kind="safetensors", vocabulary=320, context=1024)
    (made / "one" / "chat_template.jinja").write_text(CHAT)
    random_model("bert", made / "encoder", kind="safetensors")
    return made


@pytest.fixture(autouse=True)
def added(folder: Path, user_dir: Path) -> None:
    for path in folder.iterdir():
        assert run("pellucid", "add", str(path)).startswith(f"pellucid/{path.name}: ")


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    with pellucid.load(folder / "one") as made:
        yield made


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_generators_and_encoders_are_listed_by_kind() -> None:
    models = {one.model.model_id for one in llm.get_models_with_aliases()}
    assert {"pellucid/one", "pellucid/base"} <= models
    assert "pellucid/encoder" not in models
    embedders = {one.model.model_id for one in llm.get_embedding_models_with_aliases()}
    assert "pellucid/encoder" in embedders
    assert "pellucid/one" not in embedders


def test_an_answer_equals_the_answer_of_the_python_api(own: pellucid.LLM) -> None:
    response = llm.get_model("pellucid/one").prompt("Hi", system="Be brief", **OPTIONS)
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    wanted = own.chat(messages, **OPTIONS)
    assert response.text() == wanted.text
    assert (response.usage().input, response.usage().output) == (wanted.usage.prompt_tokens, 12)
    assert response.response_json["finish_reason"] == "length"


def test_a_stream_has_several_pieces() -> None:
    response = llm.get_model("pellucid/one").prompt("Hi", **OPTIONS)
    pieces = list(response)
    assert len(pieces) > 3
    assert "".join(pieces) == llm.get_model("pellucid/one").prompt("Hi", stream=False, **OPTIONS).text()


def test_a_conversation_continues_with_all_earlier_messages(own: pellucid.LLM) -> None:
    conversation = llm.get_model("pellucid/one").conversation()
    first = conversation.prompt("Hi", **OPTIONS).text()
    second = conversation.prompt("More", **OPTIONS)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "More"},
    ]
    assert second.text() == own.chat(messages, **OPTIONS).text


def test_an_asynchronous_answer_equals_the_other(own: pellucid.LLM) -> None:
    async def answer() -> tuple[str, int | None]:
        response = llm.get_async_model("pellucid/one").prompt("Hi", **OPTIONS)
        pieces = [piece async for piece in response]
        assert len(pieces) > 3
        return "".join(pieces), (await response.usage()).output

    assert asyncio.run(answer()) == (own.chat([{"role": "user", "content": "Hi"}], **OPTIONS).text, 12)


def test_a_model_without_a_template_continues_the_text(folder: Path) -> None:
    model = llm.get_model("pellucid/base")
    with pellucid.load(folder / "base") as base:
        assert model.prompt("to see", **OPTIONS).text() == base.generate("to see", **OPTIONS).text
    with pytest.raises(InvalidRequest, match="no chat template"):
        model.prompt("to see", system="Be brief", **OPTIONS).text()


def test_options_of_the_command_line_are_parsed() -> None:
    given = ("-o", "temperature", "0", "-o", "max_new_tokens", "3", "-o", "choices", "yes,no", "--no-log")
    assert run("-m", "pellucid/one", "Hi", *given).strip() in ("yes", "no")
    listed = run("models", "list", "-q", "pellucid/one", "--options")
    assert "min_p" in listed
    assert "Seed of the random numbers." in listed


@pytest.mark.parametrize(("name", "value"), [("temperature", "warm"), ("min_p", "7"), ("tempertaure", "1")])
def test_a_wrong_option_is_an_error_of_one_line(name: str, value: str) -> None:
    output = run("-m", "pellucid/one", "Hi", "-o", name, value, code=1)
    assert name in output
    assert "Traceback" not in output


def test_a_schema_is_followed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    for name in ("one", "base"):
        response = llm.get_model(f"pellucid/{name}").prompt("Hi", schema=schema, seed=1, max_new_tokens=40)
        assert isinstance(json.loads(response.text())["a"], bool)


def test_vectors_equal_those_of_the_python_api(folder: Path) -> None:
    with pellucid.load(folder / "encoder") as encoder:
        wanted = encoder.embed(["one", "two words"]).tolist()
    model = llm.get_embedding_model("pellucid/encoder")
    assert list(model.embed_multi(["one", "two words"])) == wanted
    assert model.embed("one") == wanted[0]


def test_calls_and_results_become_messages() -> None:
    calls = llm.parts.Message(
        "assistant", [llm.parts.TextPart("Let me see."), llm.parts.ToolCallPart("add", {"a": 1}, "call_1")]
    )
    results = llm.parts.Message(
        "tool",
        [
            llm.parts.ToolResultPart("add", "3", "call_1"),
            llm.parts.ToolResultPart("add", "", "call_2", exception="ValueError: no"),
        ],
    )
    function = {"name": "add", "arguments": {"a": 1}}
    assert llm_pellucid.chat_messages(calls) == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        }
    ]
    assert [one["content"] for one in llm_pellucid.chat_messages(results)] == ["3", "Error: ValueError: no"]


def test_tools_of_a_model_without_tools_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="tools"):
        llm.get_model("pellucid/one").chain("Hi", tools=[len]).text()


def test_a_model_is_removed_and_its_file_stays(folder: Path) -> None:
    run("pellucid", "remove", "pellucid/one")
    assert "pellucid/one" not in run("pellucid", "list")
    assert (folder / "one" / "config.json").exists()
    assert "no model 'one' was added" in run("pellucid", "remove", "one", code=1)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("no model")
    assert "is no model" in run("pellucid", "add", str(tmp_path / "notes.gguf"), code=1)


def test_a_deleted_model_is_not_listed(folder: Path, tmp_path: Path) -> None:
    random_model("llama", tmp_path / "short", kind="safetensors", vocabulary=320)
    run("pellucid", "add", str(tmp_path / "short"))
    assert any(one.model.model_id == "pellucid/short" for one in llm.get_models_with_aliases())
    (tmp_path / "short").rename(tmp_path / "elsewhere")
    assert not any(one.model.model_id == "pellucid/short" for one in llm.get_models_with_aliases())


@pytest.mark.model
def test_a_model_calls_a_tool_and_reads_its_result() -> None:
    from pellucid.weights.store import resolve

    path = resolve("qwen2.5-coder-1.5b")
    run("pellucid", "add", str(path), "--name", "coder")
    called = list[tuple[int, int]]()

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        called.append((a, b))
        return a * b

    chain = llm.get_model("pellucid/coder").chain(
        "What is 1234 times 5678? Use the tool.", tools=[multiply], options={"temperature": 0, "max_new_tokens": 200}
    )
    answer = chain.text()
    assert called[0] in ((1234, 5678), (5678, 1234))
    assert "7006652" in answer.replace(",", "")
