"""The page by keyboard alone, and for screen readers: on all screens, in light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from support.browser import TEXT, ended, list_stages
from support.page_server import PageServer
from support.page_visit import SCREENS, SECONDS, Visit, clipped, is_fitting, serious

STOPS = 9


def test_the_keyboard_reaches_everything(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=12, temperature=0)
    page = visit.page
    tokens = page.locator(f"{TEXT} .token")
    assert tokens.count() == 5 + 12
    assert page.locator(f"{TEXT} .token[tabindex='0']").count() == 1
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert tokens.nth(15).evaluate("(one) => one === document.activeElement && one.tabIndex === 0")
    page.keyboard.press("Enter")
    assert tokens.nth(15).get_attribute("aria-pressed") == "true"
    section = visit.open("attention")
    matrix = section.get_by_role("slider", name="attention pattern of block 0, head 0")
    matrix.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert matrix.get_attribute("aria-valuenow") == "1"
    assert "capital" in (matrix.get_attribute("aria-valuetext") or "")
    assert section.locator("h4").first.inner_text().startswith("What ·capital looks at")
    assert section.locator(".arcs .token[tabindex='0']").count() == 1
    flow = visit.open("blocks").get_by_role("slider")
    flow.focus()
    page.keyboard.press("End")
    assert flow.get_attribute("aria-valuenow") == "29"
    list_stages(visit.page)
    page.locator("#tab-blocks").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#stage-attention").wait_for()
    assert page.locator("[role=tab][tabindex='0']").count() == 1
    assert visit.said == []
    visit.close()


def test_the_picture_by_keyboard(browser: Any, server: PageServer) -> None:
    """Rows with the arrows, blocks with the slider, a number with Enter, nearer and farther, another token drawn."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0)
    page, before = visit.page, visit.text()
    row = page.locator(".column.text .token[tabindex='0']")
    assert row.count() == 1
    row.focus()
    for keys, token in (("Home", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("End", 8), ("ArrowUp", 7), ("PageUp", 0)):
        page.keyboard.press(keys)
        assert visit.chosen() == token
        page.wait_for_function("token => document.activeElement.dataset.token === token", arg=str(token))
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowUp")
    visit.settle()
    page.locator(".stack").focus()
    for keys, block in (("End", 29), ("ArrowLeft", 28), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(keys)
        assert page.locator(".stack").get_attribute("aria-valuenow") == str(block)
        assert f"block {block}: " in page.locator(".stack").get_attribute("aria-valuetext")
    visit.settle()
    badge = page.locator(".badge")
    badge.focus()
    page.keyboard.press("Enter")
    visit.settle()
    assert page.locator(".formula").count() == 1
    page.locator(".block-box .title").focus()
    page.keyboard.press("Enter")
    page.locator(".block-view").wait_for()
    visit.settle()
    page.locator(".operation[data-point='blocks.1.feedforward.hidden']").focus()
    page.keyboard.press("Enter")
    visit.settle()
    cells = page.locator(".vector").get_by_role("slider")
    cells.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert cells.get_attribute("aria-valuenow") == "1"
    visit.settle()
    assert "silu(gate) × up" in page.locator(".formula").inner_text()
    for view in ("head", "block", "heads", "whole"):
        page.locator(".crumbs button").first.focus()
        page.wait_for_timeout(360)
        page.keyboard.press("-")
        page.locator(f".picture-box.view-{view}").wait_for()
    visit.settle()
    other = page.locator(".candidate:not(.is-drawn)").first
    page.locator(".candidate").first.focus()
    other.focus()
    page.keyboard.press("Enter")
    page.locator(".branches").wait_for(timeout=SECONDS)
    ended(page, SECONDS)
    assert visit.text() != before
    assert visit.said == []
    visit.close()


def test_the_tour_to_its_end_by_keyboard(browser: Any, server: PageServer) -> None:
    """Nothing but keys, from the first Tab on: a run, nine stops with their answers, and the end."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    page = visit.page
    tab_to(page, "#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("The animal was too tired")
    page.keyboard.press("Control+Enter")
    ended(page, SECONDS)
    tab_to(page, "header .tools button[title*='nine stops']")
    page.keyboard.press("Enter")
    titles = set[str]()
    for stop in range(1, STOPS + 1):
        card = page.locator(".about-card")
        card.locator("h3", has_text=f"{stop}. ").wait_for()
        visit.settle()
        titles.add(card.locator("h3").inner_text())
        assert f"Tour {stop}/{STOPS}" in page.locator("header .tools").inner_text()
        tab_to(page, ".about-card p button.quiet")
        page.keyboard.press("Enter")
        assert card.locator("p button.quiet").count() == 0, "the answer is there"
        assert len(card.locator("p:has(> b)").last.inner_text()) > len(card.locator("p > b").last.inner_text()) + 10
        assert page.locator(".error").count() == 0
        assert serious(page, ".about-card") == []
        tab_to(page, ".about-card .stops .main", "Shift+Tab")
        page.keyboard.press("Enter")
    assert len(titles) == STOPS
    assert page.locator(".about-card .stops").count() == 0
    assert "Tour" in page.locator("header .tools").inner_text()
    assert visit.said == []
    visit.close()


def tab_to(page: Any, selector: str, key: str = "Tab") -> None:
    """Press a key until the element has the focus, as somebody without a pointer does."""
    for _ in range(400):
        page.keyboard.press(key)
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{key} does not reach {selector}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_on_every_screen(browser: Any, server: PageServer, scheme: str) -> None:
    """No serious finding of axe, nothing wider than the screen, targets of 24 pixels."""
    visit = Visit(browser, server.url, scheme=scheme)
    page, sizes = visit.page, [size for size, one in SCREENS if one == scheme]

    def is_fine(name: str) -> None:
        visit.settle()
        for size in sizes:
            visit.screen(size, scheme)
            visit.settle()
            assert is_fitting(page), (name, size)
            assert clipped(page) == [], (name, size)
            assert serious(page) == [], (name, size, scheme)

    is_fine("before a text")
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=8, temperature=0)
    visit.go(block=13, head=8, token=4, key=2, point="blocks.13.attention.pattern", stop=4)
    is_fine("the whole")
    for view in ("block", "head"):
        visit.go(view=view)
        is_fine(view)
    visit.go(view="vector", point="blocks.13.feedforward.hidden", dim=7)
    is_fine("a vector")
    visit.go(view="whole", point="")
    for size in sizes:
        visit.screen(size, scheme)
        visit.settle()
        assert small_targets(page) == [], size
    visit.screen("large", scheme)
    page.get_by_role("button", name="Present").click()
    visit.settle()
    assert is_fitting(page)
    assert serious(page) == []
    assert visit.said == []
    visit.close()


def small_targets(page: Any) -> list[str]:
    """Parts of the picture and buttons that are smaller than 24 pixels on the screen."""
    code = """() => [...document.querySelectorAll('.picture-svg .part, main button, header button')]
        .map((one) => [one, one.getBoundingClientRect()])
        .filter(([one, { width, height }]) => width && (height < 23.5 || width < 23.5))
        .map(([one, { width, height }]) => `${one.className} ${one.textContent.slice(0, 30)} ${width} × ${height}`)"""
    found: list[str] = page.evaluate(code)
    return found


def test_arrow_keys_go_from_stage_to_stage_and_from_token_to_token(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=4, temperature=0)
    page = visit.page
    stages = page.locator(".stage")
    stages.first.focus()
    here = "() => document.activeElement.dataset.stage ?? document.activeElement.dataset.candidate"
    names = stages.evaluate_all("all => all.map((one) => one.dataset.stage)")
    seen = [page.evaluate(here)]
    for _ in names[1:]:
        page.keyboard.press("ArrowRight")
        seen.append(page.evaluate(here))
    assert seen == names
    page.keyboard.press("ArrowRight")
    assert page.evaluate(here) == names[-1], "the last stage stays"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(here) == names[-2]
    candidates = page.locator(".candidate").evaluate_all("all => all.map((one) => one.dataset.candidate)")
    page.locator(".candidate").first.focus()
    for wanted in candidates[1:3]:
        page.keyboard.press("ArrowDown")
        assert page.evaluate(here) == wanted
    assert visit.said == []
    visit.close()
