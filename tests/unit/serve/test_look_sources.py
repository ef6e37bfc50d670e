"""Requests of the page about encoder-decoders: the tokens of source and answer, their values, lenses, beams."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from support.served import Served, serving
from support.sources import LETTERS, source_model
from support.viewer import watched

from pellucid.llm import LLM
from pellucid.testing import random_model
from pellucid.trace import ablate, attribute, logit_lens, token_contributions

SOURCE = "".join(LETTERS[10:40])
HOW: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
CROSS, ENCODER = "blocks.*.cross.pattern", "encoder.blocks.*.attention.pattern"


@pytest.fixture(scope="module", params=["marian", "t5-odd"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sources")
    source_model(request.param, folder).rename(folder / "one")
    random_model("llama", folder / "two", kind="safetensors")
    with serving(folder, names=("one", "two")) as found:
        yield found


@pytest.fixture(scope="module")
def llm(served: Served) -> LLM:
    assert httpx.get(f"{served.url}/look/models/one", timeout=60).status_code == 200
    return served.llm()


def posted(served: Served, what: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/look/{what}", json={"model": "one", **fields}, timeout=60)


def asked(served: Served, what: str, **fields: Any) -> Any:
    answer = posted(served, what, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def numbers(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])


def generated(served: Served, stream: bool, **fields: Any) -> list[dict[str, Any]]:
    """The events of /look/generate."""
    if not stream:
        events: list[dict[str, Any]] = asked(served, "generate", **fields, stream=False)["events"]
        return events
    body = {"model": "one", **fields}
    with httpx.stream("POST", f"{served.url}/look/generate", json=body, timeout=60) as answer:
        sent = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    return [event for one in sent for event in one.get("events", [one])]


def test_a_text_has_the_tokens_of_its_source(served: Served, llm: LLM) -> None:
    first, *tokens, _ = asked(served, "generate", prompt=SOURCE, stream=False, **HOW)["events"]
    ids = llm.tokenizer.encode(SOURCE)
    assert first["ids"] == list(llm.spec.start)
    assert first["source"]["ids"] == ids
    assert first["source"]["pieces"] == [llm.tokenizer.piece(token) for token in ids]
    made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True)
    assert [one["token"] for one in tokens] == made.ids


def test_an_answer_continues(served: Served, llm: LLM) -> None:
    made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True).ids
    options = {**HOW, "max_tokens": 5, "stream": False}
    first, *tokens, _ = asked(served, "generate", prompt=SOURCE, answer=made[:3], **options)["events"]
    assert first["ids"] == [*llm.spec.start, *made[:3]]
    assert [one["token"] for one in tokens] == made[3:]
    other = next(token for token in range(5, 40) if token != made[2])
    branch = asked(served, "generate", prompt=SOURCE, answer=[*made[:2], other], **options)["events"][1:-1]
    request = llm.request(SOURCE, resumed=[*made[:2], other], temperature=0, max_new_tokens=5, ignore_eos=True)
    request.wait()
    assert [one["token"] for one in branch] == request.result().ids


def test_values_of_source_and_answer_are_those_that_python_records(served: Served, llm: LLM) -> None:
    with llm.trace(CROSS, ENCODER, "blocks.0.residual") as trace:
        made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True).ids
    (sequence,) = trace.sequences
    views = [{"title": "row", "point": "blocks.0.cross.pattern", "head": 1, "rows": [2, 3]}]
    points = [CROSS, f"{ENCODER}[heads=0]", "blocks.0.residual"]
    found = asked(
        served, "trace", prompt=llm.tokenizer.encode(SOURCE), answer=made[:-1], points=points, views=views, max_tokens=1
    )
    assert found["prompt"] == [*llm.spec.start, *made[:-1]]
    assert found["source"]["pieces"] == sequence.source_pieces
    for name, array in found["arrays"].items():
        if name != "row":
            wanted = sequence[name][:1] if name.startswith("encoder") else sequence[name]
            assert np.array_equal(numbers(array), wanted), name
    assert len(found["arrays"]) == 2 + len(llm.spec.blocks) + len(llm.spec.encoder.blocks)
    assert np.array_equal(numbers(found["arrays"]["row"]), sequence["blocks.0.cross.pattern"][1:2, 2:3])


def test_one_weight_of_cross_attention_follows_from_its_query_and_key(served: Served, llm: LLM) -> None:
    """The page's card of one number reads facts of the block, and the points of one query and one key."""
    facts = httpx.get(f"{served.url}/look/models/one", timeout=60).json()
    made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True).ids
    token, key, prefix = 3, 5, "blocks.0.cross"
    sizes, kind = facts["blocks"][0]["cross"], llm.spec.blocks[0].cross
    assert sizes == {"heads": kind.heads, "kv_heads": kind.kv_heads, "softcap": kind.softcap, "scale": kind.scale}
    for head in range(sizes["heads"]):
        group = head // (sizes["heads"] // sizes["kv_heads"])
        points = [
            f"{prefix}.q[heads={head}; tokens={token}]",
            f"{prefix}.k[heads={group}; tokens={key}]",
            f"{prefix}.scores[heads={head}; tokens={token}]",
            f"{prefix}.pattern[heads={head}; tokens={token}]",
        ]
        found = asked(served, "trace", prompt=SOURCE, answer=made[:-1], points=points, max_tokens=1)["arrays"]
        q, k, scores, weights = (
            numbers(found[f"{prefix}.{name}"]).astype(np.float64).ravel() for name in ("q", "k", "scores", "pattern")
        )
        assert scores.shape == weights.shape == (len(llm.tokenizer.encode(SOURCE)),)
        assert q @ k * sizes["scale"] == pytest.approx(scores[key], abs=5e-3)
        wanted = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        assert weights[key] == pytest.approx(wanted[key], abs=1e-5)
    assert "cross" not in httpx.get(f"{served.url}/look/models/two", timeout=60).json()["blocks"][0]


