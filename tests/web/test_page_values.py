"""What the page draws is what Python records."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from support.page_server import PageServer
from support.page_visit import Visit, numbers
from support.sampling import Words

import pellucid
from pellucid.sample.options import Options
from pellucid.trace import attribute, logit_lens

SENTENCE = "The animal didn't cross the street because it was too tired"


def test_the_page_shows_what_python_records(browser: Any, server: PageServer) -> None:
    """The server's answers to the panels."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write(SENTENCE, tokens=8, temperature=0)
    asked = dict[str, Any]()
    for stages in (("attention", "blocks", "embeddings", "feedforward"), ("lens", "attribution", "sampling", "beams")):
        for stage in stages:
            visit.open(stage)
        asked |= visit.answers()
    visit.close()

    def answer_to(*parts: str) -> tuple[Any, int]:
        """The answer about the longest text, and the token that the page asked about."""
        keys = [key for key in asked if all(part in key for part in parts)]
        key = max(keys, key=lambda one: len(asked[one].get("prompt", [])))
        token = re.search(r"tokens=(\d+)\]", key)
        return asked[key], int(token[1]) if token else -1

    answer, _ = answer_to("attention.pattern")
    shown = answer["arrays"]["blocks.0.attention.pattern"]
    with pellucid.load("smollm2", threads=2) as llm:
        ids = answer["prompt"]
        points = ["blocks.0.attention.pattern", "blocks.*.residual", "blocks.*.attention.output", "embed"]
        points += ["blocks.0.feedforward.hidden", "project.logits"]
        with llm.trace(*points) as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        own = trace.sequences[0]
        wanted = own["blocks.0.attention.pattern"]
        assert shown["shape"] == list(wanted.shape)
        assert np.array_equal(np.array(shown["values"], np.float32).reshape(wanted.shape), wanted)
        norms = answer_to("norms", "blocks.*.residual")[0]["arrays"]
        for name in ("blocks.29.residual", "blocks.7.attention.output"):
            assert np.allclose(norms[name]["values"], np.linalg.norm(own[name].astype(float), axis=1), rtol=1e-6)
        strips = answer_to("embed[dims=0:192")[0]["arrays"]["embed"]
        assert np.array_equal(np.float32(strips["values"]).reshape(strips["shape"]), own["embed"][:40, :192])
        for name in ("blocks.0.feedforward.hidden", "project.logits"):
            found, token = answer_to(f"{name}[tokens")
            assert np.array_equal(np.float32(found["arrays"][name]["values"]), own[name][token])
        lens, _ = answer_to('"top":3')
        assert lens == json.loads(json.dumps(logit_lens(llm, ids, top=3).as_dict()))
        attributed, _ = answer_to("/look/attribution")
        again = attribute(llm, ids[:-1], ids[-1]).as_dict()
        assert attributed == json.loads(json.dumps(again))
        found = llm.beam_search(ids[:-8], num_beams=3, max_new_tokens=8)
        assert answer_to("/look/beams")[0]["texts"][0]["text"] == found.text
        assert ids[-8:] == llm.generate(SENTENCE, max_new_tokens=8, temperature=0).ids


@pytest.mark.parametrize("count", [1, 4])
def test_beams_have_the_numbers_of_their_titles(browser: Any, server: PageServer, count: int) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=2, temperature=0)
    section = visit.open("beams")
    section.get_by_label("beams", exact=True).fill(str(count))
    visit.settle()
    table = section.locator("table.plain")
    titles = table.locator("thead th").all_inner_texts()
    rows = [one.locator("th, td").all_inner_texts() for one in table.locator("tbody tr").all()]
    words, leaves = section.inner_text(), section.locator(".beam-tree .num").all_inner_texts()
    visit.close()
    assert titles == ["text", "tokens", "sum of log-probabilities", "score"]
    assert "The score is the sum of log-probabilities divided by the number of tokens." in words
    with pellucid.load("smollm2", threads=2) as llm:
        prompt = llm.inputs.prompt("The capital of France is")
        found = llm.beam_search(prompt, num_beams=count, num_return_sequences=count, max_new_tokens=8)
        assert len(rows) == len(found.texts) == count
        for (_, tokens, total, score), one in zip(rows, found.texts):
            wanted = llm.score([*prompt, *one.ids]).logprobs.chosen[-len(one.ids) :].sum()
            assert int(tokens) == len(one.ids)
            assert float(total) == pytest.approx(wanted, abs=1e-3)
            assert float(score) == pytest.approx(wanted / len(one.ids), abs=1e-3)
            assert float(score) == pytest.approx(one.score, abs=1e-3)
            assert total in leaves, "the tree has the sums"


