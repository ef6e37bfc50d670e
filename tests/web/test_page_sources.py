"""The page of encoder-decoders: a source, the answer to it, and what the answer looks at in the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hostile_runs import run_bytes
from support.page_server import PageServer
from support.page_visit import SECONDS, Visit, is_fitting, numbers, serious

import pellucid
from pellucid.testing import random_model
from pellucid.trace import ablate
from pellucid.trace.explanation import explain

TEXT, TOKENS = "a cat on the mat", 6
MODELS = ("marian", "t5")
CROSS, ENCODER = "blocks.*.cross.pattern", "encoder.blocks.*.attention.pattern"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    folder = tmp_path_factory.mktemp("sources")
    for name in MODELS:
        random_model(name, folder / name, kind="safetensors", layers=3)
    served = PageServer(folder, names=MODELS, load=lambda name: pellucid.load(folder / name, threads=2))
    yield served
    served.close()


def opened(browser: Any, sources: PageServer, model: str) -> Visit:
    """A page with an answer of ``TOKENS`` tokens."""
    visit = Visit(browser, sources.url)
    visit.choose(model)
    visit.write(TEXT, tokens=TOKENS, temperature=0)
    visit.settle()
    return visit


def traced(sources: PageServer, model: str, edits: Any = ()) -> tuple[list[int], Any]:
    """The ids of the answer, and the trace of its values."""
    with pellucid.load(sources.folder / model, threads=2) as llm, llm.trace(CROSS, ENCODER) as trace:
        made = llm.generate(TEXT, max_new_tokens=TOKENS, temperature=0, edits=list(edits))
    return made.ids, trace.sequences[0]


def weights(part: Any, which: int = 0) -> list[float]:
    """The weights of the tokens in a list of the panel, the largest first."""
    listed = part.locator("ol.near").nth(which).locator("[data-weight]").all()
    return [float(one.get_attribute("data-weight")) for one in listed]


ADDED = """() => Object.fromEntries(['attention', 'cross', 'feedforward'].map((part) =>
    [part, [...document.querySelectorAll(`.add.${part}[data-added] title`)].map((one) => one.textContent)]))"""


@pytest.mark.parametrize("model", MODELS)
def test_each_part_adds_to_the_stream_after_the_part_before_it(browser: Any, sources: PageServer, model: str) -> None:
    """A block of a decoder has three parts. Words give the length of the addition and of the stream before it."""
    visit = opened(browser, sources, model)
    visit.screen("large", "light")
    visit.settle()
    said = visit.page.evaluate(ADDED)
    rows = [int(one.get_attribute("data-token")) for one in visit.page.locator(".ribbon").all()]
    visit.close()
    with pellucid.load(sources.folder / model, threads=2) as llm:
        with llm.trace("blocks.0.**") as trace:
            llm.generate(TEXT, max_new_tokens=TOKENS, temperature=0)
        own = trace.sequences[0]
        for part, titles in said.items():
            output, after = (
                own[f"blocks.0.{part}.output"].astype(float),
                own[f"blocks.0.{part}.residual"].astype(float),
            )
            sizes = [[np.linalg.norm(one[row]) for one in (output, after - output)] for row in rows[: len(own)]]
            assert np.allclose([numbers(one) for one in titles[: len(own)]], sizes, rtol=1e-3, atol=6e-4), part


def test_a_head_to_the_source_that_is_taken_out_looks_at_nothing(browser: Any, sources: PageServer) -> None:
    visit = opened(browser, sources, "t5")
    looks = visit.page.locator("[data-source]")
    assert looks.count() > 0
    panel = visit.open("source")
    panel.get_by_role("button", name="one head").click()
    panel.get_by_role("button", name="take out this head").click()
    visit.settle()
    assert looks.count() == 0
    panel.get_by_role("button", name="take out this head").click()
    visit.settle()
    assert looks.count() > 0
    visit.close()


def largest(rows: np.ndarray) -> Any:
    return pytest.approx(np.sort(rows)[::-1][:8].tolist(), rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_every_stage_of_an_answer_opens(browser: Any, sources: PageServer, model: str) -> None:
    visit = opened(browser, sources, model)
    assert visit.made() == TOKENS
    assert visit.open("tokens").get_by_label("tokens of the source").locator("li").count() == len(TEXT)
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert len(section.locator(".body").inner_text()) > 40, stage
        assert serious(visit.page, f"#stage-{stage}") == [], stage
    assert "timings" not in visit.stages()
    for measure in visit.page.locator(".measures button").all():
        measure.click()
    visit.open("source")
    visit.screen("narrow", "dark")
    assert is_fitting(visit.page)
    assert serious(visit.page) == []
    assert "to the source" in visit.open("attribution").inner_text()
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", MODELS)
def test_a_token_looks_at_the_source(browser: Any, sources: PageServer, model: str) -> None:
    ids, sequence = traced(sources, model)
    visit = opened(browser, sources, model)
    panel = visit.page.locator("#stage-source")  # it is open from the beginning
    cross = np.stack([sequence[f"blocks.{layer}.cross.pattern"] for layer in range(3)])  # (L, H, T, S)
    token = visit.chosen()
    assert token == len(ids) - 1
    assert weights(panel) == largest(cross[:, :, token].mean((0, 1)))
    visit.go(token=2)
    assert weights(panel) == largest(cross[:, :, 2].mean((0, 1)))
    panel.get_by_role("button", name="all heads of one block").click()
    visit.go(block=1)
    assert weights(panel) == largest(cross[1, :, 2].mean(0))
    panel.get_by_role("button", name="one head", exact=True).click()
    visit.go(block=1, head=3)
    assert weights(panel) == largest(cross[1, 3, 2])
    drawn = [
        (int(one.get_attribute("data-source")), float(one.get_attribute("data-weight")))
        for one in visit.page.locator(".source[data-source]").all()
    ]
    assert len(drawn) == visit.chosen() + 1, "later tokens do not exist in the step of the chosen token"
    found = zip(drawn, cross[1, 3])
    assert all(row[best] == row.max() == pytest.approx(weight, rel=1e-4) for (best, weight), row in found)
    panel.get_by_role("button", name="all heads of all blocks").click()
    visit.go(source=5)
    visit.settle()
    shaded = panel.get_by_role("group", name="the source").locator("button")
    assert shaded.nth(5).get_attribute("aria-pressed") == "true"
    own = np.stack([sequence[f"encoder.blocks.{layer}.attention.pattern"] for layer in range(3)])[:, :, 5]
    assert weights(panel, 1) == largest(own.mean((0, 1)))
    shaded.nth(8).click()
    visit.wait_for_place(source=8)
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_continues_and_branches(browser: Any, sources: PageServer, model: str) -> None:
    with pellucid.load(sources.folder / model, threads=2) as llm:
        longer = llm.generate(TEXT, max_new_tokens=TOKENS + 1, temperature=0)
        visit = opened(browser, sources, model)
        visit.page.get_by_role("button", name="Step").click()
        visit.rest()
        assert visit.made() == TOKENS + 1
        assert [one.strip() for one in shown_ids(visit)] == [str(token) for token in longer.ids]
        visit.go(token=2)
        other = visit.page.locator(".column.softmax .candidate:not(.is-drawn)").first
        token = int(other.get_attribute("data-candidate"))
        other.click()
        visit.rest()
        begun = [*longer.ids[:2], token]
        request = llm.request(TEXT, resumed=begun, max_new_tokens=TOKENS, temperature=0)
        request.wait()
        assert shown_ids(visit) == [str(one) for one in [*begun, *request.result().ids]]
    text = visit.text()
    visit.page.wait_for_timeout(600)  # the address follows
    again = Visit(browser, visit.page.url, wait=".offer")
    again.make_again()
    again.rest()
    assert again.text() == text
    assert visit.said == again.said == []
    again.close()
    visit.close()


def shown_ids(visit: Visit) -> list[str]:
    """The ids of the generated tokens that the panel of tokens shows."""
    texts: list[str] = visit.open("tokens").locator(".pieces li.made .id").all_inner_texts()
    return texts


@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_of_a_block_follow_from_their_formulas(browser: Any, sources: PageServer, model: str) -> None:
    visit = opened(browser, sources, model)
    for point in ("q", "heads", "output", "residual"):
        visit.go(view="vector", block=1, token=3, point=f"blocks.1.cross.{point}", dim=19)
        formula = visit.page.locator(".number-card .formula")
        recorded, computed = (float(formula.get_attribute(f"data-{one}")) for one in ("recorded", "computed"))
        assert computed == pytest.approx(recorded, abs=2e-3), point
        assert abs(recorded) > 2e-3
    visit.go(point="blocks.1.cross.heads")
    card = visit.page.locator(".number-card")
    assert "of the source: weight × value" in card.inner_text()
    assert "take out head 1" in card.inner_text()
    visit.go(view="block")
    visit.page.locator('.operation[data-point="blocks.1.cross.pattern"]').click()
    assert visit.page.locator("#tab-source").get_attribute("aria-selected") == "true"
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", MODELS)
def test_one_weight_of_a_look_at_the_source_follows_from_its_formula(
    browser: Any, sources: PageServer, model: str, tmp_path: Path
) -> None:
    points = [f"blocks.*.cross.{name}" for name in ("q", "k", "scores", "pattern")]
    with pellucid.load(sources.folder / model, threads=2) as llm:
        run = llm.record(TEXT, *points, max_new_tokens=TOKENS, temperature=0)
    (tmp_path / "one.html").write_text(run.html(), encoding="utf-8")

    def check(visit: Visit, point: str, block: int = 1, head: int = 2) -> None:
        visit.settle()
        formula = card.locator(".formula")
        recorded, computed = (float(formula.get_attribute(f"data-{one}")) for one in ("recorded", "computed"))
        assert recorded == pytest.approx(run[f"blocks.{block}.cross.{point}"][head, 3, 4], rel=1e-4), point
        assert computed == pytest.approx(recorded, abs=2e-3), point
        assert card.get_by_role("heading").inner_text().endswith("→ t of the source")

    visit = opened(browser, sources, model)
    card, panel = visit.page.locator(".number-card"), visit.page.locator("#stage-source")
    visit.go(token=3)
    panel.get_by_role("button", name="one head", exact=True).click()
    visit.go(block=1, head=2)
    panel.get_by_role("group", name="the source").locator("button").nth(4).click()
    check(visit, "pattern")
    assert "each token of the source" in card.locator(".formula").inner_text()
    card.get_by_role("button", name="the score", exact=True).click()
    check(visit, "scores")
    card.get_by_role("button", name="the query").click()
    visit.settle()
    assert "blocks.1.cross.q [head 2, 0]" in card.get_by_role("heading").inner_text()
    visit.go(point="blocks.1.cross.pattern", dim=-1, view="whole")
    card.get_by_role("button", name="look only there").click()
    visit.settle()
    pinned = card.locator(".formula")
    assert float(pinned.get_attribute("data-recorded")) == 1
    assert serious(visit.page, ".number-card") == []
    assert visit.said == []
    visit.close()
    visit = Visit(browser, (tmp_path / "one.html").as_uri(), wait=".text .token")
    card, panel = visit.page.locator(".number-card"), visit.open("source")
    visit.page.locator(".text .token").nth(3).click()
    panel.get_by_role("button", name="one head", exact=True).click()
    panel.get_by_role("group", name="the source").locator("button").nth(4).click()
    check(visit, "pattern", 0, 0)
    card.get_by_role("button", name="the score", exact=True).click()
    check(visit, "scores", 0, 0)
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", MODELS)
def test_a_report_of_an_explanation_shows_the_source(
    browser: Any, sources: PageServer, model: str, tmp_path: Path
) -> None:
    with pellucid.load(sources.folder / model, threads=2) as llm:
        found = explain(llm, TEXT, step=3, max_new_tokens=4, temperature=0, ignore_eos=True)
        (tmp_path / "report.html").write_text(found.html(), encoding="utf-8")
    visit = Visit(browser, (tmp_path / "report.html").as_uri(), wait=".text .token")
    visit.page.locator(".text .token").nth(2).click()
    panel = visit.open("source")
    names = panel.get_by_role("group", name="the source").locator("button").all_inner_texts()
    assert len(names) == len(found.source_pieces) == len(TEXT)
    rows = np.stack([found.source.sequence[f"blocks.{layer}.cross.pattern"][:, 2] for layer in range(3)])
    assert weights(panel) == largest(rows.mean((0, 1)))
    for stage in visit.stages():
        section = visit.open(stage)
        assert section.locator(".error").all_text_contents() == [], stage
        assert serious(visit.page, f"#stage-{stage}") == [], stage
    assert f"the logit of {found.attribution.token}" in " ".join(visit.open("attribution").inner_text().split())
    assert visit.said == []
    visit.close()


def test_a_long_source_is_shown(browser: Any, sources: PageServer) -> None:
    visit = Visit(browser, sources.url)
    visit.choose("t5")
    visit.write("the cat sat on the mat. " * 20, tokens=TOKENS, temperature=0)
    panel = visit.open("source")
    assert panel.get_by_role("group", name="the source").locator("button").count() == 480
    for mode in ("all heads of one block", "one head"):
        panel.get_by_role("button", name=mode, exact=True).click()
        visit.settle()
        assert panel.get_by_role("slider", name="attention to the source").count() == 1
    assert panel.locator(".error").count() == 0
    assert is_fitting(visit.page)
    assert visit.said == []
    visit.close()


def test_the_tour_goes_to_the_source(browser: Any, sources: PageServer) -> None:
    visit = Visit(browser, sources.url)
    visit.choose("marian")
    visit.page.locator(".chips button").first.click()
    visit.rest()
    card = visit.page.locator(".about-card")
    visit.page.get_by_role("button", name="Tour", exact=True).click()
    for stop in range(1, 10):
        visit.settle()
        assert card.get_by_role("heading").inner_text().startswith(f"{stop}. ")
        assert visit.page.locator(".error").count() == 0
        assert "queen" not in card.inner_text()
        if stop == 4:
            assert visit.page.locator("#tab-source").get_attribute("aria-selected") == "true"
            assert "the source, which an encoder has read" in card.inner_text()
        if stop < 9:
            card.get_by_role("button", name="Next").click()
    assert visit.said == []
    visit.close()


def test_a_head_is_taken_out(browser: Any, sources: PageServer) -> None:
    visit = opened(browser, sources, "t5")
    panel = visit.open("source")
    panel.get_by_role("button", name="one head", exact=True).click()
    visit.go(block=2, head=1)
    panel.get_by_role("button", name="take out this head").click()
    visit.settle()
    assert panel.locator(".effect").inner_text().startswith("The likeliest token after")
    visit.page.get_by_role("button", name="▶ Run").click()
    visit.rest()
    ids, _ = traced(sources, "t5", [ablate("blocks.2.cross.heads[heads=1]")])
    assert shown_ids(visit) == [str(token) for token in ids]
    assert "head (to the source) 1 of block 2" in visit.open("changes").inner_text()
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("points", [(CROSS, ENCODER, "blocks.*.residual"), (f"{CROSS}[tokens=2:5]",)])
def test_a_recorded_answer_opens_with_its_source(
    browser: Any, sources: PageServer, tmp_path: Path, points: tuple[str, ...]
) -> None:
    with pellucid.load(sources.folder / "marian", threads=2) as llm:
        run = llm.record(TEXT, *points, max_new_tokens=TOKENS, temperature=0)
    run.save(tmp_path / "one.run")
    visit = Visit(browser, sources.url)
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "one.run")
    visit.page.get_by_role("heading", name="A recorded run").wait_for(timeout=SECONDS)
    panel = visit.open("source")
    visit.page.locator(".text .token").nth(3).click()
    visit.settle()
    first = run.parts.get("blocks.0.cross.pattern", {}).get("first", 0)
    rows = np.stack([run[f"blocks.{layer}.cross.pattern"][:, 3 - first] for layer in range(3)])
    assert weights(panel) == largest(rows.mean((0, 1)))
    assert ("was not recorded" in panel.inner_text() or "has not recorded" in panel.inner_text()) is (
        ENCODER not in points
    )
    assert serious(visit.page) == []
    assert visit.said == []
    (tmp_path / "one.html").write_text(run.html(), encoding="utf-8")
    visit.page.goto((tmp_path / "one.html").as_uri())  # a report is the same page without a server
    visit.page.locator(".text .token").nth(3).click()
    visit.settle()
    assert weights(visit.open("source")) == largest(rows.mean((0, 1)))
    visit.page.goto(sources.url)
    visit.page.locator("textarea").wait_for(timeout=SECONDS)
    (tmp_path / "no.run").write_bytes(run_bytes({}, source=[1, 2], source_pieces=["a"]))
    visit.page.locator("input[type=file]").set_input_files(tmp_path / "no.run")
    visit.page.get_by_text("what it says of the run is damaged").wait_for(timeout=SECONDS)
    visit.close()


def test_numbers_of_a_recorded_head_follow_from_their_formulas(
    browser: Any, sources: PageServer, tmp_path: Path
) -> None:
    points = [f"blocks.*.{part}.{name}" for part in ("attention", "cross") for name in ("pattern", "v", "heads")]
    with pellucid.load(sources.folder / "marian", threads=2) as llm:
        run = llm.record(TEXT, *points, "blocks.*.attention.scores", max_new_tokens=TOKENS, temperature=0)
    (tmp_path / "one.html").write_text(run.html(), encoding="utf-8")
    visit = Visit(browser, (tmp_path / "one.html").as_uri(), wait=".text .token")
    visit.page.locator(".text .token").nth(4).click()
    visit.page.get_by_role("button", name="block 0", exact=True).click()
    for part in ("attention", "cross"):
        visit.page.locator(f'.operation[data-point="blocks.0.{part}.heads"]').click()
        visit.settle()
        visit.page.locator(".vector .note button").first.click()  # the largest number
        formula = visit.page.locator(".number-card .formula")
        row = run[f"blocks.0.{part}.heads"][4].reshape(-1)
        value = row[np.abs(row).argmax()]
        assert float(formula.get_attribute("data-recorded")) == pytest.approx(value, rel=1e-5)
        assert float(formula.get_attribute("data-computed")) == pytest.approx(value, abs=2e-3)
        visit.page.get_by_role("button", name="block 0", exact=True).click()
    assert visit.said == []
    visit.close()
