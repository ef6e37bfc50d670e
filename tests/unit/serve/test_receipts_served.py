"""Every API gives receipts, complete and streamed, alone and on a cluster; a loaded model replays them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

pytest.importorskip("zmq", reason="pip install 'pellucid[cluster]'")
pytest.importorskip("msgpack", reason="pip install 'pellucid[cluster]'")

from support.held_replica import held
from support.served import models_folder, serving

import pellucid
from pellucid.cluster.remote_model import RemoteModel
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.loading import open_model
from pellucid.receipts.receipt import ModelIdentity

pytestmark = pytest.mark.slow
Json: TypeAlias = "dict[str, Any]"
MESSAGES = [{"role": "user", "content": "Hi"}]
HOW = {"temperature": 1.4, "seed": 7, "ignore_eos": True, "receipt": True}
BODIES: dict[str, Json] = {
    "/v1/chat/completions": {"model": "one", "messages": MESSAGES, "n": 2, "max_tokens": 9, **HOW},
    "/v1/completions": {"model": "one", "prompt": ["to see", "rain"], "n": 2, "max_tokens": 9, **HOW},
    "/v1/responses": {"model": "one", "input": "Hi", "max_output_tokens": 9, **HOW},
    "/v1/messages": {"model": "one", "messages": MESSAGES, "max_tokens": 9, **HOW},
    "/api/chat": {"model": "one", "messages": MESSAGES, "max_new_tokens": 9, **HOW},
    "/api/generate": {"model": "one", "prompt": "Hi", "options": {"num_predict": 9, **HOW}},
    "/completion": {"prompt": "Hi", "n_predict": 9, "n": 2, **HOW},
    "/infill": {"input_prefix": "a = ", "input_suffix": "\n", "n_predict": 9, **HOW},
}
ANSWERS = {"/v1/chat/completions": 2, "/v1/completions": 4, "/completion": 2}
"""Number of receipts, where it is not 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("receipts"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=1) as made:
        yield made


@pytest.fixture(scope="module", params=["alone", "cluster"])
def url(request: pytest.FixtureRequest, folder: Path, llm: LLM) -> Iterator[str]:
    with serving(folder, load=held(llm, folder / "one", 7) if request.param == "cluster" else None) as made:
        yield made.url


def receipts_in(value: Any) -> list[Json]:
    if isinstance(value, list):
        return [found for one in value for found in receipts_in(one)]
    if not isinstance(value, dict):
        return []
    own = [value["receipt"]] if isinstance(value.get("receipt"), dict) else []
    return own + [found for name, one in value.items() if name != "receipt" for found in receipts_in(one)]


@pytest.mark.parametrize("path", BODIES)
def test_the_receipts_of_an_answer(url: str, llm: LLM, path: str) -> None:
    whole = httpx.post(url + path, json={**BODIES[path], "stream": False}, timeout=60)
    assert whole.status_code == 200, whole.text
    found = receipts_in(whole.json())
    assert len(found) == ANSWERS.get(path, 1)
    for receipt in found:
        assert llm.verify_receipt(receipt).message == "equal: 9 tokens"
    stream = httpx.post(url + path, json={**BODIES[path], "stream": True}, timeout=60)
    lines = (line.removeprefix("data: ") for line in stream.text.splitlines())
    events = [json.loads(line) for line in lines if line.startswith("{")]
    streamed = receipts_in(events)
    assert sorted(map(json.dumps, streamed)) == sorted(map(json.dumps, found))
    assert receipts_in(events[-3:]), "the receipt is at the end of the stream"


def test_without_the_field_there_is_no_receipt(url: str) -> None:
    body = {name: value for name, value in BODIES["/v1/chat/completions"].items() if name != "receipt"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert "receipt" not in answer.text


def test_a_tool_grammar_is_replayed(url: str, llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {**BODIES["/v1/chat/completions"], "response_format": form, "max_tokens": 40}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    for receipt in receipts_in(answer.json()):
        assert "grammar" in receipt["request"]["options"]
        assert llm.verify_receipt(receipt)


def test_stages_and_continued_requests_have_no_receipt(llm: LLM, folder: Path) -> None:
    async def work() -> None:
        model = await held(llm, folder / "one", 7)("one")
        with pytest.raises(InvalidRequest, match="receipt=True: the request continues an earlier answer"):
            model.request("Hi", resumed=[5], receipt=True)
        staged = RemoteModel(open_model(folder / "one"), model.fleet, stages=2)
        with pytest.raises(InvalidRequest, match="receipt=True: the model runs in stages on several machines"):
            staged.request("Hi", receipt=True)
        staged.checkpoint.close()
        await model.fleet.close()

    asyncio.run(work())


def test_replicas_with_different_weights_give_an_error(llm: LLM, folder: Path) -> None:
    async def work() -> None:
        model = await held(llm, folder / "one", 7)("one")
        request = model.request("Hi", receipt=True, max_new_tokens=4)
        assert request.receipts is not None
        request.receipts.identify(ModelIdentity("other", "0.1", "0" * 64, "0" * 64, "0" * 64, 9))
        request.start()
        with pytest.raises(pellucid.errors.KernelError, match="the replicas of the model have different weights"):
            await request.finished()
        await model.fleet.close()

    asyncio.run(work())
