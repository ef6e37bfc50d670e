"""Batches: every request has a single answer after any failure, equal to the result of the Python API."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import interrupt_main

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.load_options import LoadOptions
from pellucid.serve.batch import Batch, read_lines
from pellucid.serve.batch_output import DIGITS, EARLY, AnswerId, hash_of, options_hash
from pellucid.testing import random_model

PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(random_model("llama", tmp_path_factory.mktemp("batch") / "tiny.gguf", vocabulary=320, context=1024))


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with pellucid.load(path, threads=2) as made:
        yield made


def request(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "tiny", **body}}


def written(folder: Path, *lines: Any) -> Path:
    source = folder / "in.jsonl"
    source.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return source


def answers(target: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    by_name = {one["custom_id"]: one for one in found}  # in the order of the file
    assert len(by_name) == len(found), "an answer twice"
    return by_name


def bound(source: Path, target: Path, name: str | None = None, together: int = 64) -> Batch:
    """A batch that is bound to a model."""
    batch = Batch(source, target, name, together)
    batch.bind("a" * 64, "b" * 64)
    return batch


def answer_id(source: Path, name: str) -> str:
    """The id of the answer to the request ``name``."""
    (line,) = (line for line in read_lines(source) if line.custom_id == name)
    return str(AnswerId(hash_of([line.url, line.body]), "a" * DIGITS, "b" * DIGITS))


def body_of(answer: dict[str, Any], status: int = 200) -> Any:
    assert answer["response"]["status_code"] == status
    return answer["response"]["body"]


def test_answers_are_those_of_the_python_api(llm: LLM, tmp_path: Path) -> None:
    greedy = {"temperature": 0, "max_tokens": 9, "ignore_eos": True}
    source = written(
        tmp_path,
        request("text", prompt="to see", **greedy),
        "",
        request("ids", prompt=[[5, 6, 7], [8, 9]], **greedy),
        request("drawn", prompt="to see", seed=3, n=2, max_tokens=7, ignore_eos=True),
        request("scored", prompt="to see that", echo=True, logprobs=1, temperature=0, max_tokens=1),
        request("biased", prompt="a", logit_bias={"70": 100}, temperature=0, max_tokens=4),
        request("usual", prompt="a", ignore_eos=True, user="me"),
    )
    batch = bound(source, tmp_path / "out.jsonl", "tiny")
    batch.run(llm)
    assert (batch.answered, batch.total, batch.failed) == (6, 6, 0)
    found = answers(tmp_path / "out.jsonl")
    assert list(found) == ["text", "ids", "drawn", "scored", "biased", "usual"]
    alone = {"temperature": 0, "max_new_tokens": 9, "ignore_eos": True}
    text = body_of(found["text"])
    assert text["choices"][0]["text"] == llm.generate("to see", **alone).text
    assert text["choices"][0]["finish_reason"] == "length"
    assert (text["object"], text["model"]) == ("text_completion", "tiny")
    assert text["usage"]["total_tokens"] == text["usage"]["prompt_tokens"] + 9
    ids = body_of(found["ids"])
    assert [one["text"] for one in ids["choices"]] == [one.text for one in llm.generate([[5, 6, 7], [8, 9]], **alone)]
    assert (ids["usage"]["prompt_tokens"], ids["usage"]["completion_tokens"]) == (5, 18)
    drawn = llm.samples("to see", 2, seed=3, max_new_tokens=7, ignore_eos=True, **PLAIN)
    assert [one["text"] for one in body_of(found["drawn"])["choices"]] == [one.text for one in drawn]
    assert len(llm.tokenizer.encode(body_of(found["usual"])["choices"][0]["text"])) > 0
    assert body_of(found["usual"])["usage"]["completion_tokens"] == 16
    assert set(llm.tokenizer.encode(body_of(found["biased"])["choices"][0]["text"], add_special=False)) == {70}
    scored = body_of(found["scored"])["choices"][0]
    prompt = llm.tokenizer.encode("to see that")
    wanted = llm.score("to see that").logprobs.chosen
    assert scored["logprobs"]["token_logprobs"][0] is None
    np.testing.assert_array_equal(scored["logprobs"]["token_logprobs"][1 : len(prompt)], wanted)
    assert len(scored["logprobs"]["tokens"]) == len(prompt) + 1
    assert len(scored["logprobs"]["text_offset"]) == len(prompt) + 1
    assert [len(one) for one in scored["logprobs"]["top_logprobs"][1:]] == [1] * len(prompt)
    assert scored["text"].startswith("to see that")


def early(target: Path) -> Path:
    return target.with_name(target.name + EARLY)


def bytes_of(target: Path) -> int:
    """Number of bytes of the answers on disk."""
    return sum(one.stat().st_size for one in (target, early(target)) if one.exists())


CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def test_chat(path: Path, tmp_path: Path) -> None:
    with_template = Path(random_model("llama", tmp_path / "chat", kind="safetensors", vocabulary=320, context=1024))
    (with_template / "chat_template.jinja").write_text(CHAT)
    messages = [{"role": "user", "content": "Hi"}]
    url = "/v1/chat/completions"
    source = written(
        tmp_path,
        request("plain", url, messages=messages, temperature=0, max_completion_tokens=5, ignore_eos=True),
        request("logs", url, messages=messages, logprobs=True, top_logprobs=3, max_tokens=4, seed=1, ignore_eos=True),
        request("two", url, messages=messages, n=2, seed=1, max_tokens=4, ignore_eos=True),
        request("json", url, messages=messages, response_format={"type": "json_object"}, max_tokens=200, seed=2),
        request(
            "schema",
            url,
            messages=messages,
            max_tokens=60,
            seed=2,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["abc"]}}},
        ),
    )
    with pellucid.load(with_template, threads=2) as llm:
        bound(source, tmp_path / "out.jsonl", "tiny").run(llm)
        found = answers(tmp_path / "out.jsonl")
        alone = llm.chat(messages, temperature=0, max_new_tokens=5, ignore_eos=True)
        logs = llm.chat(messages, seed=1, max_new_tokens=4, ignore_eos=True, logprobs=3, **PLAIN)
    plain = body_of(found["plain"])
    message = {"role": "assistant", "content": alone.text, "refusal": None, "annotations": []}
    assert plain["choices"][0]["message"] == message
    content = body_of(found["logs"])["choices"][0]["logprobs"]["content"]
    assert logs.logprobs is not None
    np.testing.assert_array_equal([one["logprob"] for one in content], logs.logprobs.chosen)
    assert all(len(one["top_logprobs"]) == 3 for one in content)
    assert [one["index"] for one in body_of(found["two"])["choices"]] == [0, 1]
    assert json.loads(body_of(found["schema"])["choices"][0]["message"]["content"]) == "abc"
    assert body_of(found["json"])["choices"][0]["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize(
    ("url", "body", "word"),
    [
        ("/v1/completions", {}, "prompt is missing"),
        ("/v1/completions", {"prompt": 5}, "prompt=5"),
        ("/v1/completions", {"prompt": ["a", 3]}, "prompt=3"),
        ("/v1/completions", {"prompt": "a", "n": 0}, "n=0: must be a whole number from 1 to 64"),
        ("/v1/completions", {"prompt": "a", "logprobs": True}, "logprobs=True"),
        ("/v1/completions", {"prompt": "a", "temprature": 1}, "did you mean temperature"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -1}, "max_tokens=-1"),
        ("/v1/completions", {"prompt": "a", "stream": True}, "stream=true"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"x": 1}}, "token ids"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias[5]=101"),
        ("/v1/completions", {"prompt": "a" * 9000}, "the context is 1,024"),
        ("/v1/chat/completions", {"messages": []}, "messages is empty"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "logprobs=true"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "tools": [{}]}, "tools[0].type is missing"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "response_format": "json"}, "response_format="),
        ("/v1/embeddings", {"input": "a"}, "not sentence vectors"),
    ],
)
def test_a_wrong_request_is_an_answer_that_names_the_field(
    llm: LLM, tmp_path: Path, url: str, body: dict[str, Any], word: str
) -> None:
    source = written(tmp_path, request("wrong", url, **body), request("right", prompt="a", max_tokens=1))
    batch = bound(source, tmp_path / "out.jsonl", "tiny")
    batch.run(llm)
    found = answers(tmp_path / "out.jsonl")
    error = body_of(found["wrong"], 400)["error"]
    assert word in error["message"]
    assert error["type"] == "invalid_request_error"
    body_of(found["right"])
    assert batch.failed == 1


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "line 2: is not JSON"),
        ("[" * 100_000, "line 2: is not JSON"),
        ("[]", "must be an object"),
        ({"url": "/v1/completions"}, "custom_id is None"),
        ({"custom_id": "b", "url": "/v1/images"}, "/v1/images"),
        ({"custom_id": "b", "url": ["x"]}, "must be POST to"),
        ({"custom_id": "b", "method": "GET", "url": "/v1/completions"}, "'GET'"),
        (request("a", prompt="a"), "custom_id 'a' is a duplicate"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: Any, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Batch(written(tmp_path, request("a", prompt="a"), line), tmp_path / "out.jsonl")
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    source = written(tmp_path, request("a", prompt="a"))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Batch(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        Batch(source, tmp_path / "none" / "out.jsonl")
    with pytest.raises(InvalidRequest, match="not an answer of a batch"):
        Batch(source, written(tmp_path / "other", {"custom_id": 5}))


@pytest.mark.parametrize("how", ["itself", "symbolic link", "hard link", "early"])
def test_the_output_is_not_the_file_of_requests(tmp_path: Path, how: str) -> None:
    source = written(tmp_path, request("a", prompt="a"))
    before, target = source.read_bytes(), tmp_path / "out.jsonl"
    if how == "itself":
        target = source
    elif how == "symbolic link":
        target.symlink_to(source)
    elif how == "hard link":
        target.hardlink_to(source)
    else:
        source = source.rename(early(target))
    with pytest.raises(InvalidRequest, match="is the same file as"):
        Batch(source, target)
    assert source.read_bytes() == before


def test_requests_for_several_models_need_one_name(tmp_path: Path) -> None:
    source = written(tmp_path, request("a", prompt="a"), request("b", model="other", prompt="a"), request("c", model=5))
    batch = Batch(source, tmp_path / "out.jsonl")
    with pytest.raises(InvalidRequest, match=r"the requests name 2 models \('tiny', 'other', …\): split the file"):
        _ = batch.model


def test_every_option_that_can_change_an_answer_is_bound() -> None:
    usual, seen = LoadOptions(), set[str]()
    changed: dict[str, Any] = {"context": 64, "precise": True, "kv_cache": "f32", "chat_template": "x"}
    changed |= {
        "activations": 16,
        "cap_context": True,
        "threads": 1,
        "pin": "none",
        "cache_memory": 1.0,
        "draft": "x",
        "pulls": False,
        "task": "embed",
        "adapter": "separation",
        "dictionaries": ["a=b"],
    }
    assert set(changed) == set(LoadOptions.__struct_fields__), "decide whether the new option changes answers"
    for name, value in changed.items():
        if options_hash(LoadOptions(**{name: value})) != options_hash(usual):
            seen.add(name)
    answers = {"context", "precise", "kv_cache", "activations", "chat_template", "cap_context", "task", "adapter"}
    assert seen == answers


def test_an_interrupted_batch_goes_on(llm: LLM, tmp_path: Path) -> None:
    """Existing answers stay. An unfinished line is truncated and generated again."""
    source = written(tmp_path, *(request(f"r{n}", prompt=[n + 2], max_tokens=3) for n in range(10)))
    target = tmp_path / "out.jsonl"
    bound(source, target, "tiny").run(llm)
    whole = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(whole[:4]) + whole[4][:30])
    kept = target.read_bytes()[: sum(map(len, whole[:4]))]
    batch = bound(source, target, "tiny")
    assert (batch.answered, len(batch.lines)) == (4, 6)
    batch.run(llm)
    assert target.read_bytes().startswith(kept)
    assert list(answers(target)) == [f"r{n}" for n in range(10)]
    again = bound(source, target, "tiny")
    assert again.lines == []
    changed = [request(f"r{n}", prompt=[n + 2], max_tokens=4 if n == 6 else 3) for n in range(10)]
    with pytest.raises(InvalidRequest, match=r"out\.jsonl, line 7: 'r6' is the answer to another request"):
        bound(written(tmp_path, *changed), target, "tiny")


@pytest.mark.parametrize("unfinished", [b"", b'{"id": "ba'])
def test_empty_lines_between_answers_cost_none_of_them(tmp_path: Path, unfinished: bytes) -> None:
    source = written(tmp_path, *(request(f"r{n}", prompt="a") for n in range(3)))
    target = tmp_path / "out.jsonl"
    lines = [json.dumps({"id": answer_id(source, name), "custom_id": name}).encode() for name in ("r0", "r1")]
    kept = lines[0] + b"\n\n\n \n" + lines[1] + b"\n"
    target.write_bytes(kept + unfinished)
    assert [line.custom_id for line in Batch(source, target).lines] == ["r2"]
    assert target.read_bytes() == kept


def test_ctrl_c_can_leave_no_lock_of_a_batch_locked(
    path: Path, tmp_path: Path, conditions_of_main: list[threading.Condition]
) -> None:
    source = written(tmp_path, *(request(f"r{n}", prompt=[n + 2], max_tokens=2) for n in range(100)))
    batch = bound(source, tmp_path / "out.jsonl", "tiny")
    with pellucid.load(path, threads=2) as llm:
        conditions_of_main.clear()
        batch.run(llm)
        assert not conditions_of_main
    assert batch.answered == 100


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_batch_writes_no_error_of_the_closed_model(path: Path, tmp_path: Path) -> None:
    source = written(tmp_path, *(request(f"r{n}", prompt=[n + 2], max_tokens=200, ignore_eos=True) for n in range(200)))
    batch, sent = bound(source, tmp_path / "out.jsonl", "tiny"), list[int]()

    def report(answered: int, _: int) -> None:
        if answered >= 5 and not sent:
            sent.append(answered)
            interrupt_main()

    with pellucid.load(path, threads=2) as llm, pytest.raises(KeyboardInterrupt):
        batch.run(llm, report)
    assert 5 <= batch.answered < 200
    assert not bound(source, tmp_path / "out.jsonl", "tiny").failed


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_is_killed_loses_nothing_and_makes_nothing_twice(path: Path, tmp_path: Path, how: int) -> None:
    requests = [
        request(f"r{n}", prompt=[n % 200 + 2] * 20, max_tokens=80 if n else 900, ignore_eos=True) for n in range(300)
    ]
    source, target = written(tmp_path, *requests), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pellucid", "batch", str(source), str(target), "--model", str(path)]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        size, end = bytes_of(target), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if bytes_of(target) > size + 20_000:
                process.send_signal(how)
                break
            time.sleep(0.01)
        _out, err = process.communicate(timeout=60)
        assert b"Traceback" not in err
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "300 of 300 requests answered" in done.stdout
    found = answers(target)
    assert list(found) == [f"r{n}" for n in range(300)]
    assert [body_of(one)["usage"]["completion_tokens"] for one in found.values()] == [900, *[80] * 299]
    assert bytes_of(target) == target.stat().st_size, "nothing is left beside it"


@pytest.mark.model
def test_embeddings(tmp_path: Path) -> None:
    texts = ["a stone", "rain"]
    source = written(
        tmp_path,
        request("list", "/v1/embeddings", input=texts),
        request("one", "/v1/embeddings", input="rain", encoding_format="base64"),
        request("wide", "/v1/embeddings", input="rain", dimensions=5),
        request("odd", "/v1/embeddings", input="rain", temperature=1),
    )
    with pellucid.load("minilm") as llm:
        bound(source, tmp_path / "out.jsonl", "minilm").run(llm)
        vectors = llm.embed(texts)
    found = answers(tmp_path / "out.jsonl")
    listed = body_of(found["list"])
    np.testing.assert_array_equal(np.float32([one["embedding"] for one in listed["data"]]), vectors)
    raw = base64.b64decode(body_of(found["one"])["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), vectors[1])
    assert "dimensions=5" in body_of(found["wide"], 400)["error"]["message"]
    assert "temperature" in body_of(found["odd"], 400)["error"]["message"]
    assert listed["usage"]["prompt_tokens"] > 4