@pytest.mark.parametrize("stream", [True, False])
def test_values_come_with_the_tokens(served: Served, llm: LLM, stream: bool) -> None:
    points, norms = ["blocks.0.cross.pattern[heads=1]", "blocks.0.attention.pattern"], ["blocks.*.residual"]
    with llm.trace("blocks.0.cross.pattern", "blocks.0.attention.pattern", *norms) as trace:
        made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True).ids
    (sequence,) = trace.sequences
    events = generated(served, stream, prompt=SOURCE, points=points, norms=norms, **HOW)
    assert [one["token"] for one in events if one["type"] == "token"] == made
    cross, own = dict[int, np.ndarray](), dict[int, np.ndarray]()
    for event in (one for one in events if one["type"] == "values"):
        for name, rows in (("blocks.0.cross.pattern", cross), ("blocks.0.attention.pattern", own)):
            if name in event["arrays"]:
                values = numbers(event["arrays"][name])
                rows.update({event["first"] + n: values[:, n] for n in range(values.shape[1])})
    assert sorted(cross) == sorted(own) == list(range(len(sequence)))
    for at, row in cross.items():
        assert np.array_equal(row, sequence["blocks.0.cross.pattern"][1:2, at])
    for at, row in own.items():
        assert np.array_equal(row, sequence["blocks.0.attention.pattern"][:, at, : row.shape[1]])
    columns = next(one["norms"] for one in events if one["type"] == "prompt")
    assert columns == [f"blocks.{layer}.residual" for layer in range(len(llm.spec.blocks))]


@pytest.mark.parametrize("stream", [True, False])
def test_values_of_the_source_come_once_before_the_first_token(served: Served, llm: LLM, stream: bool) -> None:
    points = ["encoder.blocks.1.residual", "encoder.blocks.0.attention.pattern[heads=1]", "blocks.0.cross.k"]
    norms = ["encoder.blocks.*.attention.output", "blocks.*.residual"]
    with llm.trace(*points, *norms) as trace:
        made = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True).ids
    (sequence,) = trace.sequences
    length = len(sequence.source_pieces)
    events = generated(served, stream, prompt=SOURCE, points=points, norms=norms, **HOW)
    assert [one["token"] for one in events if one["type"] == "token"] == made
    columns = next(one["norms"] for one in events if one["type"] == "prompt")
    first_token = next(at for at, one in enumerate(events) if one["type"] == "token")
    arrays, rows = dict[str, np.ndarray](), list[np.ndarray]()
    for at, event in enumerate(events):
        if event["type"] != "values" or not event.get("source"):
            assert not any(name in event.get("arrays", {}) for name in trace)
            continue
        assert (event["first"], at < first_token) == (0, True)
        assert not event["arrays"].keys() & arrays.keys()
        arrays |= {name: numbers(array) for name, array in event["arrays"].items()}
        rows += [numbers(event["norms"])] if "norms" in event else []
    assert len(arrays) == 3
    for name, values in arrays.items():
        wanted = sequence[name]
        np.testing.assert_array_equal(values.reshape(wanted.shape), wanted, err_msg=name)
    (norms_of_source,) = rows
    assert norms_of_source.shape == (length, len(columns))
    for column, name in enumerate(columns):
        if name.startswith("encoder."):
            wanted = np.linalg.norm(sequence[name].astype(np.float64), axis=1)
            np.testing.assert_allclose(norms_of_source[:, column], wanted, rtol=1e-6)
        else:
            assert np.isnan(norms_of_source[:, column]).all()
    own = [numbers(one["norms"]) for one in events if one["type"] == "values" and not one.get("source")]
    assert sum(map(len, own)) == len(sequence)
    assert all(np.isnan(one[:, 0]).all() and not np.isnan(one[:, -1]).any() for one in own)


def test_too_many_values_of_a_source_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"prompt": SOURCE, "points": ["encoder.blocks.*.residual"], **HOW}
    for limit, said in (("MAX_SOURCE", "the values of the source take"), ("MAX_TOKEN", "the values of a token")):
        with monkeypatch.context() as patch:
            patch.setattr(f"pellucid.serve.look.token_events.{limit}", 100)
            answer = posted(served, "generate", **fields)
        message = answer.json()["error"]["message"]
        assert (answer.status_code, said in message, "\n" in message) == (400, True, False), message


