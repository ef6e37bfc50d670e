"""Requests of the page: tokens with probabilities, recorded values, edits, lenses; and the page's own files."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.served import Served, asked, models_folder, refused, serving
from support.viewer import wait_until

from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.model.spec import FeedForward
from pellucid.plan.dataflow import dataflow
from pellucid.serve.guard import AccessRules
from pellucid.trace import (
    ablate,
    attribute,
    attribution_graph,
    causes,
    find_heads,
    logit_lens,
    mask,
    raised_tokens,
    scale,
)
from pellucid.util.probabilities import softmax
from pellucid.web.bundle import web_files
from pellucid.weights.checkpoint import parameter_count, stored_bytes

PROMPT = "the cat sat on the mat"
HOW = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
MOST_COMPRESSED = 220_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("look"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def llm(served: Served) -> LLM:
    assert asked(served, "generate", prompt=PROMPT, stream=False, **HOW)
    return served.llm()


def numbers(array: dict[str, Any]) -> np.ndarray:
    kind = {"int32": "<i4", "float32": "<f4"}[array["dtype"]]
    return np.frombuffer(base64.b64decode(array["data"]), kind).reshape(array["shape"])


def test_tokens_come_with_their_probabilities_and_others(served: Served, llm: LLM) -> None:
    body = {"model": "one", "prompt": PROMPT, "alternatives": 3, **HOW}
    with httpx.stream("POST", f"{served.url}/look/generate", json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    made = llm.generate(PROMPT, temperature=0, max_new_tokens=6, ignore_eos=True, logprobs=3)
    assert [one["type"] for one in events] == ["prompt", *["token"] * 6, "end"]
    assert events[0]["ids"] == llm.inputs.prompt(PROMPT)
    tokens = events[1:-1]
    assert [one["token"] for one in tokens] == made.ids
    assert made.logprobs is not None
    assert np.allclose([one["probability"] for one in tokens], np.exp(made.logprobs.chosen))
    assert all(len(one["alternatives"]) == 3 for one in tokens)
    assert tokens[0]["alternatives"][0]["token"] == made.ids[0]
    assert (
        asked(served, "generate", prompt=PROMPT, alternatives=3, stream=False, **HOW)["events"][1]["token"]
        == made.ids[0]
    )


@pytest.mark.parametrize(
    "how", [{"temperature": 0.7, "top_k": 3}, {"temperature": 1.5, "top_p": 0.3}, {"temperature": 0}]
)
def test_alternatives_have_their_probability_after_the_chain(served: Served, llm: LLM, how: dict[str, Any]) -> None:
    given = {"seed": 4, "max_tokens": 5, "ignore_eos": True, **how}
    events = asked(served, "generate", prompt=PROMPT, alternatives=6, stream=False, **given)["events"]
    own = {"seed": 4, "max_new_tokens": 5, "ignore_eos": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **how}
    made = [one.draw for one in llm.request(PROMPT, **own)]
    for event, draw in zip(events[1:-1], made, strict=True):
        assert event["token"] == draw.token
        left = dict(zip(draw.candidates.ids_at().tolist(), draw.candidates.probabilities().tolist()))
        wanted = left if how["temperature"] else {draw.token: 1.0}
        for one in event["alternatives"]:
            assert one["final_probability"] == pytest.approx(wanted.get(one["token"], 0), rel=1e-12)


def test_the_end_has_the_seed_of_a_drawn_text(served: Served) -> None:
    def end(**options: Any) -> dict[str, Any]:
        answer = asked(served, "generate", prompt=PROMPT, stream=False, max_tokens=2, **options)
        last: dict[str, Any] = answer["events"][-1]
        return last

    assert end(temperature=0)["seed"] is None
    assert end(temperature=1, seed=1 << 60)["seed"] == str(1 << 60)
    assert end(temperature=1)["seed"].isdecimal()


def test_values_are_those_that_python_records(served: Served, llm: LLM) -> None:
    points = ["blocks.0.attention.pattern", "blocks.*.residual[tokens=2:5]"]
    answer = asked(served, "trace", prompt=PROMPT, points=points, norms=["blocks.*.attention.output"], **HOW)
    with llm.trace(*points, "blocks.*.attention.output") as trace:
        made = llm.generate(PROMPT, temperature=0, max_new_tokens=6, ignore_eos=True)
    assert answer["ids"] == made.ids
    assert answer["pieces"] == [*trace.sequences[0].pieces, llm.tokenizer.decode([made.ids[-1]], skip_special=False)]
    for name in ("blocks.0.attention.pattern", "blocks.1.residual"):
        assert np.array_equal(numbers(answer["arrays"][name]), trace.sequences[0][name])
    lengths = np.linalg.norm(trace.sequences[0]["blocks.1.attention.output"].astype(np.float64), axis=-1)
    assert np.allclose(numbers(answer["arrays"]["blocks.1.attention.output"]), lengths, rtol=1e-6)


def test_patterns_of_long_texts_are_pooled(served: Served, llm: LLM) -> None:
    name, text = "blocks.0.attention.pattern", PROMPT * 3
    with llm.trace(name) as trace:
        llm.generate(text, temperature=0, max_new_tokens=1)
    whole = trace.sequences[0][name]
    count = whole.shape[1]
    for pool in (1, 7, count - 1, count, 4096):
        views = [
            {"title": "all", "point": name, "pool": pool},
            {"title": "some", "point": name, "head": 1, "rows": [3, 9], "pool": pool},
        ]
        answer = asked(served, "trace", prompt=text, views=views, max_tokens=1)
        assert set(answer["arrays"]) == {"all", "some"}
        for title, part in (("all", whole), ("some", whole[1:2, 3:9])):
            side = -(-max(part.shape[1:]) // pool)
            rows = [
                [part[:, r : r + side, c : c + side].max((1, 2)) for c in range(0, count, side)]
                for r in range(0, part.shape[1], side)
            ]
            assert np.array_equal(numbers(answer["arrays"][title]), np.moveaxis(np.array(rows), 2, 0))
    for view, said in (
        ({"title": "a", "point": name, "pool": 0}, "pool"),
        ({"title": "a", "point": name, "head": 99}, "head"),
        ({"title": "a", "point": name, "rows": [5, 2]}, "rows"),
        ({"title": "a", "point": name, "rows": "x"}, "rows"),
        ({"title": "a", "point": "embed"}, "pattern"),
        ({"point": name}, "title"),
        ({"title": "a", "point": name, "more": 1}, "more"),
    ):
        assert said in refused(served, "trace", prompt=text, views=[view])


def test_edits_change_one_request(served: Served, llm: LLM) -> None:
    where = "blocks.0.attention.heads[heads=1]"
    values = np.arange(llm.spec.embedding.width, dtype="<f4") / 100
    packed = base64.b64encode(values.tobytes()).decode()
    edits: list[dict[str, Any]] = [
        {"edit": "ablate", "point": where},
        {"edit": "scale", "point": "blocks.1.feedforward.output", "factor": 2.0},
        {"edit": "add", "point": "blocks.1.residual[tokens=1]", "values": packed, "factor": 0.5},
        {"edit": "replace", "point": "blocks.0.residual[tokens=0]", "values": values.tolist()},
    ]
    for some in (edits[:1], edits):
        answer = asked(served, "generate", prompt=PROMPT, edits=some, stream=False, **HOW)
        assert answer["events"][-1]["finish_reason"] == "length"
    answer = asked(served, "generate", prompt=PROMPT, edits=edits[:1], stream=False, **HOW)
    made = llm.generate(PROMPT, edits=[ablate(where)], temperature=0, max_new_tokens=6, ignore_eos=True)
    assert [one["token"] for one in answer["events"][1:-1]] == made.ids
    for edit, said in (
        ({"edit": "call", "point": where}, "must be one of ablate"),
        ({"edit": "ablate"}, "point is missing"),
        ({"edit": "ablate", "point": "blocks.0.nothing"}, "no point has this name"),
        ({"edit": "add", "point": where, "values": "%%"}, "values="),
        ({"edit": "add", "point": where, "values": [1, 2, 3]}, "shape"),
        ({"edit": "scale", "point": where, "factor": "x"}, "factor="),
        ({"edit": "ablate", "point": where, "more": 1}, "unknown option 'edits[0].more'"),
    ):
        assert said in refused(served, "generate", prompt=PROMPT, edits=[edit], stream=False, **HOW)


def test_lenses_and_pieces(served: Served, llm: LLM) -> None:
    ids = llm.inputs.prompt(PROMPT)
    assert asked(served, "lens", prompt=ids, top=2) == json.loads(json.dumps(logit_lens(llm, ids, top=2).as_dict()))
    one = asked(served, "lens", prompt=ids, top=3, token=65, position=2)
    assert one == json.loads(json.dumps(logit_lens(llm, ids, top=3, tokens=[65], positions=[2]).as_dict()))
    assert [len(one["ranks"]), len(one["ranks"][0])] == [len(llm.spec.blocks) + 1, 1]
    best = one["ids"][-1][0][0]
    assert asked(served, "lens", prompt=ids, token=best, position=2)["ranks"][-1] == [[1]]
    found = asked(served, "attribution", prompt=ids, token=65, position=2)
    assert found["total"] == pytest.approx(attribute(llm, ids, 65, position=2).total)
    why = asked(served, "causes", prompt=ids, token=65, top=2, tried=4)
    own = causes(llm, ids, 65, top=2, tried=4)
    assert {key: value for key, value in why.items() if key != "texts"} == json.loads(json.dumps(own.as_dict()))
    assert why["texts"]["65"] == llm.tokenizer.piece(65)
    points = ["blocks.0.feedforward.hidden[tokens=-1; dims=3]", "blocks.1.attention.heads[heads=1]"]
    raised = asked(served, "raised", prompt=ids, points=points)
    assert raised["raises"] == raised_tokens(llm, ids, points)
    assert set(raised["texts"]) == {str(token) for tokens in raised["raises"] for token in tokens}
    heads = asked(served, "heads", prompt=ids, position=2, top=3)
    for one, same in zip(heads["heads"], find_heads(llm, ids, 2, top=3), strict=True):
        assert (one["layer"], one["head"], one["key"]) == (same.layer, same.head, same.key)
        with llm.trace("project.logits[tokens=-1]") as trace:
            edit = ablate(f"blocks.{same.layer}.attention.heads[heads={same.head}]")
            llm.generate(ids, max_new_tokens=1, temperature=0, edits=[edit])
        left = softmax(trace.sequences[0]["project.logits"][-1])
        assert one["without"] == pytest.approx(left[heads["token"]], rel=1e-5)
    found = asked(served, "place", prompt=PROMPT)
    lens = logit_lens(llm, ids, top=1, positions=[-1])
    last = int(lens.ids[-1, 0, 0])
    mine = np.log(logit_lens(llm, ids, top=1, tokens=[last], positions=[-1]).wanted[1:, 0, 0])
    assert (found["position"], found["block"]) == (len(ids) - 1, int(np.diff(mine).argmax()) + 1)
    of_block = [one for one in find_heads(llm, ids, -1, top=32) if one.layer == found["block"]]
    assert (found["heads"][0]["head"], found["heads"][0]["key"]) == (of_block[0].head, of_block[0].key)
    drawn = asked(served, "graph", prompt=ids, nodes=20, tokens=[65])
    whole = attribution_graph(llm, ids, target=[65], nodes=20)
    expected = whole.pruned().as_dict()
    assert drawn["links"] == json.loads(json.dumps(expected["links"]))
    assert [one["node_id"] for one in drawn["nodes"]] == [one["node_id"] for one in expected["nodes"]]
    assert any(one.get("top_logits") for one in drawn["nodes"])
    assert "the server has none" in refused(served, "graph", prompt=ids, dictionary="sae")
    assert "tokens; the limit" in refused(served, "graph", prompt=[65] * 600)
    near = asked(served, "neighbours", words=["t", "h"], n=4)
    assert [len(one) for one in near["neighbours"].values()] == [4, 4]
    assert np.allclose(np.diag(near["similarity"]), 1)
    assert asked(served, "neighbours", words=["t", "h"], n=0)["neighbours"] == {}
    assert asked(served, "tokenize", text=PROMPT)["tokens"][0]["id"] == ids[0]
    assert asked(served, "pieces", ids=ids)["pieces"] == [
        llm.tokenizer.decode([one], skip_special=False) for one in ids
    ]
    shape = httpx.get(f"{served.url}/look/models/one").json()
    assert list(shape["points"]) == list(llm.points)
    assert len(shape["blocks"]) == len(llm.spec.blocks)
    assert shape["angles"] == {"position.angles": [*range(len(llm.spec.blocks))]}
    assert [one["name"] for one in httpx.get(f"{served.url}/look/models").json()["models"]] == list(served.models.names)


def test_a_model_says_its_sizes_and_its_dataflow(served: Served, llm: LLM) -> None:
    facts = httpx.get(f"{served.url}/look/models/one").json()
    graph, spec = facts["graph"], llm.spec
    assert graph == json.loads(json.dumps(dataflow(llm.plan).as_dict()))
    assert len(graph["blocks"]) == len(spec.blocks)
    names = [point["name"] for point in graph["rest"]]
    for layer, kind in enumerate(graph["blocks"]):
        names += [f"blocks.{layer}.{point['name']}" for point in graph["kinds"][kind]["points"]]
    assert set(names) == {name for name, point in facts["points"].items() if point["kind"] != "output"}
    for block, sizes in zip(spec.blocks, facts["blocks"]):
        attention, inner = block.attention, block.feedforward
        assert attention is not None
        assert isinstance(inner, FeedForward)
        assert sizes == {
            "width": spec.embedding.width,
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_width": attention.head_dim,
            "value_width": attention.head_dim,
            "window": 0,
            "softcap": 0.0,
            "recurrent": False,
            "parallel": False,
            "scale": attention.scale,
            "causal": True,
            "mixture": False,
            "experts": 0,
            "active_experts": 0,
            "hidden": inner.width,
            "activation": "silu",
            "gated": True,
        }
    assert facts["facts"] == {
        "embedding_factor": 1.0,
        "norm": "rms",
        "norm_epsilon": spec.blocks[0].norm.eps,
        "logit_scale": 1.0,
        "logit_softcap": 0.0,
        "parameters": parameter_count(llm.checkpoint),
        "bytes": stored_bytes(llm.checkpoint),
    }
    run = llm.record(PROMPT, "embed", max_new_tokens=1)
    assert run.shape["graph"] == graph
    assert run.shape["blocks"] == facts["blocks"]
    encoder = httpx.get(f"{served.url}/look/models/encoder").json()
    assert encoder["blocks"][0]["causal"] is False
    assert "logit_scale" not in encoder["facts"]


def test_an_encoder_is_looked_into(served: Served) -> None:
    answer = asked(served, "trace", model="encoder", prompt="a sentence", points=["pool"], norms=["blocks.*.residual"])
    again = asked(served, "trace", model="encoder", prompt=answer["prompt"], points=["pool"])
    assert answer["arrays"]["pool"] == again["arrays"]["pool"]
    part = asked(served, "trace", model="encoder", prompt="a sentence", points=["embed[tokens=0:2; dims=1,3]"])
    assert part["arrays"]["embed"]["shape"] == [2, 2]
    assert "must be a text" in refused(served, "trace", model="encoder", prompt=[], points=["pool"])


def test_what_is_wrong_is_named(served: Served, llm: LLM) -> None:
    assert "give either" in refused(served, "trace", points=["embed"])
    assert "points=" in refused(served, "trace", prompt=PROMPT, points="embed")
    assert "the nearest are" in refused(served, "trace", prompt=PROMPT, points=["blocks.0.residul"])
    assert "ids=" in refused(served, "pieces", ids=[10**9])
    assert "unknown option" in refused(served, "lens", prompt=PROMPT, points=[])
    assert "position=" in refused(served, "attribution", prompt=PROMPT, position=10_000)
    assert "position=" in refused(served, "lens", prompt=PROMPT, position=10_000)
    assert "token" in refused(served, "lens", prompt=PROMPT, token=10**9)
    assert "words" in refused(served, "neighbours", words=[])
    assert httpx.get(f"{served.url}/look/models/nothing").status_code == 404


def test_the_page_is_small_and_strict(folder: Path) -> None:
    files = web_files()
    assert {"index.html", "app.js", "style.css"} <= set(files)
    assert sum(len(gzip.compress(content)) for content in files.values()) <= MOST_COMPRESSED
    for name, content in files.items():
        if not name.startswith("vendor/"):
            text = content.decode()
            assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name
            assert "https://" not in text, name
            assert not any(word in text for word in ("innerHTML", "dangerouslySet", "eval(", "document.write")), name
    with serving(folder, AccessRules(keys=["secret"])) as served:
        page = httpx.get(served.url, headers={"accept": "text/html"})
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert httpx.get(served.url).text == "Pellucid is running"
        script = httpx.get(f"{served.url}/web/app.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert httpx.get(f"{served.url}/web/nothing.js").status_code == 404
        assert httpx.get(f"{served.url}/web/..%2f__init__.py").status_code == 404
        assert httpx.get(f"{served.url}/look/models").status_code == 401


def test_a_trace_is_greedy_unless_told_otherwise(served: Served, llm: LLM) -> None:
    made = llm.generate(PROMPT, temperature=0, max_new_tokens=5, ignore_eos=True)
    for _ in range(3):
        answer = asked(served, "trace", prompt=PROMPT, points=["embed"], max_tokens=5, ignore_eos=True)
        assert answer["ids"] == made.ids


def test_a_request_masks_attention(served: Served, llm: LLM) -> None:
    where = "blocks.1.attention.scores[tokens=-1; keys=2:5]"
    edit = {"edit": "mask", "point": where}
    answer = asked(served, "trace", prompt=PROMPT, points=["embed"], max_tokens=5, ignore_eos=True, edits=[edit])
    how = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    assert answer["ids"] == llm.generate(PROMPT, edits=[mask(where)], **how).ids
    said = refused(served, "trace", prompt=PROMPT, points=["embed"], edits=[{**edit, "point": "embed"}])
    assert "hides keys in attention scores" in said


def test_work_ends_when_its_client_goes(served: Served, llm: LLM) -> None:
    body = {"model": "one", "prompt": PROMPT, "points": ["**"], "max_tokens": 900, "ignore_eos": True}
    body |= {"temperature": 1, "prompt_lookup": False}
    for _ in range(8):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/look/trace", json=body, timeout=0.05)
    wait_until(lambda: not llm.engine.running and served.unused())


def test_what_costs_too_much_is_refused(served: Served, llm: LLM) -> None:
    long = [65] * 600
    assert "limit is 512" in refused(served, "lens", prompt=long)
    assert "limit is 4,000" in refused(served, "tokenize", text="x" * 5000)
    assert "characters each" in refused(served, "neighbours", words=["x" * 300])
    assert "at most 8 words" in refused(served, "neighbours", words=list("abcdefghij"), n=2)
    assert "the limit is 64" in refused(served, "trace", prompt=PROMPT, points=["embed"] * 65)
    many = ",".join(["0:"] * 65)
    assert "ranges" in refused(served, "trace", prompt=PROMPT, points=[f"embed[dims={many}]"])
    huge = [{"edit": "add", "point": "embed", "values": [10**400]}]
    assert "values=" in refused(served, "trace", prompt=PROMPT, points=["embed"], edits=huge)
    assert "missing" in refused(
        served, "trace", prompt=PROMPT, points=["embed"], edits=[{"edit": "add", "point": "embed"}]
    )


def test_another_site_can_make_the_server_load_nothing(served: Served) -> None:
    answer = httpx.get(f"{served.url}/look/models/two", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    assert "two" not in served.models.loaded
    assert httpx.get(f"{served.url}/health", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_a_step_is_profiled_beside_requests(served: Served, llm: LLM) -> None:
    request = llm.request(PROMPT, temperature=0, max_new_tokens=200, ignore_eos=True)
    plain = llm.generate(PROMPT, temperature=0, max_new_tokens=200, ignore_eos=True)
    request.start()
    found = asked(served, "profile", tokens=3, depth=5)
    assert found["repetitions"] >= 3
    request.wait()
    assert request.results()[0].ids == plain.ids
    assert {one["stage"] for one in found["operations"]} >= {"embed", "attention.q", "project"}
    assert 0 < found["seconds"] < 10
    assert found["seconds"] == pytest.approx(sum(one["seconds"] for one in found["operations"]))
    for one in found["operations"]:
        value, _, unit = one["rate"].partition(" ")
        limit = found["read_bytes_per_second" if unit == "GB/s" else "multiply_adds_per_second"] / 1e9
        if one["share"] is not None:
            assert float(value.replace(",", "")) <= limit * 1.01 + 0.05, one
        elif one["rate"]:
            assert one["rate"].endswith("GB/s from caches"), one
    llm.engine.settle()
    assert asked(served, "profile", model="encoder")["operations"]
    state = httpx.get(f"{served.url}/look/state/one").json()
    assert state["loaded"]
    assert state["steps"] > 0
    assert "tokens=" in refused(served, "profile", tokens=10_000)


def test_edits_that_change_nothing_are_told(served: Served, llm: LLM) -> None:
    count = len(llm.inputs.prompt(PROMPT))
    beyond = [{"edit": "ablate", "point": "blocks.0.residual[tokens=99]"}]
    for what, more in (("generate", {"stream": False}), ("trace", {"points": ["embed"]})):
        said = refused(served, what, prompt=PROMPT, edits=beyond, **more, **HOW)
        assert f"begins at position 99, and a prompt of {count} tokens (read up to" in said
    made = llm.generate(PROMPT, temperature=0, max_new_tokens=6, ignore_eos=True).ids
    how = {"temperature": 0, "max_tokens": 6, "stop_token_ids": made[:1]}
    late = [{"edit": "scale", "factor": 1.0, "point": f"blocks.0.residual[tokens={count}]"}]
    for edits, notices in ((late, 1), ([], 0)):
        body = {"model": "one", "prompt": PROMPT, "edits": edits, **how}
        with httpx.stream("POST", f"{served.url}/look/generate", json=body) as answer:
            end = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")][-1]
        assert end["type"] == "end"
        assert len(end["notices"]) == notices
        traced = asked(served, "trace", prompt=PROMPT, points=["embed"], edits=edits, **how)
        assert traced["notices"] == end["notices"]
    values = np.full(llm.runner.width, 3e38).tolist()
    big = [{"edit": "add", "point": "project.logits", "values": values}] * 2
    assert "because of the request's edits (project.logits)" in refused(
        served, "generate", prompt=PROMPT, edits=big, stream=False, **HOW
    )
    body = {"model": "one", "prompt": PROMPT, "edits": big, **HOW}
    answer = httpx.post(f"{served.url}/look/generate", json=body)
    assert answer.status_code == 200, "the prompt's event comes before the first token"
    assert "because of the request's edits" in answer.text


def test_an_edited_request_cannot_be_watched(served: Served, llm: LLM) -> None:
    group = llm.request(PROMPT, edits=[ablate("blocks.0.residual")], temperature=0, max_new_tokens=2)
    with pytest.raises(InvalidRequest, match="with its own edits or trace"):
        llm.watch(group, ["embed"])


CHINESE = "a 中国 b"


def test_characters_of_several_tokens_are_whole(served: Served, llm: LLM) -> None:
    ids = llm.inputs.prompt(CHINESE)
    many = [one._asdict() for one in llm.tokenizer.characters(ids) if one.stop - one.first > 1]
    assert [one["text"] for one in many] == ["中", "国"]
    how = {"temperature": 0, "max_tokens": 3, "ignore_eos": True}
    events = asked(served, "generate", prompt=CHINESE, alternatives=5, stream=False, **how)["events"]
    assert events[0]["characters"] == many
    assert "�" not in json.dumps(events[0], ensure_ascii=False)
    assert events[0]["pieces"][many[0]["first"]] == f"<0x{'中'.encode()[0]:02X}>"
    traced = asked(served, "trace", prompt=ids, points=["embed"], max_tokens=1)
    lens = asked(served, "lens", prompt=ids, top=2)
    assert traced["characters"][:2] == lens["characters"] == many
    assert lens["tokens"] == ids
    # After two of three bytes the third completes the character, as the next token and as an alternative.
    two, third = ids[: many[0]["stop"] - 1], ids[many[0]["stop"] - 1]
    whole = {"first": many[0]["first"], "stop": many[0]["stop"], "text": "中"}
    bias = {str(third): 100}
    body = {"prompt": two, "logit_bias": bias, "alternatives": 2, "stream": False, **how}
    (token, *_) = asked(served, "generate", **body)["events"][1:]
    assert (token["token"], token["character"]) == (third, whole)
    beams = asked(served, "beams", prompt=two, num_beams=4, max_tokens=2)
    for node in beams["tree"][1:]:
        if node["parent"] == 0 and node["token"] == third:
            assert node["character"] == whole
        assert node["piece"] == llm.tokenizer.piece(node["token"])


def test_neighbours_are_asked_for_by_token(served: Served, llm: LLM) -> None:
    part = llm.tokenizer.encode("中", add_special=False)[0]
    special = next(iter(llm.tokenizer.vocabulary.special_ids))
    found = asked(served, "neighbours", ids=[part, special], n=3)
    for token in (part, special):
        first, *others = found["neighbours"][str(token)]
        assert (first["token"], first["piece"]) == (token, llm.tokenizer.piece(token))
        assert first["cosine"] == pytest.approx(1)
        assert len(others) == 2
    assert np.shape(found["similarity"]) == (2, 2)
    assert np.shape(found["map"]) == (2, 2)
    assert "ids=" in refused(served, "neighbours", ids=[10**6])
    assert "ids[0]=" in refused(served, "neighbours", ids=["a"])
    assert "ids" in refused(served, "neighbours", ids=[])
    assert "either words or ids" in refused(served, "neighbours", ids=[65], words=["a"])
    assert "at most 8 words" in refused(served, "neighbours", ids=list(range(65, 80)), n=2)
    attributed = asked(served, "attribution", prompt=[65, 66, 67], token=part)
    assert (attributed["token"], attributed["piece"]) == (part, llm.tokenizer.piece(part))


def test_lenses_are_of_the_run_that_is_edited(served: Served, llm: LLM) -> None:
    ids = llm.inputs.prompt(PROMPT)
    edits = [{"edit": "scale", "point": "blocks.0.attention.heads[heads=1]", "factor": 3.0}]
    plain = asked(served, "lens", prompt=ids, top=3)
    lens = asked(served, "lens", prompt=ids, top=3, edits=edits)
    traced = asked(served, "trace", prompt=ids, points=["project.logits"], edits=edits, max_tokens=1)
    logits = numbers(traced["arrays"]["project.logits"]).astype(np.float64)[-1]
    raised = np.exp(logits - logits.max())
    assert np.allclose(lens["probabilities"][-1][-1], (raised / raised.sum())[lens["ids"][-1][-1]], rtol=1e-9)
    assert lens["probabilities"][-1][-1] != plain["probabilities"][-1][-1]
    assert lens["probabilities"][0] == plain["probabilities"][0], "the embedding is before the edit"
    attributed = asked(served, "attribution", prompt=ids, token=65, edits=edits)
    assert attributed["logit"] == pytest.approx(logits[65], rel=1e-6)
    assert attributed["total"] == pytest.approx(attributed["logit"])
    beams = asked(served, "beams", prompt=ids, num_beams=2, max_tokens=2, edits=edits)
    own = llm.beam_search(ids, num_beams=2, num_return_sequences=2, max_new_tokens=2, edits=edits_of_look(edits))
    assert [one["score"] for one in beams["texts"]] == [one.score for one in own.texts]
    for point in ("project.logits", "norm"):
        behind = [{"edit": "scale", "point": point, "factor": 2.0}]
        for what in ("lens", "attribution"):
            assert f"remove the edit of {point}" in refused(served, what, prompt=ids, edits=behind)


def edits_of_look(edits: list[dict[str, Any]]) -> list[Any]:
    return [scale(one["point"], one["factor"]) for one in edits]


def test_merges_have_ranks_or_scores_and_their_place(served: Served) -> None:
    merges = [
        merge
        for one in asked(served, "tokenize", text=PROMPT)["pre_tokens"]
        for merge in (one["how"] or {}).get("merges", ())
    ]
    for merge in merges:
        assert {"at", "left_id", "right_id", "id"} <= merge.keys()
        assert ("rank" in merge) != ("score" in merge)
