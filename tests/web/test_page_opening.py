"""The page opens on a finished picture: what it says is what Python computes, and what it shows was found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import GIVEN
from support.page_server import PageServer
from support.page_visit import SCREENS, SECONDS, Visit, clipped, is_fitting, numbers, serious

import pellucid
from pellucid.llm import LLM
from pellucid.trace import ablate, causes, find_heads, logit_lens
from pellucid.util.probabilities import softmax

SENTENCE = "The capital of France is"
CHIPS = ".chips button"
SAID = ".lead .says, .lead .note"


@pytest.fixture(scope="module")
def llm() -> Any:
    with pellucid.load("smollm2", threads=2) as loaded:
        yield loaded


def opened(browser: Any, server: PageServer, size: str = "wide", scheme: str = "light") -> Visit:
    """The page as a person opens it, at rest."""
    visit = Visit(browser, server.url, size, scheme, opening=True)
    visit.page.locator(".why .three").wait_for(timeout=SECONDS)
    visit.settle()
    return visit


def said(visit: Visit) -> str:
    return " ".join(visit.page.locator(SAID).all_inner_texts()).replace("\u00a0", " ")


@pytest.mark.parametrize(("size", "scheme"), SCREENS)
def test_the_page_opens_on_a_finished_picture(
    browser: Any, server: PageServer, llm: LLM, size: str, scheme: str
) -> None:
    """Without a click: the sentence above the picture has the model's numbers, and nothing is empty or cut."""
    visit = opened(browser, server, size, scheme)
    page = visit.page
    ids = llm.inputs.prompt(SENTENCE)
    with llm.trace("project.logits", "blocks.*.attention.pattern") as trace:
        llm.generate(SENTENCE, max_new_tokens=1, temperature=0)
    own = trace.sequences[0]
    shares = softmax(own["project.logits"][-1])
    best = int(shares.argmax())
    words = said(visit)
    name = llm.tokenizer.piece(best).replace(" ", "·")
    assert f"{name} {100 * shares[best]:.1f} %" in words
    lens = logit_lens(llm, ids, tokens=[best], positions=[len(ids) - 1])
    mine, ranks = lens.wanted[1:, 0, 0], lens.ranks[1:, 0, 0]
    turn = int(np.argmax(np.log(mine[1:]) - np.log(mine[:-1]))) + 1
    assert f"The answer turns in block {turn}" in words
    assert [f"{ranks[turn - 1]:,}", f"{ranks[turn]:,}"] == re.findall(r"([\d,]+)(?:st|nd|rd|th)", words)[:2]
    assert page.locator(".stack").get_attribute("aria-valuenow") == str(turn)
    found = next(one for one in find_heads(llm, own, len(ids) - 1, top=32) if one.layer == turn)
    key = llm.tokenizer.piece(ids[found.key]).replace(" ", "·")
    assert f"Head {found.head} of block {turn} takes {100 * found.weight:.1f} % of what it reads" in words
    assert f"from {key}" in words
    assert page.locator("p.empty").count() == 0
    assert page.locator("[role=tab], .legend").count() == 0, "no tabs and no legend at the first glance"
    assert page.locator(".chips [aria-pressed=true]").inner_text() == SENTENCE
    assert is_fitting(page)
    assert clipped(page) == []
    assert serious(page, None, "label-content-name-mismatch", "target-size") == []
    assert visit.said == []
    visit.close()


def test_every_block_is_drawn_with_what_the_model_would_say(browser: Any, server: PageServer, llm: LLM) -> None:
    visit = opened(browser, server, "large")
    page, ids = visit.page, llm.inputs.prompt(SENTENCE)
    lens = logit_lens(llm, ids, top=1, positions=[len(ids) - 1])
    says = page.locator(".level").evaluate_all("all => all.map((one) => +one.dataset.says)")
    assert says == lens.ids[1:, 0, 0].tolist()
    with llm.trace("blocks.*.residual") as trace:
        llm.generate(SENTENCE, max_new_tokens=1, temperature=0)
    sizes = page.locator(".level").evaluate_all("all => all.map((one) => +one.dataset.residual)")
    wanted = [
        np.linalg.norm(trace.sequences[0][f"blocks.{layer}.residual"][-1].astype(float))
        for layer in range(len(llm.spec.blocks))
    ]
    assert np.allclose(sizes, wanted, rtol=1e-5)
    assert page.locator(".slices g").count() == len(llm.spec.blocks) - 1
    box = page.locator(".slices g").first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 8 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    assert 4 <= int(page.locator(".stack").get_attribute("aria-valuenow")) <= 12, "a drag moves the lens"
    assert visit.said == []
    visit.close()


