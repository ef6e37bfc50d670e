"""Stored responses: who may continue them and how many are stored; conversations that are too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from msgspec import structs
from support.served import CALLS, Served, models_folder, serving

import pellucid
from pellucid.errors import NotFound
from pellucid.llm import LLM
from pellucid.serve import response_store as bounds
from pellucid.serve.guard import AccessRules
from pellucid.serve.response_store import OwnResponses, ResponseStore

KEYS = {"one": {"x-api-key": "one"}, "other": {"x-api-key": "other"}}
ASKED: dict[str, Any] = {"model": "one", "seed": 1, "ignore_eos": True, "max_output_tokens": 6}
CALLED = {"type": "function", "name": "f", "parameters": {"type": "object", "additionalProperties": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("responses"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=1) as made:
        made.tokenizer = replace(made.tokenizer, chat_template=CALLS)
        made.inputs = structs.replace(made.inputs, tokenizer=made.tokenizer)
        yield made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, AccessRules(keys=list(KEYS)), tools=True) as made:
        yield made


def ask(served: Served, method: str, path: str, body: Any = None, key: str = "one") -> tuple[int, Any]:
    answer = httpx.request(method, f"{served.url}/v1/responses{path}", json=body, headers=KEYS[key], timeout=60)
    return answer.status_code, answer.json()


def made(served: Served, given: Any, key: str = "one", **more: Any) -> Any:
    status, found = ask(served, "POST", "", {**ASKED, "input": given, **more}, key)
    assert status == 200, found
    return found


def test_a_response_goes_on_after_another(served: Served, llm: LLM) -> None:
    first = made(served, "Hi", instructions="Be brief.")
    second = made(served, "And?", instructions="Be long.", previous_response_id=first["id"])
    third = made(served, "So?", previous_response_id=second["id"])
    said = [one["output"][0]["content"][0]["text"] for one in (first, second, third)]
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": said[1]},
        {"role": "user", "content": "So?"},
    ]
    options = {
        "seed": 1,
        "ignore_eos": True,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    assert llm.chat([{"role": "system", "content": "Be brief."}, *talk[:1]], **options).text.strip() == said[0].strip()
    whole = [{"role": "developer", "content": "Be long."}, *talk[:3]]
    same = made(served, whole, store=False)
    assert same["output"][0]["content"] == second["output"][0]["content"]
    assert made(served, talk, store=False)["output"][0]["content"] == third["output"][0]["content"]
    assert (second["previous_response_id"], third["store"], same["store"]) == (first["id"], True, False)
    assert ask(served, "GET", f"/{same['id']}")[0] == 404


def test_what_is_kept_can_be_asked_for(served: Served) -> None:
    found = made(served, [{"role": "user", "content": text} for text in ("a", "b", "c")], metadata={"x": "y"})
    path = f"/{found['id']}"
    assert ask(served, "GET", path) == (200, found)
    status, page = ask(served, "GET", f"{path}/input_items?limit=2")
    assert status == 200
    assert ([one["content"] for one in page["data"]], page["has_more"]) == (["c", "b"], True)
    rest = ask(served, "GET", f"{path}/input_items?limit=2&after={page['last_id']}")[1]
    assert ([one["content"] for one in rest["data"]], rest["has_more"]) == (["a"], False)
    ascending = ask(served, "GET", f"{path}/input_items?order=asc")[1]
    assert [one["content"] for one in ascending["data"]] == ["a", "b", "c"]
    for query, words in (
        ("limit=0", "limit=0"), ("limit=x", "limit='x'"), ("order=up", "order='up'"), ("after=no", "after='no'"),
        ("odd=1", "unknown option 'odd'"),
    ):  # fmt: skip
        status, said = ask(served, "GET", f"{path}/input_items?{query}")
        assert (status, words in said["error"]["message"]) == (400, True)
    assert ask(served, "GET", f"{path}?stream=true")[0] == 400
    assert ask(served, "DELETE", path) == (200, {"id": found["id"], "object": "response", "deleted": True})
    for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
        status, said = ask(served, method, path + more)
        assert (status, found["id"] in said["error"]["message"]) == (404, True)
    status, said = ask(served, "POST", "", {**ASKED, "input": "a", "previous_response_id": found["id"]})
    assert (status, said["error"]["param"]) == (400, "previous_response_id")


def test_no_key_has_the_responses_of_another(served: Served) -> None:
    found = made(served, "secret")
    path, item = f"/{found['id']}", found["output"][0]["id"]
    for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
        assert ask(served, method, path + more, key="other")[0] == 404
    for body in (
        {"input": "a", "previous_response_id": found["id"]},
        {"input": [{"type": "item_reference", "id": item}]},
    ):
        assert ask(served, "POST", "", {**ASKED, **body}, "other")[0] in (400, 404)
        assert ask(served, "POST", "/input_tokens", {"model": "one", **body}, "other")[0] in (400, 404)
    assert ask(served, "GET", path)[0] == 200


def test_a_stream_is_kept_and_calls_go_on(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="one", max_retries=0) as client:
        asked: Any = {"model": "one", "tools": [CALLED], "extra_body": {"seed": 2}}
        with client.responses.stream(input="Hi", tool_choice={"type": "function", "name": "f"}, **asked) as stream:
            first = stream.get_final_response()
        call = first.output[0]
        assert call.type == "function_call"
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        after = client.responses.create(
            input=[output], previous_response_id=first.id, max_output_tokens=6, tool_choice="none", **asked
        )
        items: Any = [{"role": "user", "content": "Hi"}, call.model_dump(exclude_none=True), output]
        same = client.responses.create(input=items, max_output_tokens=6, tool_choice="none", **asked)
        assert after.output_text == same.output_text
        assert after.usage is not None
        assert same.usage is not None
        assert after.usage.input_tokens == same.usage.input_tokens
        referred: Any = [items[0], {"type": "item_reference", "id": call.id}, output]
        again = client.responses.create(input=referred, max_output_tokens=6, tool_choice="none", **asked)
        assert again.output_text == same.output_text
        (kept,) = client.responses.retrieve(first.id).output
        assert kept.id == call.id
        assert [one.type for one in client.responses.input_items.list(after.id)] == ["function_call_output"]
        client.responses.delete(first.id)


def test_the_number_of_tokens(served: Served) -> None:
    asked = {"model": "one", "input": "Hi there", "instructions": "S"}
    status, found = ask(served, "POST", "/input_tokens", asked)
    assert (status, found["object"]) == (200, "response.input_tokens")
    assert found["input_tokens"] == made(served, "Hi there", instructions="S")["usage"]["input_tokens"]
    long = ask(served, "POST", "/input_tokens", {"model": "one", "input": "a" * 5000})[1]
    assert long["input_tokens"] > 5000, "what does not fit is counted too"
    after = made(served, "Hi")
    both = ask(served, "POST", "/input_tokens", {**asked, "previous_response_id": after["id"]})[1]
    assert both["input_tokens"] > found["input_tokens"]


def test_truncation_drops_the_first_messages(served: Served) -> None:
    """The context is 1,024 tokens and a letter is a token. Truncation leaves room for the answer's maximum."""
    talk = [
        {"role": "developer", "content": "S"},
        *({"role": "user" if at % 2 == 0 else "assistant", "content": f"{at}" * 150} for at in range(9)),
    ]
    assert ask(served, "POST", "", {**ASKED, "input": talk})[0] == 400
    cut = made(served, talk, truncation="auto")
    fewest = next(
        at for at in range(1, 10, 2)
        if ask(served, "POST", "/input_tokens", {"model": "one", "input": [talk[0], *talk[at:]]})[1]["input_tokens"]
        <= 1024 - 6
    )  # fmt: skip
    wanted = made(served, [talk[0], *talk[fewest:]])
    assert fewest > 1
    assert cut["output"][0]["content"] == wanted["output"][0]["content"]
    assert (cut["usage"]["input_tokens"], cut["truncation"]) == (wanted["usage"]["input_tokens"], "auto")
    count = ask(served, "POST", "/input_tokens", {"model": "one", "input": talk, "truncation": "auto"})[1]
    assert count["input_tokens"] <= 1024 - 256, "a quarter of the context is the answer's, if it says no limit"
    status, said = ask(served, "POST", "", {**ASKED, "input": "a" * 2000, "truncation": "auto"})
    assert (status, said["error"]["code"]) == (400, "context_length_exceeded")
    status, said = ask(served, "POST", "", {**ASKED, "input": "a", "truncation": "odd"})
    assert (status, said["error"]["param"]) == (400, "truncation")


