"""Ollama's fields: each has the same effect as in Ollama, or is refused with the reason."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.served import CALLS, NAMES, Served, models_folder, serving

import pellucid
from pellucid.cli.commands.serve import pulled
from pellucid.errors import InvalidRequest, ModelNotFound
from pellucid.llm import LLM
from pellucid.serve.apis.ollama_fields import CHAT, LONGEST, keep_alive_of
from pellucid.serve.guard import AccessRules
from pellucid.weights.sources.source import DownloadProgress, Silent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
USER: list[Any] = [{"role": "user", "content": "Hi"}]
OPTIONS: dict[str, Any] = {"seed": 5, "num_predict": 9, "temperature": 1.0}
OWN: dict[str, Any] = {
    "seed": 5, "max_new_tokens": 9, "temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("ollama"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[ollama.Client]:
    made = ollama.Client(host=served.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        yield made


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_context_of_an_answer_goes_before_the_next_prompt(client: ollama.Client, llm: LLM) -> None:
    first = client.generate("one", "to see", options=OPTIONS)
    began = llm.chat([{"role": "user", "content": "to see"}], **OWN)
    prompt = llm.tokenizer.encode_chat([{"role": "user", "content": "to see"}])
    assert list(first.context or ()) == [*prompt, *began.ids]
    second = client.generate("one", "it", context=first.context, options=OPTIONS)
    ids = [*prompt, *began.ids, *llm.tokenizer.encode_chat([{"role": "user", "content": "it"}])]
    assert second.response == llm.generate(ids, **OWN).text
    assert second.prompt_eval_count == len(ids)
    pieces = list(client.generate("one", "it", context=first.context, options=OPTIONS, stream=True))
    assert "".join(piece.response for piece in pieces) == second.response
    assert pieces[-1].context == second.context
    assert client.generate("one", "to see", raw=True, options=OPTIONS).context is None


def test_log_probabilities(served: Served, llm: LLM) -> None:
    wanted = llm.chat(USER, **OWN, logprobs=3).logprobs
    assert wanted is not None
    raw = llm.generate("to see", **OWN, logprobs=3).logprobs
    assert raw is not None
    asked = {"model": "one", "options": OPTIONS, "logprobs": True, "top_logprobs": 3}
    for path, body, expected in (
        ("/api/chat", {"messages": USER}, wanted),
        ("/api/generate", {"prompt": "Hi"}, wanted),
        ("/api/generate", {"prompt": "to see", "raw": True}, raw),
    ):
        whole = httpx.post(served.url + path, json={**asked, **body, "stream": False}).json()["logprobs"]
        assert [one["logprob"] for one in whole] == expected.chosen.tolist()
        assert [[top["logprob"] for top in one["top_logprobs"]] for one in whole] == expected.top.tolist()
        spelt = [bytes(one["bytes"]) for one in whole]
        assert spelt == [llm.tokenizer.token_bytes(int(token)) for token in expected.ids]
        lines = httpx.post(served.url + path, json={**asked, **body}).iter_lines()
        pieces = [httpx.Response(200, text=line).json() for line in lines]
        assert [one for piece in pieces for one in piece.get("logprobs", ())] == whole
        plain = httpx.post(served.url + path, json={**body, "model": "one", "stream": False})
        assert "logprobs" not in plain.json()


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/api/chat", {"messages": USER, "template": "{{ .Prompt }}"}, "template="),
        ("/api/generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template="),
        ("/api/generate", {"template": "{{ .Prompt }}"}, "template="),
        ("/api/chat", {"messages": USER, "top_logprobs": 3}, "needs logprobs=true"),
        ("/api/chat", {"messages": USER, "logprobs": True, "top_logprobs": 99}, "top_logprobs=99"),
        ("/api/chat", {"messages": USER, "keep_alive": "soon"}, "keep_alive='soon'"),
        ("/api/chat", {"messages": USER, "keep_alive": []}, "keep_alive=[]"),
        ("/api/chat", {"messages": USER, "keep_alive": 1e9}, "keep_alive=1000000000"),
        ("/api/chat", {"messages": USER, "think": True}, "no reasoning"),
        ("/api/chat", {"messages": USER, "odd": 1}, "'odd'"),
        ("/api/generate", {"odd": 1}, "'odd'"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "S"}, "system needs the chat template"),
        ("/api/generate", {"prompt": "a", "raw": True, "context": [1]}, "context needs the chat template"),
        ("/api/generate", {"prompt": "a", "suffix": "b", "format": "json"}, "format does not go with suffix"),
        ("/api/generate", {"prompt": "a", "context": [1 << 40]}, "context="),
        ("/api/generate", {"prompt": "a", "context": [5] * 2000}, "the context is 1,024"),
        ("/api/embed", {"model": "encoder", "input": "a", "options": {"odd": 1}}, "'options.odd'"),
        ("/api/embed", {"model": "encoder", "input": "a", "options": {"temperature": 1}}, "'options.temperature'"),
        ("/api/embeddings", {"model": "encoder", "prompt": "a", "odd": 1}, "'odd'"),
        ("/api/show", {"odd": 1}, "'odd'"),
        ("/api/pull", {"model": "one"}, "start it with --pull"),
        ("/api/pull", {}, "model is missing"),
        ("/api/pull", {"model": "one", "insecure": True}, "insecure=True"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(served: Served, path: str, body: dict[str, Any], word: str) -> None:
    answer = httpx.post(served.url + path, json={"model": "one", **body} if path != "/api/pull" else body)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]


def test_the_tensors_of_a_model(served: Served, llm: LLM) -> None:
    made = httpx.post(served.url + "/api/show", json={"model": "one", "verbose": True}).json()
    assert [one["name"] for one in made["tensors"]] == list(llm.checkpoint.tensors)
    assert "tensors" not in httpx.post(served.url + "/api/show", json={"model": "one"}).json()


@given(
    st.floats(0, 1e6) | st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from(["h", "m", "s", "ms"])), min_size=1, max_size=3),
)
def test_durations(number: float, parts: list[tuple[int, str]]) -> None:
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    assert keep_alive_of(number) == number
    assert keep_alive_of(-number - 1) is None
    text = "".join(f"{count}{unit}" for count, unit in parts)
    seconds = sum(count * units[unit] for count, unit in parts)
    assert keep_alive_of(text) == pytest.approx(seconds)
    assert keep_alive_of("-" + text) is None or not seconds


@pytest.mark.parametrize(("format_", "schema"), [("json", {"type": "object"}), ({}, {}), ("", None), (None, None)])
def test_a_format_is_a_schema(format_: Any, schema: Any) -> None:
    assert CHAT.decode({"model": "one", "format": format_}).fields.answer_schema == schema


@given(st.text(max_size=9) | st.floats())
def test_durations_that_are_none(value: Any) -> None:
    made: float | None = None
    with contextlib.suppress(InvalidRequest):
        made = keep_alive_of(value)
    assert made is None or 0 <= made <= LONGEST


def test_a_model_is_unloaded_when_its_time_is_over(folder: Path) -> None:
    with serving(folder) as made:
        client = ollama.Client(host=made.url)
        options = {"num_predict": 2}
        client.chat("one", USER, options=options, keep_alive=0)
        wait_until(lambda: made.models.loaded == [])
        assert client.ps().models == []
        assert client.chat("one", USER, options=options, keep_alive="10m").done
        (shown,) = client.ps().models
        assert shown.expires_at is not None
        assert 500 < shown.expires_at.timestamp() - time.time() < 601
        assert client.generate("one", "", keep_alive=0).done_reason == "unload"
        wait_until(lambda: made.models.loaded == [])
        assert client.generate("one", "", keep_alive=-1).done_reason == "load"
        (shown,) = client.ps().models
        assert shown.expires_at is not None
        assert shown.expires_at.year == 9999
        client.chat("one", USER, options=options, keep_alive=0.2)
        assert made.models.loaded == ["one"]
        wait_until(lambda: made.models.loaded == [])
        assert made.loads == ["one"] * 3
        client.close()


def test_a_model_that_is_used_is_not_unloaded(folder: Path) -> None:
    with serving(folder) as made:
        body = {"model": "one", "prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", made.url + "/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            client = ollama.Client(host=made.url)
            client.chat("one", USER, options={"num_predict": 1}, keep_alive=0)
            assert made.models.loaded == ["one"]
            assert list(lines)[-2] == "data: [DONE]"
            client.close()
        wait_until(lambda: made.models.loaded == [])


def test_who_has_a_key_unloads_nothing_of_others(folder: Path) -> None:
    with serving(folder, AccessRules(keys=["a"], admins=["b"])) as made:
        body = {"model": "one", "messages": USER, "stream": False, "keep_alive": 0, "options": {"num_predict": 1}}

        def status(key: str, path: str = "/api/chat", body: Any = body) -> int:
            return httpx.post(made.url + path, json=body, headers={"X-Api-Key": key}).status_code

        assert [status("a"), status("b")] == [400, 200]
        assert status("a", body={**body, "keep_alive": -1}) == 200
        assert status("a", "/api/pull", {"model": "one"}) == 400


class Pulls:
    """Fake downloads, each blocked until ``let`` is set."""

    def __init__(self) -> None:
        self.let, self.names = threading.Event(), list[str]()

    def __call__(self, name: str, progress: DownloadProgress) -> str:
        self.names.append(name)
        if name == "none":
            raise ModelNotFound("no model is called 'none'")
        progress.update(5, 10, "weights")
        assert self.let.wait(30)
        progress.update(10, 10, "weights")
        return name


def test_a_model_is_pulled_and_served(folder: Path) -> None:
    pulls = Pulls()
    with serving(folder, pull=pulls, names=["one", "encoder"]) as made:
        client = ollama.Client(host=made.url)
        lines = client.pull("two", stream=True)
        told = [next(lines)]
        while told[-1].status != "pulling weights":
            told.append(next(lines))
        assert (told[-1].completed, told[-1].total) == (5, 10)
        assert (told[-1].digest or "").startswith("sha256:")
        assert "two" not in [one.model for one in client.list().models]
        pulls.let.set()
        assert list(lines)[-1].status == "success"
        assert client.chat("two", USER, options={"num_predict": 1}).done
        assert client.pull("two:latest").status == "success"
        assert pulls.names == ["two", "two:latest".removesuffix(":latest")]
        with pytest.raises(ollama.ResponseError, match="no model is called"):
            client.pull("none")
        client.close()


def test_a_client_that_goes_leaves_no_download_in_the_way(folder: Path) -> None:
    pulls = Pulls()
    with serving(folder, pull=pulls) as made:
        for _ in range(8):
            with (
                pytest.raises(httpx.ReadTimeout),
                httpx.stream("POST", made.url + "/api/pull", json={"model": "two"}, timeout=0.3) as stream,
            ):
                list(stream.iter_lines())
        answer = httpx.post(made.url + "/api/pull", json={"model": "two"})
        assert answer.status_code == 503
        # Other requests are answered meanwhile.
        assert httpx.post(made.url + "/tokenize", json={"prompt": "a"}).status_code == 200
        assert pulls.names == ["two"]
        pulls.let.set()
        wait_until(lambda: httpx.post(made.url + "/api/pull", json={"model": "two"}).status_code == 200)


def test_clients_may_pull_what_the_catalogue_has() -> None:
    for name in ("/etc/passwd", "hf:org/repo", "pypi:x/y", "../x", ""):
        with pytest.raises(ModelNotFound):
            pulled(name, Silent())


def test_a_template_of_the_operators(folder: Path, tmp_path: Path) -> None:
    assert list(NAMES)
    with pellucid.load(folder / "one", threads=1, chat_template=CALLS) as llm:
        assert llm.tokenizer.chat_template == CALLS
        assert llm.inputs.tokenizer.chat_template == CALLS