def test_why_this_word_is_what_runs_without_the_parts_say(browser: Any, server: PageServer, llm: LLM) -> None:
    visit = opened(browser, server)
    page = visit.page
    shares = softmax(next(iter(llm.edited_outputs(SENTENCE, [])))[1])
    first, second = (int(one) for one in np.argsort(-shares)[:2])
    found = causes(llm, SENTENCE, first, against=second)
    rows = page.locator(".why tr[data-point]").evaluate_all(
        "all => all.map(({ dataset: one }) => [one.point, +one.lead, +one.without])"
    )
    wanted = [*found.tokens[:6], *found.heads, *found.neurons]
    assert [point for point, *_ in rows] == [one.point for one in wanted]
    assert np.allclose([row[1:] for row in rows], [(one.lead, one.probability) for one in wanted], rtol=1e-4, atol=1e-7)
    best = found.heads[0]
    words = page.locator(".why > p").inner_text()
    assert f"falls from {found.lead:.2f} to {best.lead:.2f}" in words
    assert f"to {100 * best.probability:.1f} %" in words
    assert page.locator(".cause").count() == len([one for one in wanted[len(found.tokens[:6]) :] if one.token < 5])
    arc = page.locator(".arcs g").evaluate_all("all => all.map((one) => one.dataset.weight)")
    page.locator(f'.why tr[data-point="{best.point}"] button').click()
    visit.settle()
    assert page.locator(".arcs g").count() == 0, f"{arc}: a head that is taken out has no arcs"
    assert "Changed:" in page.locator(".picture-box").inner_text()
    assert visit.said == []
    visit.close()


@pytest.mark.parametrize("model", ["smollm2", "mixture", "hybrid", "learned", "alibi", "windows", "minilm"])
def test_examples_of_every_model_say_what_is_true_of_it(browser: Any, server: PageServer, model: str) -> None:
    """Each example ends in a picture without an error, and its numbers equal the numbers of a run in Python."""
    visit = Visit(browser, server.url)
    visit.choose(model)
    page = visit.page
    with pellucid.load(server.file(model), threads=2) as llm:
        for number in range(page.locator(CHIPS).count()):
            page.locator(CHIPS).nth(number).click()
            page.locator(GIVEN).first.wait_for(timeout=SECONDS)
            visit.rest()
            page.wait_for_timeout(400)
            visit.settle()
            text, words = page.locator("#prompt").input_value(), said(visit)
            assert page.locator(".error").count() == 0, text
            token = visit.chosen()
            for head, block, weight in re.findall(r"Head (\d+) of block (\d+) takes ([\d.<> ]+) %", words):
                with llm.trace(f"blocks.{block}.attention.pattern") as trace:
                    if llm.spec.generates:
                        llm.generate(text, max_new_tokens=1, temperature=0)
                    else:
                        llm.embed(text)
                row = trace.sequences[0][f"blocks.{block}.attention.pattern"][int(head), token]
                assert np.isclose(100 * row, numbers(weight)[0], atol=0.06).any(), (text, words)
            if llm.spec.generates:
                ids = llm.inputs.prompt(text)[: token + 1]
                shares = softmax(next(iter(llm.edited_outputs(ids, [])))[1])
                shown = float(page.locator(".candidate").first.get_attribute("data-plain"))
                assert shown == pytest.approx(shares.max(), rel=1e-4)
    assert visit.said == []
    visit.close()


def test_a_word_is_found_by_its_text_and_its_head_by_what_it_reads(browser: Any, server: PageServer, llm: LLM) -> None:
    visit = opened(browser, server)
    page = visit.page
    page.get_by_role("button", name="… because it was too").click()
    page.wait_for_function("() => document.querySelector('.lead').innerText.includes('Without this head')")
    visit.settle()
    text = page.locator("#prompt").input_value()
    pieces = [llm.tokenizer.piece(one).strip() for one in llm.inputs.prompt(text)]
    token, key = pieces.index("it"), pieces.index("animal")
    best = find_heads(llm, text, token, key=key)[0]
    assert visit.chosen() == token
    words = said(visit)
    assert f"Head {best.head} of block {best.layer} takes {100 * best.weight:.1f} % of what it reads for ·it" in words
    assert page.evaluate("() => scrollY") == 0, "an example moves nothing out of view"
    assert page.locator(".number-card").count() == 0
    for row, weight in best.elsewhere:
        if weight > 0.2:
            assert f"·{pieces[row]} {100 * weight:.1f} %" in words
    assert visit.said == []
    visit.close()


def test_a_formula_stands_beside_its_number_and_nothing_scrolls(browser: Any, server: PageServer) -> None:
    visit = opened(browser, server)
    page = visit.page
    before = page.evaluate("() => scrollY")
    page.locator(".badge").click()
    visit.settle()
    card, badge = page.locator(".number-card").bounding_box(), page.locator(".badge").bounding_box()
    assert page.evaluate("() => scrollY") == before
    assert card["x"] >= 0
    assert card["x"] + card["width"] <= 1280
    assert card["y"] >= 0
    assert card["y"] + card["height"] <= 900
    apart = card["y"] > badge["y"] + badge["height"] or card["y"] + card["height"] < badge["y"]
    assert apart or card["x"] > badge["x"] + badge["width"] or card["x"] + card["width"] < badge["x"]
    assert page.locator(".number-line path").get_attribute("d")
    assert page.locator(".qkv.input").count() == 3, "the inputs of a weight are lit: a query, a key and a value"
    page.keyboard.press("Escape")
    assert page.locator(".number-card").count() == 0
    visit.screen("narrow", "light")
    page.locator(".badge").click()
    visit.settle()
    sheet = page.locator(".number-card").bounding_box()
    assert sheet["y"] + sheet["height"] == pytest.approx(844, abs=1)
    assert sheet["height"] < 0.5 * 844
    assert visit.said == []
    visit.close()