def test_an_answer_of_a_tool_goes_with_its_call(served: Served) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "b" * 500}
    talk = [{"role": "user", "content": "a" * 500}, call, result, {"role": "user", "content": "c" * 100}]
    cut = made(served, talk, truncation="auto", tools=[CALLED], tool_choice="none")
    wanted = made(served, talk[3:], tools=[CALLED], tool_choice="none")
    assert cut["usage"]["input_tokens"] == wanted["usage"]["input_tokens"]


def test_what_is_not_built_is_refused_by_name(served: Served) -> None:
    for method, path, words in (("POST", "/compact", "not compacted"), ("GET", "", "no WebSocket")):
        status, said = ask(served, method, path, {} if method == "POST" else None)
        assert (status, words in said["error"]["message"]) == (404, True)


def response(number: str, size: int = 0, before: str | None = None) -> dict[str, Any]:
    return {"id": number, "output": [{"id": f"i{number}", "text": "x" * size}], "previous_response_id": before}


def test_a_key_keeps_the_last_it_has_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_RESPONSES", 3)
    own = OwnResponses(ResponseStore(), "a")
    for number in "123":
        own.put(response(number), [])
    own.get("1")
    own.put(response("4"), [])
    with pytest.raises(NotFound, match="'2'"):
        own.get("2")
    assert [own.get(number).body["id"] for number in "134"] == list("134")
    assert own.item("i3") == response("3")["output"][0]
    with pytest.raises(NotFound, match="'i2'"):
        own.item("i2")


def test_the_bytes_of_a_key_and_of_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_BYTES", 4000)
    monkeypatch.setattr(bounds, "MOST_IN_ALL", 5500)
    store = ResponseStore()
    for number in range(9):
        OwnResponses(store, "loud").put(response(str(number), 1000), [])
    OwnResponses(store, "loud").put(response("large", 5000), [])
    for key in ("b", "c", "d", "e"):
        OwnResponses(store, key).put(response("1", 900), [])
    for key in ("b", "c", "d", "e"):
        assert OwnResponses(store, key).get("1").nbytes > 900, "who holds little loses nothing"
    assert sum(one.nbytes for one in store.shelves.values()) <= 5500
    with pytest.raises(NotFound):
        OwnResponses(store, "loud").get("large")
    assert all(one.responses for one in store.shelves.values())


def test_a_chain_that_was_cut_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnResponses(ResponseStore(), "a")
    own.put(response("1"), [])
    own.put(response("2", before="1"), [{"id": "x"}])
    assert [one.body["id"] for one in own.turns("2")] == ["1", "2"]
    own.delete("1")
    with pytest.raises(ValueError, match="previous_response_id='2': response '1'"):
        own.turns("2")
