"""The fields ``steer`` and ``probes`` of requests, in all APIs, complete and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.served import Served, models_folder, serving

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.trace import ControlVector, LinearProbe, RegisteredVectors

WIDTH = 64
STEER = {"calm": 1.5, "french": -0.5}
COMMON: dict[str, Any] = {"model": "one", "temperature": 0, "ignore_eos": True, "steer": STEER, "probes": ["toxic"]}
MESSAGES = [{"role": "user", "content": "Hi"}]
NUMBER = {"max_tokens": 6}
APIS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, **NUMBER},
    "/v1/completions": {"prompt": "to see", **NUMBER},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 6},
    "/api/chat": {"messages": MESSAGES, "max_new_tokens": 6, "stream": False},
    "/api/generate": {"prompt": "to see", "raw": True, "max_new_tokens": 6, "stream": False},
    "/completion": {"prompt": "to see", "n_predict": 6},
}
RAW = ("/v1/completions", "/api/generate", "/completion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = models_folder(tmp_path_factory.mktemp("control"))
    vectors = made / "vectors"
    vectors.mkdir()
    draws = np.random.default_rng(3)

    def drawn() -> np.ndarray:
        return draws.normal(size=WIDTH).astype(np.float32)

    ControlVector({1: drawn()}).save(vectors / "calm.gguf")
    ControlVector({0: drawn(), 1: drawn()}).save(vectors / "french.safetensors")
    ControlVector({1: np.ones(3, np.float32)}).save(vectors / "other.gguf")
    LinearProbe("toxic", "blocks.1.residual", drawn(), sigmoid=True).save(vectors / "toxic.safetensors")
    return made


@pytest.fixture(scope="module")
def registered(folder: Path) -> RegisteredVectors:
    return RegisteredVectors.open(folder / "vectors")


@pytest.fixture(scope="module")
def served(folder: Path, registered: RegisteredVectors) -> Iterator[Served]:
    def load(name: str) -> LLM:
        llm = pellucid.load(folder / name, threads=2)
        llm.vectors = registered
        return llm

    with serving(folder, load=load) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path, registered: RegisteredVectors) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=2) as made:
        made.vectors = registered
        yield made


def asked(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(served.url + path, json={**COMMON, **APIS[path], **body}, timeout=60)


def events(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    lines = asked(served, path, stream=True, **body).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]


def entries(answer: Any) -> list[dict[str, Any]]:
    """The entries of ``probe_scores`` of an answer, at the top or in its only choice."""
    (choice,) = answer.get("choices") or [answer]
    return list(choice.get("probe_scores", []))


def text(answer: Any) -> str:
    if "choices" in answer:
        return str(answer["choices"][0].get("text") or answer["choices"][0]["message"]["content"])
    if "output" in answer:
        return str(answer["output"][0]["content"][0]["text"])
    return str(answer.get("content") or answer.get("response") or answer["message"]["content"])


@pytest.mark.parametrize("path", APIS)
def test_an_answer_has_the_scores_beside_its_tokens(served: Served, llm: LLM, path: str) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    prompt: Any = "to see" if path in RAW else MESSAGES
    wanted = llm.generate(prompt, steer=STEER, probes=["toxic"], **how)
    plain = llm.generate(prompt, **how)
    answer = asked(served, path).json()
    assert wanted.text != plain.text
    assert text(answer) == wanted.text
    assert wanted.probe_scores is not None
    found = entries(answer)
    assert [one["scores"] for one in found] == [{"toxic": score} for score in wanted.probe_scores["toxic"]]
    spelt = [llm.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in wanted.ids]
    assert [one["token"] for one in found if "bytes:" not in one["token"]] == [
        one for one, entry in zip(spelt, found) if "bytes:" not in entry["token"]
    ]
    streamed = [one for event in events(served, path) if event.get("choices") != [] for one in entries(event)]
    if path == "/v1/responses":
        last = events(served, path)[-1]
        assert last["response"]["probe_scores"] == found
        assert streamed == found[: len(streamed)]
        assert streamed
    else:
        assert streamed == found


@pytest.mark.parametrize("path", APIS)
def test_an_answer_without_probes_has_no_field(served: Served, path: str) -> None:
    assert "probe_scores" not in asked(served, path, probes=None).text
    assert "probe_scores" not in asked(served, path, probes=None, stream=True).text


def test_scores_are_beside_log_probabilities_too(served: Served) -> None:
    (choice,) = asked(served, "/v1/chat/completions", logprobs=True).json()["choices"]
    assert [one["token"] for one in choice["probe_scores"]] == [one["token"] for one in choice["logprobs"]["content"]]


@pytest.mark.parametrize("path", APIS)
def test_a_score_above_the_limit_ends_the_answer(served: Served, path: str) -> None:
    found = entries(asked(served, path).json())
    scores = [one["scores"]["toxic"] for one in found]
    highest = scores.index(max(scores))
    limit = sorted(scores)[-2]
    answer = asked(served, path, probes={"toxic": {"stop_above": limit}}).json()
    stopped = entries(answer)
    assert stopped == [*found[:highest], {**found[highest], "stop": "toxic"}]
    streamed = events(served, path, probes={"toxic": {"stop_above": limit}})
    assert '"stop": "toxic"' in json.dumps(streamed)
    if "choices" in answer:
        assert answer["choices"][0]["finish_reason"] == "stop"
    if "done_reason" in answer:
        assert answer["done_reason"] == "stop"
    if path == "/completion":
        assert (answer["stop_type"], answer["stopping_word"]) == ("eos", "")


@pytest.mark.parametrize("path", APIS)
def test_errors_name_the_field_and_the_registered_names(served: Served, path: str) -> None:
    for body, said in (
        ({"steer": {"clam": 1}}, "steer='clam': the registered control vectors are calm, french, other"),
        ({"probes": ["toxin"]}, "probes='toxin': the registered probes are toxic"),
        ({"steer": {"calm": 1001}}, "steer.calm=1001: must be"),
        ({"steer": {"other": 1}}, "steer.other: the vector has width 3, and the model has 64"),
        ({"probes": {"toxic": {"stop": 1}}}, "must be an object with stop_above"),
    ):
        answer = asked(served, path, **body)
        assert answer.status_code == 400, (answer.text, said)
        error = answer.json()["error"]
        assert said in (error["message"] if isinstance(error, dict) else error)
    wrong = asked(served, "/v1/chat/completions", steer={"clam": 1}).json()["error"]
    assert wrong["param"] == "steer"


def test_ollamas_options_and_anthropics_messages_steer_too(served: Served, llm: LLM) -> None:
    wanted = llm.generate(MESSAGES, steer=STEER, temperature=0, max_new_tokens=6, ignore_eos=True).text
    inside = {"steer": STEER, "num_predict": 6, "temperature": 0, "ignore_eos": True}
    body = {"model": "one", "messages": MESSAGES, "stream": False, "options": inside}
    assert text(httpx.post(f"{served.url}/api/chat", json=body, timeout=60).json()) == wanted
    message = {"model": "one", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{served.url}/v1/messages", json={**message, "steer": STEER}, timeout=60).json()
    assert answer["content"][0]["text"] == wanted
    refused = httpx.post(f"{served.url}/v1/messages", json={**message, "probes": ["toxic"]}, timeout=60)
    assert refused.status_code == 400


def test_the_schema_has_the_fields(served: Served) -> None:
    schema = httpx.get(f"{served.url}/openapi.json").json()
    body = json.dumps(schema["paths"]["/v1/chat/completions"]["post"])
    assert '"steer"' in body
    assert '"stop_above"' in body


def test_a_guard_applies_to_every_request(llm: LLM) -> None:
    """Also to requests that name no probe. Of two limits the lower applies."""
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    scores, before = llm.generate("to see", probes=["toxic"], **how).probe_scores["toxic"], llm.vectors
    limit, ends, probe = sorted(scores)[-2], scores.index(max(scores)), before.probes["toxic"]
    llm.vectors = before.guarded({"toxic": limit})
    try:
        assert llm.vectors.digest != before.digest
        made = llm.generate("to see", **how)
        assert (made.finish_reason, made.stop_reason, len(made.ids)) == ("probe", "toxic", ends + 1)
        assert set(llm.chat(MESSAGES, **how).probe_scores) == {"toxic"}
        assert llm.generate("to see", probes=[probe.stopping(-1e9)], **how).text == ""
        assert llm.generate("to see", probes=[probe.stopping(1e9)], **how).ids == made.ids
    finally:
        llm.vectors = before
    with pytest.raises(InvalidRequest, match="the registered probes are toxic"):
        before.guarded({"calm": 1.0})
    with pytest.raises(InvalidRequest, match="stop_above"):
        before.guarded({"toxic": float("nan")})


def test_guards_of_a_server(folder: Path, registered: RegisteredVectors) -> None:
    """A guard with the lowest limit ends every answer before its first token."""

    def load(name: str) -> LLM:
        llm = pellucid.load(folder / name, threads=2)
        llm.vectors = registered.guarded({"toxic": -1e9})
        return llm

    with serving(folder, load=load) as made:
        for path in APIS:
            body = {name: value for name, value in COMMON.items() if name != "probes"}
            answer = httpx.post(made.url + path, json={**body, **APIS[path]}, timeout=60).json()
            assert [one["stop"] for one in entries(answer)] == ["toxic"], path
        message = {"model": "one", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
        answer = httpx.post(f"{made.url}/v1/messages", json=message, timeout=60).json()
        assert "".join(part["text"] for part in answer["content"]) == ""
        facts = httpx.get(f"{made.url}/look/models/one", timeout=60).json()
        assert facts["vectors"] == {"calm": [1], "french": [0, 1], "other": [1]}
        assert facts["probes"] == {"toxic": {"point": "blocks.1.residual", "guard": -1e9}}