def test_sliders_of_the_softmax_change_the_picture_alone(browser: Any, server: PageServer, llm: LLM) -> None:
    visit = opened(browser, server)
    page = visit.page
    logits = next(iter(llm.edited_outputs(SENTENCE, [])))[1]
    for temperature, top_p in ((1.5, 0.8), (0.4, 0.99), (1.0, 0.5)):
        for name, value in (("temperature", temperature), ("top-p", top_p)):
            page.locator(".tries").get_by_label(name).evaluate(
                "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', { bubbles: true })); }",
                value,
            )
        visit.settle()
        warm = softmax(logits / np.float32(temperature))
        order = np.argsort(-warm, kind="stable")
        count = int(np.searchsorted(np.cumsum(warm[order]), top_p)) + 1
        shown = page.locator(".candidate").evaluate_all(
            "all => all.map((one) => [+one.dataset.probability, +one.dataset.plain])"
        )
        left = warm[order] / warm[order][:count].sum()
        left[count:] = 0
        assert np.allclose([one for one, _ in shown], left[: len(shown)], rtol=1e-4, atol=1e-9)
        assert np.allclose([one for _, one in shown], softmax(logits)[order][: len(shown)], rtol=1e-4)
        assert page.locator(".cut").count() == (count < len(shown))
    assert visit.said == []
    visit.close()


def test_a_formula_is_a_few_keys_away(browser: Any, server: PageServer) -> None:
    """From the open page to the formula of an attention weight, with the keyboard alone."""
    visit = opened(browser, server)
    page = visit.page
    for key in ("Tab", "Enter", "Enter"):
        page.keyboard.press(key)
    visit.settle()
    assert page.locator(".number-card .formula").count() == 1
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.closest('.picture-box') !== null"), "the focus is not lost"
    assert visit.said == []
    visit.close()


def test_the_first_picture_is_there_soon(browser: Any, server: PageServer) -> None:
    """The sentence is there before the causes: the first parts of the picture wait for no slower request."""
    visit = Visit(browser, server.url, opening=True)
    visit.page.locator(".lead .answer").first.wait_for(timeout=SECONDS)
    assert visit.page.locator(".column.embed .strip").count() > 0
    visit.page.locator(".why .three").wait_for(timeout=SECONDS)
    visit.close()


def test_a_step_is_sent_as_one_file(browser: Any, server: PageServer, tmp_path: Path) -> None:
    """The file opens without a server: the same sentence, the same numbers, and the replay."""
    visit = opened(browser, server)
    page = visit.page
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="HTML").click()
    saved.value.save_as(tmp_path / "step.html")
    first = page.locator(".lead .says").inner_text()
    shares = page.locator(".candidate").evaluate_all("all => all.map((one) => +one.dataset.probability)")
    page.locator(".export button").first.click()
    visit.close()
    alone = Visit(browser, (tmp_path / "step.html").as_uri(), wait=".lead .says")
    alone.settle()
    assert alone.page.locator(".lead .says").inner_text() == first
    again = alone.page.locator(".candidate").evaluate_all("all => all.map((one) => +one.dataset.probability)")
    assert np.allclose(again, shares, rtol=1e-5)
    assert alone.page.locator(".slices g").count() == 29
    alone.page.get_by_label("moment of the step").evaluate(
        "(one) => { one.value = 300; one.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    assert alone.page.locator(".wavefront").count() == 1
    assert "Paris" not in alone.page.locator(".lead").inner_text()
    assert alone.said == []
    alone.close()


def test_heads_that_read_a_word_are_listed_with_what_they_do(browser: Any, server: PageServer, llm: LLM) -> None:
    visit = opened(browser, server)
    page = visit.page
    page.locator(".badge").first.click()
    section = visit.open("attention")
    section.locator(".specific tbody tr").first.wait_for(timeout=SECONDS)
    rows = section.locator(".specific tbody tr").evaluate_all(
        "all => all.map(({ dataset: one }) => [one.head, +one.score, +one.without])"
    )
    ids = llm.inputs.prompt(SENTENCE)
    wanted = find_heads(llm, ids, len(ids) - 1, key=len(ids) - 2, top=6)
    assert [head for head, *_ in rows] == [f"{one.layer}.{one.head}" for one in wanted[: len(rows)]]
    assert np.allclose(
        [score for _, score, _ in rows], [one.weight - one.mean for one in wanted[: len(rows)]], rtol=1e-4
    )
    best = int(next(iter(llm.edited_outputs(ids, [])))[1].argmax())
    copies = [[ablate(f"blocks.{one.layer}.attention.heads[heads={one.head}]")] for one in wanted[: len(rows)]]
    left = dict(llm.edited_outputs(ids, copies))
    shares = [softmax(left[number])[best] for number in range(len(rows))]
    assert np.allclose([without for *_, without in rows], shares, rtol=1e-4)
    assert visit.said == []
    visit.close()
