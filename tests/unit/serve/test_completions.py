"""/v1/completions and /v1/embeddings: streams equal complete responses, prompts are scored, token ids have vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from support.served import Served, models_folder, serving

import pellucid
from pellucid.llm import LLM

ASKED: dict[str, Any] = {"model": "one", "max_tokens": 12, "seed": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = models_folder(tmp_path_factory.mktemp("completions"))
    states = made / "encoder" / "config.json"
    config = json.loads(states.read_text())
    states.write_text(json.dumps({**config, "matryoshka_dimensions": [16, 32]}))
    (made / "two").rename(made / "generates")
    (made / "two").mkdir()
    for file in (made / "encoder").iterdir():
        (made / "two" / file.name).write_bytes(file.read_bytes())
    (made / "two" / "config.json").write_text(json.dumps(config))  # the same model without the statement
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "encoder", threads=1) as made:
        yield made


def asked(served: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)
    if answer.status_code != 200:
        return answer.json()["error"]["message"]
    if not body.get("stream"):
        return answer.json()
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def joined(events: list[Any], choice: int) -> tuple[str, dict[str, list[Any]] | None, str | None]:
    """Join a streamed text. Returns the text, its log-probabilities and its finish reason."""
    found = [one for event in events for one in event["choices"] if one["index"] == choice]
    tables = [one["logprobs"] for one in found if one["logprobs"]]
    tables = {name: [value for table in tables for value in table[name]] for name in tables[0]} if tables else None
    return "".join(one["text"] for one in found), tables, found[-1]["finish_reason"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_a_stream_has_what_the_answer_has(served: Served, echo: bool, logprobs: int | None) -> None:
    more = {**ASKED, "prompt": ["to see", "rain"], "n": 2, "echo": echo, "logprobs": logprobs}
    whole = asked(served, "completions", **more)
    events = asked(served, "completions", stream=True, stream_options={"include_usage": True}, **more)
    for choice in whole["choices"]:
        wanted = (choice["text"], choice["logprobs"], choice["finish_reason"])
        assert joined(events, choice["index"]) == wanted
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 48


def test_a_text_that_stops_has_its_last_tokens_in_a_stream(served: Served, llm: LLM) -> None:
    text = llm.generate("to see", temperature=0, max_new_tokens=12, ignore_eos=True).text
    more = {**ASKED, "prompt": "to see", "temperature": 0, "logprobs": 1, "stop": text[5:7]}
    (whole,) = asked(served, "completions", **more)["choices"]
    assert whole["finish_reason"] == "stop"
    events = asked(served, "completions", stream=True, **more)
    assert joined(events, 0) == (whole["text"], whole["logprobs"], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_after_an_echo_score_the_prompt(served: Served, llm: LLM, stream: bool) -> None:
    body = {"model": "one", "prompt": ["to see", "rain"], "max_tokens": 0, "echo": True, "logprobs": 2}
    found = asked(served, "completions", stream=stream, **body)
    for at, text in enumerate(("to see", "rain")):
        if stream:
            said, table, reason = joined(found, at)
        else:
            choice = found["choices"][at]
            said, table, reason = choice["text"], choice["logprobs"], choice["finish_reason"]
        assert (said, reason) == (text, "length")
        assert table is not None
        scores = llm.score(text, top=2).logprobs
        assert table["token_logprobs"] == [None, *scores.chosen.tolist()]
        assert "".join(table["tokens"]) == text
        assert table["text_offset"] == list(range(len(text)))
        tops = [sorted(one.values(), reverse=True) for one in table["top_logprobs"][1:]]
        assert tops == scores.top.tolist()
    if not stream:
        assert found["usage"]["completion_tokens"] == 0
        assert found["usage"]["prompt_tokens"] == 10


def test_a_prompt_alone_is_echoed(served: Served) -> None:
    found = asked(served, "completions", model="one", prompt="to see", max_tokens=0, echo=True)
    assert [(one["text"], one["logprobs"]) for one in found["choices"]] == [("to see", None)]
    assert "max_tokens=0" in asked(served, "completions", model="one", prompt="a", max_tokens=0)
    assert "max_tokens=False" in asked(served, "completions", model="one", prompt="a", max_tokens=False, echo=True)


def vectors(found: Any) -> NDArray[np.float64]:
    return np.array([one["embedding"] for one in found["data"]])


def test_vectors_of_token_ids(served: Served, encoder: LLM) -> None:
    texts = ["to see", "rain"]
    ids = [encoder.tokenizer.encode(text) for text in texts]
    wanted = encoder.embed(texts)
    for given in (texts, ids, [texts[0], ids[1]], [ids[0], texts[1]]):
        found = asked(served, "embeddings", model="encoder", input=given)
        np.testing.assert_array_equal(vectors(found), wanted)
        assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    for one in (texts[0], ids[0]):
        np.testing.assert_array_equal(vectors(asked(served, "embeddings", model="encoder", input=one)), wanted[:1])
    raw = asked(served, "embeddings", model="encoder", input=ids[0], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw), "<f4"), wanted[0])


def test_shorter_vectors(served: Served, encoder: LLM) -> None:
    """Vectors are cut and scaled to length 1 in float64, if the model states that it was trained for this."""
    whole = encoder.embed(["to see", "rain"]).astype(np.float64)
    for width in (16, 32):
        found = asked(served, "embeddings", model="encoder", input=["to see", "rain"], dimensions=width)
        cut = whole[:, :width]
        np.testing.assert_allclose(vectors(found), cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-6)
    full = asked(served, "embeddings", model="encoder", input=["to see", "rain"], dimensions=64)
    np.testing.assert_array_equal(vectors(full), whole)
    for width, words in ((17, "can be cut to 16, 32"), (65, "can be cut to 16, 32"), (0, "dimensions=0")):
        assert words in asked(served, "embeddings", model="encoder", input="a", dimensions=width)
    assert "states no shorter length" in asked(served, "embeddings", model="two", input="a", dimensions=16)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "input=[]"),
        ([[]], "input=[[]]"),
        ([[1], []], "input="),
        ([1, "a"], "input"),
        (["a", 1], "input="),
        ([[1, "a"]], "input[0][1]='a': must be a token id"),
        ([10**9], "input holds a token id"),
        ([-1], "input[0]=-1: must be a text, a token id, a list of token ids or an object"),
        ([True], "input"),
        ([1.5], "input"),
        ({}, "input={}"),
        (5, "input=5"),
        ([[[1]]], "input"),
        ([5] * 300, "300 tokens; the context is 256 tokens"),
        (["a"] * 2049, "2,049 texts"),
        ("", "text=''"),
    ],
)
def test_wrong_inputs(served: Served, given: Any, words: str) -> None:
    assert words in asked(served, "embeddings", model="encoder", input=given)
