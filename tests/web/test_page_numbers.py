"""One number from near: its formula, its inputs, and what they come to."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from support.page_server import PageServer
from support.page_visit import Visit, numbers, serious

import pellucid

SENTENCE = "The animal didn't cross the street because it was too"
TOKEN, KEY, HEAD, DIM = 6, 2, 1, 5
SEEN = {"smollm2": 13, "windows": 1, "learned": 1}
"""Blocks whose numbers are looked at, by model."""
COMPUTED = (
    *("attention.norm", "attention.scores", "attention.pattern", "attention.heads", "attention.residual"),
    *("feedforward.norm", "feedforward.hidden", "feedforward.residual"),
)
"""Points of a block whose numbers the page computes from their inputs, in every model."""
ROUNDED = {"scores": 0.03, "heads": 2e-3}
"""Largest rests by the last part of a point, where the engine rounds inputs; elsewhere the printed digits agree."""
ROUNDED |= dict.fromkeys(("q", "k", "v", "qkv", "gate", "up", "output", "project"), 0.05)


@pytest.mark.parametrize("model", SEEN)
def test_formulas_come_to_the_recorded_numbers(browser: Any, server: PageServer, model: str) -> None:
    """All points of a block: the card has the recorded number, and its formula gives the same one."""
    block, visit = SEEN[model], Visit(browser, server.url)
    visit.choose(model)
    visit.write(SENTENCE, tokens=3, temperature=0)
    page, computed = visit.page, set[str]()
    with pellucid.load(server.file(model), threads=2) as llm:
        points = [one for one in llm.points.values() if one.name.startswith(f"blocks.{block}.")]
        names = [one.name for one in points if one.kind != "state"]
        with llm.trace(*names) as trace:
            llm.generate(SENTENCE, max_new_tokens=4, temperature=0)
        own = trace.sequences[0]
    for name in names:
        of_heads = re.search(r"\.(pattern|scores)$", name)
        number = {"key": KEY, "dim": -1} if of_heads else {"key": -1, "dim": DIM}
        visit.go(block=block, token=TOKEN, point=name, head=HEAD, **number)
        formula = page.locator(".number-card .formula")
        recorded, found = (float(formula.get_attribute(f"data-{one}")) for one in ("recorded", "computed"))
        wanted = own[name][HEAD, TOKEN, KEY] if of_heads else own[name][TOKEN].reshape(-1)[DIM]
        assert abs(recorded - float(wanted)) <= 1e-6 * max(1, abs(wanted)), name
        printed = numbers(formula.locator("strong").inner_text())[0]
        assert abs(printed - recorded) <= 0.5e-4 * max(1, abs(recorded)), name
        if found != found:  # the page says where the number comes from, and computes nothing
            continue
        rest = ROUNDED.get(name.rpartition(".")[2], 0.5e-4)
        assert abs(recorded - found) < rest * max(1, abs(recorded)), (name, recorded, found)
        total = page.locator(".terms .total .num").inner_text()
        assert abs(numbers(total)[0] - found) <= 0.5e-4 * max(1, abs(found)), name
        shown = abs(recorded - found) >= 0.5e-4
        assert (page.locator(".terms th", has_text=re.compile("^(rest|from rounding)$")).count() == 1) == shown, (
            "a rest is said"
        )
        computed.add(name.removeprefix(f"blocks.{block}."))
    assert computed >= set(COMPUTED) | ({"attention.q_rotary"} if model != "learned" else set())
    assert serious(page, ".number-card") == []
    weights = httpx.post(f"{server.url}/look/weights", json={}).status_code != 404
    assert [one for one in visit.said if weights or "404" not in one] == []
    visit.close()


def test_shares_may_be_more_than_the_whole(browser: Any, server: PageServer) -> None:
    """Weights of experts need not sum to 1."""
    visit = Visit(browser, server.url)
    code = "async (all) => all.map((await import('/web/parts/text.js')).percent)"
    shares = [0, 5e-5, 0.0123, 0.5, 0.9994, 0.9996, 1, 1.0004, 1.7, 2.5]
    said = ["0 %", "< 0.01 %", "1.23 %", "50.0 %", "99.9 %", "100 %", "100 %", "100 %", "170 %", "250 %"]
    assert visit.page.evaluate(code, shares) == said
    visit.close()


def test_the_way_from_the_whole_to_one_number(browser: Any, server: PageServer) -> None:
    """From the picture to a head, a weight, its score, the query and a component, and back by the path above."""
    visit = Visit(browser, server.url, "large")
    visit.choose("smollm2")
    visit.write(SENTENCE, tokens=3, temperature=0)
    visit.go(block=13, head=8, token=8)
    page, card = visit.page, visit.page.locator(".number-card")
    weights = {
        int(one.get_attribute("data-key")): float(one.get_attribute("data-weight"))
        for one in page.locator(".arcs [data-key]").all()
    }
    key = max(weights, key=lambda one: weights[one])
    page.locator(".badge").click()
    visit.settle()
    assert card.locator("h3").inner_text().startswith("blocks.13.attention.pattern [head 8]")
    assert abs(float(card.locator(".formula").get_attribute("data-recorded")) - weights[key]) < 1e-5
    page.locator(".crumbs .nearer button", has_text="head 8").click()
    page.locator(".head-view").wait_for()
    visit.settle()
    assert page.locator(".head-view .head-row").count() == 8 + 1, "a row for each token that is seen"
    page.locator(".head-view .number").nth(2 * key + 1).click()
    visit.settle()
    assert abs(float(card.locator(".formula").get_attribute("data-recorded")) - weights[key]) < 1e-5
    card.get_by_role("button", name="the score").click()
    visit.settle()
    assert "blocks.13.attention.scores" in card.locator("h3").inner_text()
    card.get_by_role("button", name="the query").click()
    visit.settle()
    page.locator(".vector canvas").wait_for()
    assert "blocks.13.attention.q_rotary" in page.locator(".crumbs").inner_text()
    assert "(B, T, H, K)" in page.locator(".vector .note").first.inner_text()
    page.locator(".vector").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    visit.settle()
    assert "sin θ" in card.locator(".formula").inner_text()
    page.locator(".crumbs").get_by_role("button", name="block 13").click()
    visit.settle()
    operations = page.locator(".block-view .operation")
    assert operations.count() >= 15
    assert page.locator(".block-view .operation[data-point='blocks.13.attention.q_rotary'].chosen").count() == 1
    page.locator(".crumbs").get_by_role("button", name="the whole").click()
    assert (visit.chosen(), page.locator(".stack").get_attribute("aria-valuenow")) == (8, "13")
    assert visit.said == []
    visit.close()
