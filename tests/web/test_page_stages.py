"""Panels of the page: each stage of each model in depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.page_server import MODELS, OTHERS, PageServer
from support.page_visit import SECONDS, SIZES, Visit, is_fitting, serious

import pellucid
from pellucid.trace import logit_lens, neighbours, raised_tokens
from pellucid.tracing import DIVIDED


@pytest.mark.parametrize("model", MODELS)
def test_every_stage_opens(browser: Any, server: PageServer, model: str) -> None:
    visit = Visit(browser, server.url)
    visit.choose(model)
    visit.write("The capital of France is")
    assert (visit.made() >= 1) == (model != "minilm")
    for number, stage in enumerate(visit.stages()):
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40
        sizes, schemes = [*SIZES, *SIZES][number % 3 :][:3], ("light", "dark")
        for size in sizes[: 3 if model == "smollm2" else 1]:
            visit.screen(size, schemes[number % 2])
            assert is_fitting(visit.page), f"{stage}: the page is wider than the screen, {size}"
        for scheme in schemes[: 2 if model == "smollm2" else 1]:
            visit.screen(sizes[0], scheme)
            assert serious(visit.page, f"#stage-{stage}") == [], (stage, sizes[0], scheme)
    assert visit.said == []
    visit.close()


def test_every_stage_opens_on_replicas(browser: Any, folder: Path) -> None:
    """Values come from a replica, for the stages of the page and for its list of requests."""
    pytest.importorskip("zmq", reason="pip install 'pellucid[cluster]'")
    from support.replicas import ReplicaProcess, loads_from

    name = "mixture.gguf"
    with ReplicaProcess(folder / name, "one") as replica:
        served = PageServer(folder, names=[name], load=loads_from(folder, {name: [replica.address]}))
        visit = Visit(browser, served.url)
        visit.write("The capital of France is")
        for stage in visit.stages():
            section = visit.open(stage)
            assert section.locator(".error").all_text_contents() == [], stage
            assert len(section.locator(".body").inner_text()) > 40
        assert visit.page.locator(".ribbon:not([data-residual])").count() == 0
        assert visit.said == []
        visit.close()
        served.close()


def test_the_page_opens_where_values_cannot_be_watched(browser: Any, folder: Path) -> None:
    """On a model that is divided over several machines, the page shows a notice and can still generate."""

    def load(name: str) -> Any:
        llm = pellucid.load(folder / name, threads=2)
        llm.tracing.unwatched = DIVIDED
        return llm

    served = PageServer(folder, names=["mixture.gguf"], load=load)
    visit = Visit(browser, served.url)
    assert "several machines" in visit.page.locator(".stages > .note").inner_text()
    visit.write("The capital of France is")
    assert visit.made() >= 1
    section = visit.open("attention")
    section.locator(".error").first.wait_for(timeout=SECONDS)
    assert "cannot be watched" in section.locator(".error").first.inner_text()
    visit.close()
    served.close()


@pytest.mark.parametrize("model", OTHERS)
def test_other_positions_have_curves(browser: Any, server: PageServer, model: str) -> None:
    visit = Visit(browser, server.url)
    visit.choose(model)
    visit.write("a text of some words", tokens=3)
    section = visit.open("positions")
    named = section.locator(".legend li").all_inner_texts()
    said = {"learned": "component", "alibi": "per token", "windows": "cosine"}[model]
    assert sum(said in one for one in named) >= 2
    if model == "windows":  # each table of angles, with its blocks
        titles = [one for one in section.locator("h4").all_inner_texts() if one.startswith("Blocks ")]
        blocks = [int(one) for title in titles for one in title.removeprefix("Blocks ").split(", ")]
        assert section.locator("canvas").count() >= len(titles) == 2
        assert sorted(blocks) == list(range(6))
    assert visit.said == []
    visit.close()


def test_characters_of_several_tokens_are_seen(browser: Any, server: PageServer) -> None:
    text = "中国 🦙 ꙮ"
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write(text, tokens=3, temperature=0)
    assert visit.given() == text
    rows = visit.page.locator(".column.text .token:not(.made)").all()
    seen = [row.get_attribute("aria-label").partition(": ")[2] for row in rows]
    assert seen[:6] == ["中", "国", "‥", "·🦙", "‥", "‥"]
    labels = visit.open("attention").locator(".arcs .token").all_inner_texts()
    assert labels[:6] == ["中", "国", "‥", "·🦙", "‥", "‥"]
    visit.open("embeddings")
    visit.page.locator(".column.text .token[data-token='2']").click()
    with pellucid.load("smollm2", threads=2) as llm:
        part = llm.tokenizer.encode(text)[2]
        expected = [f"{found} {cosine:.3f}" for found, _, cosine in neighbours(llm, part, 10)]
    near = visit.page.locator("#stage-embeddings .near li")
    near.first.filter(has_text=expected[0].split()[0]).wait_for(timeout=SECONDS)
    assert [one.split()[-1] for one in near.all_inner_texts()] == [one.split()[-1] for one in expected]
    for stage in ("lens", "tokens", "attention"):
        section = visit.open(stage)
        assert "�" not in section.inner_text()
        assert "中" in section.inner_text()
    assert visit.said == []
    visit.close()


def test_what_a_head_looks_at(browser: Any, server: PageServer) -> None:
    """The panel and the picture say what Python records of a head."""
    text = "The animal didn't cross the street because it was too tired"
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write(text, tokens=2, temperature=0)
    section = visit.open("attention")
    visit.page.locator(".stack .level").nth(13).click()
    section.get_by_role("button", name="head 8", exact=True).click()
    visit.page.locator(".column.text .token", has_text=re.compile("^·it$")).click()
    section.locator("h4", has_text="What ·it looks at in block 13, head 8").wait_for()
    visit.settle()
    listed = [one.split() for one in section.locator("ol.near li").all_inner_texts()]
    drawn = section.locator(".arcs canvas").evaluate(
        "(one) => one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some((x) => x)"
    )
    assert drawn
    with pellucid.load("smollm2", threads=2) as llm:
        with llm.trace("blocks.13.attention.pattern[heads=8]") as trace:
            made = llm.generate(text, max_new_tokens=3, temperature=0)
        assert made.ids
        at = trace.sequences[0].pieces.index(" it")
        row = trace.sequences[0]["blocks.13.attention.pattern"][0, at]
    assert [int(one[1]) for one in listed[:3]] == np.argsort(-row, kind="stable")[:3].tolist()
    assert abs(float(listed[0][2]) - 100 * float(row.max())) < 0.06
    assert visit.chosen() == at
    widest = visit.page.locator(f".arcs [data-key='{row.argmax()}']")
    assert abs(float(widest.get_attribute("data-weight")) - float(row.max())) < 1e-5
    # The map of all heads: from "it" at the animal, this head is among the strongest of the model.
    section.locator("ol.near button").first.click()
    visit.settle()
    strongest = section.locator("ol.strongest button")
    assert "block 13, head 8" in " ".join(strongest.all_inner_texts())
    strongest.first.click()
    block, head = map(int, re.findall(r"\d+", strongest.first.inner_text())[:2])
    visit.wait_for_place(block=block, head=head, token=at, key=int(row.argmax()))
    visit.close()


def test_neurons_have_words(browser: Any, server: PageServer) -> None:
    """The strongest neurons are listed with the tokens where they are largest and the tokens that fall without them."""
    text = "The capital of France is"
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write(text, tokens=1, temperature=0)
    section = visit.open("feedforward")
    visit.page.locator(".stack .level").nth(24).click()
    visit.page.locator(".column.text .token", has_text=re.compile("^·is$")).click()
    section.locator("h4", has_text="The strongest neurons of block 24 at ·is").wait_for()
    section.locator("th", has_text="raises").wait_for()
    visit.settle()
    rows = section.locator(".neurons-table tbody tr")
    listed = [
        (
            int(row.locator("th").inner_text().split()[1]),
            *(one.split() for one in row.locator("td.words").all_inner_texts()),
        )
        for row in rows.all()
    ]
    visit.close()
    with pellucid.load("smollm2", threads=2) as llm:
        ids = llm.tokenizer.encode(text)
        with llm.trace("blocks.24.feedforward.hidden") as trace:
            llm.generate(ids, max_new_tokens=2, temperature=0)
        hidden = trace.sequences[0]["blocks.24.feedforward.hidden"]
        points = [f"blocks.24.feedforward.hidden[tokens=-1; dims={neuron}]" for neuron, *_ in listed]
        raised = raised_tokens(llm, ids, points)
        pieces = [piece.replace(" ", "·") for piece in trace.sequences[0].pieces]
        assert [neuron for neuron, *_ in listed] == np.argsort(-abs(hidden[len(ids) - 1]))[: len(listed)].tolist()
        for (neuron, at, says), tokens in zip(listed, raised, strict=True):
            largest = np.argsort(-abs(hidden[: len(ids) + 1, neuron]), kind="stable")[:3]
            assert at == [pieces[one] for one in largest]
            assert says == [llm.tokenizer.piece(one).replace(" ", "·") for one in tokens]


def test_a_long_text_is_pooled(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("a long text " * 30, tokens=2)
    section = visit.open("attention")
    section.locator("ol.near li").first.wait_for(timeout=SECONDS)
    pooled = [one for key, one in visit.answers().items() if '"pool":168' in key]
    found = max(pooled, key=lambda one: len(one["prompt"]))  # the picture before the panel read the prompt alone
    count, arrays = len(found["prompt"]), found["arrays"]
    assert count > 256
    assert arrays["heads"]["shape"][1:] == [-(-count // (-(-count // 168)))] * 2
    assert arrays["rows"]["shape"][::2] == [1, count]
    folds = [int(one.get_attribute("aria-label").split()[0]) for one in visit.page.locator(".column.text .fold").all()]
    assert sum(folds) + visit.page.locator(".column.text .token").count() == visit.chosen() + 1, "a row or a fold each"
    asked = len([key for key in visit.answers() if '"pool"' in key])
    matrix = section.get_by_role("slider", name="attention pattern")
    matrix.focus()
    before = matrix.get_attribute("aria-valuetext")
    visit.page.keyboard.press("ArrowUp")
    visit.page.wait_for_timeout(300)
    assert matrix.get_attribute("aria-valuetext") != before
    now = len([key for key in visit.answers() if '"pool"' in key])
    assert now == asked, "the rows beside the chosen one have come with it"
    for stage in visit.stages():
        assert visit.open(stage).locator(".error").all_text_contents() == [], stage
    assert visit.said == []
    visit.close()


def test_a_step_is_measured(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    section = visit.open("timings")
    section.get_by_role("button", name="Measure one token").click()
    section.locator("tbody tr").first.wait_for(timeout=SECONDS)
    assert "A step of 1 token" in section.inner_text()
    assert any("logits" in one for one in section.locator("tbody th").all_inner_texts())
    assert serious(visit.page, "#stage-timings") == []
    assert visit.said == []
    visit.close()


def test_the_lens_follows_the_token_that_came(browser: Any, server: PageServer) -> None:
    """Its rank and probability after each block; the parts of its logit sum to the logit."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0)
    visit.go(token=4)
    section = visit.open("lens")
    visit.page.wait_for_function(  # until the ranks are there, the lens says only that they are beyond its list
        "() => { const rows = document.querySelectorAll('.lens-here tbody tr');"
        " return rows.length && ![...rows].some((one) => one.textContent.includes('>')); }",
        timeout=SECONDS,
    )
    visit.settle()
    rows = [one.inner_text().split() for one in section.locator(".lens-here tbody tr").all()]
    ids = next(one["ids"] for one in visit.answers().values() if "ranks" in one and len(one["tokens"]) > 1)
    parts = [one.inner_text() for one in visit.open("attribution").locator(".bars .num").all()]
    *values, total = [float(one.replace("−", "-")) for one in parts]
    assert sum(values) == pytest.approx(total, abs=0.02)
    with pellucid.load("smollm2", threads=2) as llm:
        prompt = llm.tokenizer.encode("The capital of France is")
        token = ids[-1][4][0]
        lens = logit_lens(llm, prompt, top=10, tokens=[token], positions=[4])
        assert [row[1] for row in rows] == [f"{rank:,}" for rank in lens.ranks[:, 0, 0]]
        assert rows[-1][2] == f"{100 * lens.wanted[-1, 0, 0]:.1f}"
    assert visit.said == []
    visit.close()


def test_a_panel_stays_open_until_it_is_closed(browser: Any, server: PageServer) -> None:
    """A second click on its tab changes nothing. Buttons that cannot be used keep their places."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    page = visit.page
    places = [page.get_by_role("button", name=name, exact=True) for name in ("Stop", "Link")]
    assert all(one.is_disabled() for one in places)
    before = [one.bounding_box() for one in places]
    visit.write("The capital of France is", tokens=4, temperature=0)
    assert [one.bounding_box() for one in places] == before
    assert [one.is_disabled() for one in places] == [True, False]
    visit.open("tokens")
    page.locator("#tab-tokens").click()
    assert page.locator("#stage-tokens").count() == 1
    page.locator("#stage-tokens").get_by_role("button", name="close").click()
    assert page.locator("[role=tabpanel]").count() == 0
    assert page.evaluate("document.activeElement.id") == "tab-tokens"
    visit.close()