DRAWN = """() => {
    const all = (selector) => [...document.querySelectorAll(selector)], rows = (selector, name) =>
        all(selector).map((one) => +one.dataset[name]);
    return {
        tokens: rows('.ribbon', 'token'), residual: rows('.ribbon', 'residual'), levels: rows('.level', 'residual'),
        attention: rows('.add.attention', 'added'), feedforward: rows('.add.feedforward', 'added'),
        recurrent: rows('.add.recurrent', 'added'),
        said: all('.add[data-added]').map((one) => one.querySelector('title').textContent),
        pattern: all('.arcs [data-key]').map((one) => [+one.dataset.key, +one.dataset.weight]),
        logits: all('[data-logit]').map((one) => [+one.dataset.candidate, +one.dataset.logit]),
        shares: all('.candidate').map((one) => [+one.dataset.candidate, +one.dataset.probability]),
    };
}"""
PLACES = {
    "smollm2": [(0, 0, 3), (13, 8, 9)],
    "minilm": [(0, 1, 2), (5, 11, 5)],
    "mixture": [(0, 1, 4), (2, 0, 6)],
    "hybrid": [(0, 0, 3), (3, 1, 5)],
    "windows": [(0, 0, 5), (5, 1, 2)],
    "learned": [(0, 1, 1), (1, 0, 6)],
}
"""Blocks, heads and tokens that are looked at, by model. In `hybrid` the first one is recurrent."""


@pytest.mark.parametrize("model", PLACES)
def test_what_is_drawn_is_what_python_records(browser: Any, server: PageServer, model: str) -> None:
    """At least six points of six models: ribbons, levels, circles, arcs, logits and probabilities."""
    visit = Visit(browser, server.url, "large")
    visit.choose(model)
    visit.write(SENTENCE, tokens=6, temperature=0.9, seed=3)
    visit.settle()
    drawn = list[tuple[tuple[int, int, int], Any]]()
    for block, head, token in PLACES[model]:
        visit.go(block=block, head=head, token=token)
        drawn.append(((block, head, token), visit.page.evaluate(DRAWN)))
    ids = max((one["prompt"] for one in visit.answers().values() if "prompt" in one), key=len)
    assert visit.said == []
    visit.close()
    compared = set[str]()
    with pellucid.load(server.file(model), threads=2) as llm:
        names = [name for name in llm.points if is_drawn(name)]
        with llm.trace(*names) as trace:
            read(llm, ids)
        own = trace.sequences[0]
        for (block, head, token), seen in drawn:
            compared |= compare(llm, own, block, head, token, seen)
    assert len(compared) >= 6, compared


def is_drawn(name: str) -> bool:
    ends = ("residual", "output", "post_norm", "attention.pattern", "project.logits")
    return name.endswith(ends) and ".experts." not in name


def read(llm: Any, ids: list[int]) -> None:
    if not llm.spec.generates:
        llm.embed([SENTENCE])
    else:
        llm.generate(ids, max_new_tokens=1, temperature=0)


def compare(llm: Any, own: Any, block: int, head: int, token: int, seen: dict[str, Any]) -> set[str]:
    """Compare what is drawn with a trace. Returns the names of the compared points."""
    points, vocabulary = llm.points, llm.inputs.vocabulary
    compared = set[str]()

    def is_near(name: str, values: list[float], wanted: Any) -> None:
        assert values, name
        assert np.allclose(values, wanted, rtol=1e-5), name
        compared.add(name)

    def lengths(name: str) -> Any:
        return np.linalg.norm(own[name].astype(float), axis=1)

    rows = seen["tokens"]
    assert token in rows
    is_near(f"blocks.{block}.residual", seen["residual"], lengths(f"blocks.{block}.residual")[rows])
    for layer in range(len(llm.spec.blocks)):
        name = f"blocks.{layer}.residual"
        is_near(name, [seen["levels"][layer]], lengths(name)[token])
    said = iter(seen["said"])
    for part in ("attention", "recurrent", "feedforward"):
        names = [f"blocks.{block}.{part}.{name}" for name in ("post_norm", "output")]
        name = next((one for one in names if one in points), None)
        assert (name is not None) == bool(seen[part])
        if name is not None:
            is_near(name, seen[part], lengths(name)[rows])
            into = own[f"blocks.{block}.{part}.residual"].astype(float) - own[name].astype(float)
            wanted = np.linalg.norm(into, axis=1)[rows]
            assert np.allclose([numbers(next(said))[1] for _ in rows], wanted, rtol=1e-3, atol=6e-4), name
    name = f"blocks.{block}.attention.pattern"
    if name in points:
        row, weights = own[name][head, token], dict(seen["pattern"])
        assert {key for key in range(len(row)) if row[key] > 0.0041} <= weights.keys()
        is_near(name, list(weights.values()), row[list(weights)])
    if "project.logits" in points:
        logits = own["project.logits"][token]
        tokens = [one for one, _ in seen["logits"]]
        order = np.argsort(-logits[:vocabulary], kind="stable")[: len(tokens)].tolist()
        assert tokens == [one for one, _ in seen["shares"]] == order
        is_near("project.logits", [one for _, one in seen["logits"]], logits[tokens])
        options = Options.of(temperature=0.9, top_k=40, top_p=0.95, min_p=0, seed=1)
        left = options.chain().start(Words(vocabulary), []).sample(logits).candidates
        shares = dict(zip(left.ids_at().tolist(), left.probabilities()))
        is_near("probabilities", [one for _, one in seen["shares"]], [shares.get(one, 0) for one in tokens])
    return compared