def test_a_viewer_who_waits_for_a_request_gets_the_values_of_its_source(served: Served, llm: LLM) -> None:
    point = "encoder.blocks.0.residual"
    llm.runner.encoder.cache.clear_prefixes()
    body = {"model": "one", "prompt": SOURCE, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    events, answer = watched(served, "of-a-source", body, points=[point, "blocks.0.residual"])
    assert answer.status_code == 200, answer.text
    with llm.trace(point) as trace:
        llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True)
    assert [one["source"] for one in events[0][1]["points"]] == [True, False]
    found = [body for kind, body in events if kind == "values" and body["point"] == point]
    (one,) = found
    assert (one["first"], one["choice"]) == (0, 0)
    np.testing.assert_array_equal(numbers(one), trace[point][0])


def test_lenses_read_the_answer(served: Served, llm: LLM) -> None:
    with llm.trace("**") as trace:
        made = llm.generate(SOURCE, temperature=0, max_new_tokens=6, ignore_eos=True).ids
    (sequence,) = trace.sequences
    fields = {"prompt": SOURCE, "answer": made[:-1], "position": 3}
    found = asked(served, "lens", **fields, top=3, token=made[3])
    wanted = logit_lens(llm, sequence, top=3, tokens=[made[3]], positions=[3])
    assert found["ids"] == wanted.ids.tolist()
    assert np.allclose(found["wanted"], wanted.wanted)
    assert found["pieces"] == [sequence.pieces[3]]
    answer = posted(served, "attribution", **fields, token=made[3])
    wanted = attribute(llm, sequence, made[3], position=3).as_dict()
    assert answer.json() == wanted
    by_token = asked(served, "attribution", **fields, token=made[3], against=made[2], by_token=True)
    found = token_contributions(llm, sequence, made[3], against=made[2], position=3)
    assert by_token.pop("token_contributions") == found.as_dict()
    assert by_token == attribute(llm, sequence, made[3], against=made[2], position=3).as_dict()
    assert len(found.source) == len(sequence.source_pieces)


def test_changes_reach_the_source(served: Served, llm: LLM) -> None:
    point = "encoder.blocks.0.residual[tokens=2]"
    edited = asked(
        served,
        "generate",
        prompt=SOURCE,
        edits=[{"edit": "ablate", "point": point}],
        stream=False,
        alternatives=1,
        **HOW,
    )["events"]
    wanted = llm.generate(SOURCE, edits=[ablate(point)], temperature=0, max_new_tokens=8, ignore_eos=True, logprobs=1)
    plain = llm.generate(SOURCE, temperature=0, max_new_tokens=8, ignore_eos=True, logprobs=1)
    found = [one["probability"] for one in edited if one["type"] == "token"]
    assert np.allclose(found, np.exp(wanted.logprobs.chosen), rtol=1e-6)
    assert not np.allclose(found, np.exp(plain.logprobs.chosen), rtol=1e-6)


def test_beams_begin_with_the_first_token_of_the_decoder(served: Served, llm: LLM) -> None:
    found = asked(served, "beams", prompt=SOURCE, num_beams=2, max_tokens=4)
    wanted = llm.beam_search(SOURCE, num_beams=2, num_return_sequences=2, max_new_tokens=4)
    assert [one["text"] for one in found["texts"]] == [one.text for one in wanted.texts]
    assert found["prompt"] == list(llm.spec.start)


def test_facts_have_the_blocks_of_the_encoder(served: Served, llm: LLM) -> None:
    facts = httpx.get(f"{served.url}/look/models/one", timeout=60).json()
    assert [one["heads"] for one in facts["encoder"]] == [block.attention.heads for block in llm.spec.encoder.blocks]
    assert not any(one["causal"] for one in facts["encoder"])
    assert httpx.get(f"{served.url}/look/models/two", timeout=60).json()["encoder"] == []


@pytest.mark.parametrize(
    ("what", "fields", "said"),
    [
        ("generate", {"model": "two", "answer": [5]}, "only an encoder-decoder has an answer"),
        ("trace", {"answer": [1 << 20]}, "answer holds a token id=1048576"),
        ("beams", {"answer": [5]}, "a beam search begins before the answer"),
        ("lens", {"answer": [5] * 600}, "answer"),
        ("weights", {"point": "encoder.blocks.0.attention.pattern", "index": 0}, "no product of weights"),
        ("trace", {"points": ["blocks.0.cross.patern"]}, "blocks.0.cross.pattern"),
    ],
)
def test_what_does_not_apply_is_refused(served: Served, llm: LLM, what: str, fields: dict[str, Any], said: str) -> None:
    prompt = {} if what == "weights" else {"prompt": SOURCE}
    answer = posted(served, what, **prompt, **fields)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, said in message, "\n" in message) == (400, True, False), message
