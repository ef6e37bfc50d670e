"""POST /v1/systemone: its form, its errors, and answers equal to the Python API's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.decisions import SHAPE, decision_model, tokenizer
from support.marked_options import marked_model
from support.option_models import ARCHITECTURES, option_model
from support.served import NAMES, Served, serving

import pellucid
from pellucid.llm import LLM
from pellucid.testing import random_model

STATE = "I was charged twice for my order last week and nobody has replied."
QUESTIONS: dict[str, Any] = {
    "route": {
        "type": "choice",
        "instructions": "Which team should handle this?",
        "criteria": {"billing": "payments and refunds", "shipping": None, "technical": None},
    },
    "urgency": {
        "type": "score",
        "instructions": "How urgent is this?",
        "criteria": ["can wait", "this week", "today", "right now"],
    },
    "angry": {"type": "noul", "instructions": "Is the customer angry?"},
}
SCORED = ("marked", *ARCHITECTURES)
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("systemone")
    decision_model(made / "one", "openjev")
    marked_model(made / "marked")
    for kind in ARCHITECTURES:
        option_model(made / kind, kind)
    keys = {**tokenizer(("Yes", "No")), "tokenizer.chat_template": CHAT}
    random_model("llama", made / "two", metadata=keys, **SHAPE)
    random_model("bert", made / "encoder", kind="safetensors")
    return made


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, names=(*NAMES, *SCORED)) as made:
        yield made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "one", threads=1) as made:
        yield made


def post(served: Served, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/systemone", json=body, timeout=60)


def answered(served: Served, **body: Any) -> dict[str, Any]:
    response = post(served, **{"state": STATE, "questions": QUESTIONS, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("kind", SCORED)
def test_models_that_score_options_themselves_answer(served: Served, folder: Path, kind: str) -> None:
    found = answered(served, model=kind)
    with pellucid.load(folder / kind, threads=1) as made:
        wanted = made.decide(STATE, QUESTIONS)
        explains = made.decider.options is not None and made.decider.options.explains
        explained = made.decide(STATE, QUESTIONS, explain=True) if explains else None
    assert found["answers"] == json.loads(json.dumps(wanted.as_dict()))
    assert found["usage"]["input_tokens"] == wanted.prompt_tokens
    if explained is not None:
        own = answered(served, model=kind, explain=True)["answers"]
        assert own == json.loads(json.dumps(explained.as_dict()))
        return
    refused = post(served, model=kind, state=STATE, questions=QUESTIONS, explain=True)
    assert refused.status_code == 400
    assert "leave explain out" in refused.text


def test_the_response_has_the_form_of_llamacpp(served: Served) -> None:
    found = answered(served)
    assert list(found) == ["model", "answers", "usage"]
    assert found["model"] == "one"
    assert found["usage"]["input_tokens"] > 0
    assert found["usage"]["output_tokens"] == 0
    assert list(found["answers"]) == ["route", "urgency", "angry"]
    route, urgency, angry = found["answers"].values()
    assert list(route) == ["type", "choice", "probabilities", "confidence"]
    assert list(route["probabilities"]) == ["billing", "shipping", "technical"]
    assert abs(sum(route["probabilities"].values()) - 1) < 1e-9
    assert route["choice"] == max(route["probabilities"], key=route["probabilities"].get)
    assert urgency["legend"] == {"0": "can wait", "1": "this week", "2": "today", "3": "right now"}
    assert list(urgency["probabilities"]) == ["0", "1", "2", "3"]
    assert urgency["score"] == pytest.approx(sum(int(k) * p for k, p in urgency["probabilities"].items()))
    assert 0 <= route["confidence"] <= 1
    assert 0 <= urgency["confidence"] <= 1
    assert list(angry) == ["type", "noul"]
    assert 0 <= angry["noul"] <= 1


def test_answers_equal_the_python_api(served: Served, llm: LLM) -> None:
    for state in (STATE, {"ticket": STATE, "plan": ["pro", 1]}, [{"role": "user", "content": STATE}], ""):
        wanted = llm.decide(state, QUESTIONS)
        found = answered(served, state=state, model="one")
        assert found["answers"] == wanted.as_dict()
        assert found["usage"]["input_tokens"] == wanted.prompt_tokens


def test_requests_at_the_same_time_have_the_same_answers(served: Served) -> None:
    states = [f"{STATE} {number % 5}" for number in range(20)]
    alone = [answered(served, state=state) for state in states[:5]]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda state: answered(served, state=state), states))
    assert found == alone * 4


def test_an_object_is_read_as_its_json(served: Served) -> None:
    state = {"ticket": STATE, "plan": "pro"}
    found = answered(served, state=state)
    assert answered(served, state=json.dumps(state)) == found
    assert answered(served, state=dict(reversed(state.items()))) != found


def test_an_explanation_is_returned_on_request(served: Served, llm: LLM) -> None:
    found = answered(served, explain=True)["answers"]
    assert found == llm.decide(STATE, QUESTIONS, explain=True).as_dict()
    for answer in found.values():
        reason = answer["explanation"]
        assert [one["text"] for one in reason["words"] if one["place"] == "state"] == STATE.split()
        total = sum(one["value"] for one in reason["words"]) + reason["constant"] + reason["rounding"]
        assert total == pytest.approx(reason["logit"], abs=1e-9)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"questions": QUESTIONS}, "state is missing"),
        ({"state": None, "questions": QUESTIONS}, "state is missing"),
        ({"state": STATE}, "questions is missing"),
        ({"state": STATE, "questions": None}, "questions is missing"),
        ({"state": STATE, "questions": {}}, "at least one id"),
        ({"state": STATE, "questions": [1]}, "questions=[1]: must be an object"),
        ({"state": 3, "questions": QUESTIONS}, "state=3: must be a text"),
        ({"state": STATE, "questions": {"q": {"type": "unknown", "instructions": "x"}}}, "questions.q.type"),
        ({"state": STATE, "questions": {"q": {"type": "noul"}}}, "questions.q.instructions is missing"),
        ({"state": STATE, "questions": {"q": {"type": "choice", "instructions": "x"}}}, "questions.q.criteria"),
        ({"state": STATE, "questions": {"q": {"type": "choice", "instructions": "x", "criteria": {}}}}, "criteria"),
        ({"state": STATE, "questions": {"q": {"type": "score", "instructions": "x", "criteria": ["a"]}}}, "2 to 10"),
        ({"state": STATE, "questions": QUESTIONS, "images": ["data:image/png;base64,x"]}, "images="),
        ({"state": STATE, "questions": QUESTIONS, "videos": ["x"]}, "videos="),
        ({"state": STATE, "questions": QUESTIONS, "stream": True}, "stream=True: not supported"),
        ({"state": STATE, "questions": QUESTIONS, "temperature": 1}, "unknown option 'temperature'"),
        ({"state": "x" * 3000, "questions": QUESTIONS}, "too long"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(served: Served, body: dict[str, Any], said: str) -> None:
    response = post(served, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert said in error["message"]
    assert error["code"] == 400
    assert "\n" not in error["message"]


def test_empty_media_are_accepted(served: Served) -> None:
    assert answered(served, images=[], files=None, videos=None, stream=False) == answered(served)


def test_an_unknown_model_is_refused(served: Served) -> None:
    assert post(served, state=STATE, questions=QUESTIONS, model="jev-latest").status_code == 404


@pytest.mark.parametrize("body", [b'{"state": "unterminated', b"", b"[1]", b'{"state":' + b"[" * 5000])
def test_damaged_bodies_are_refused(served: Served, body: bytes) -> None:
    response = httpx.post(f"{served.url}/v1/systemone", content=body, timeout=60)
    assert response.status_code == 400
    assert "error" in response.json()


def test_other_models_answer_only_if_the_request_accepts_it(served: Served) -> None:
    response = post(served, state=STATE, questions=QUESTIONS, model="two")
    assert response.status_code == 501
    error = response.json()["error"]
    assert error["type"] == "not_supported_error"
    assert "two is no decision model, so its probabilities are not calibrated" in error["message"]
    found = answered(served, model="two", uncalibrated=True)
    assert list(found["answers"]) == list(QUESTIONS)
    response = post(served, state=STATE, questions=QUESTIONS, model="encoder", uncalibrated=True)
    assert response.status_code == 501
    assert "no head that scores options" in response.json()["error"]["message"]


def test_the_schema_describes_the_questions(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    body = paths["/v1/systemone"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["state", "questions"]
    kinds = body["properties"]["questions"]["additionalProperties"]["anyOf"]
    assert [one["properties"]["type"]["const"] for one in kinds] == ["choice", "score", "noul"]
