"""The text of the page: its branches, its address, and what selects a token."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from support.browser import AGAIN, MADE, TEXT, ended
from support.page_server import PageServer
from support.page_visit import SECONDS, Visit

NOT_DRAWN = ".candidate:not(.is-drawn)"
"""Selector of tokens that were not drawn after the selected one. A click draws one: the text branches."""


def draw_instead(visit: Visit, token: int, number: int = 0) -> str:
    """Select a token of the text and draw another token after it. Returns the text with the branch."""
    visit.page.locator(f"{TEXT} .token").nth(token).click()
    visit.settle()
    visit.page.locator(NOT_DRAWN).nth(number).click()
    ended(visit.page, SECONDS)
    visit.page.locator(".branches").wait_for(timeout=SECONDS)
    return visit.text()


def test_branches_and_alternatives(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=10, temperature=0)
    page, before = visit.page, visit.text()
    branched = draw_instead(visit, 4)
    assert page.locator(".branches li").count() == 2
    assert branched != before
    assert branched.startswith("The capital of France is")
    twice = draw_instead(visit, 9, 1)  # a branch of the branch
    page.locator(".branches button").first.click()
    assert visit.text() == before
    visit.open("sampling").get_by_label("top-k").fill("7")
    page.locator(f"{TEXT} .token").nth(8).click()
    page.wait_for_timeout(800)
    address, branches = page.url, page.locator(".branches li").all_inner_texts()
    assert len(branches) == 3
    visit.close()
    again = Visit(browser, address)
    again.make_again()
    again.page.locator(".branches li").nth(2).wait_for(timeout=SECONDS)
    ended(again.page, SECONDS)
    assert again.page.locator(".branches li").all_inner_texts() == branches
    assert again.text() == before, "the address makes the same view"
    assert again.page.locator(f"{TEXT} .token").nth(8).get_attribute("aria-pressed") == "true"
    assert again.chosen() == 8
    assert again.page.locator("#stage-sampling").get_by_label("top-k").input_value() == "7"
    for button, text in zip(again.page.locator(".branches button").all(), (before, branched, twice)):
        button.click()
        assert again.text() == text
    assert again.said == []
    again.close()


def test_a_click_on_the_drawn_token_goes_on(browser: Any, server: PageServer) -> None:
    """The drawn token is no branch: the selection moves to it. A known branch is shown, not made again."""
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("a text of some words", tokens=6, temperature=0)
    before, tokens = visit.text(), visit.page.locator(f"{TEXT} .token")
    count = tokens.count() - visit.made()
    tokens.nth(count).click()
    visit.settle()
    visit.page.locator(".candidate.is-drawn").click()
    assert visit.chosen() == count + 1
    assert visit.text() == before
    branched = draw_instead(visit, count)
    visit.page.locator(".branches button").first.click()
    assert visit.text() == before
    asked = list[str]()
    visit.page.on("request", lambda one: asked.append(one.url) if one.url.endswith("generate") else None)
    assert draw_instead(visit, count) == branched
    assert asked == []
    assert visit.said == []
    visit.close()


def test_an_address_of_another_text_says_so(browser: Any, server: PageServer) -> None:
    made = [
        {"from": 0, "token": None, "count": 3},
        {"from": 1, "token": 49151, "count": 2},
        {"from": 1 << 40, "token": -7, "count": "x"},
    ]
    address = {"model": "smollm2", "stage": "<b>", "at": {"block": -9, "head": 1e99}, "made": made, "leaf": 99}
    visit = Visit(browser, f"{server.url}/#{quote(json.dumps(address))}")
    visit.make_again()
    visit.page.get_by_text("This model makes another text").wait_for(timeout=SECONDS)
    assert visit.made() == 3
    visit.open("attention")
    assert visit.said == []
    visit.close()
    for hash in ("#%", "#null", "#[]", f"#{quote(json.dumps({'model': 'nobody', 'made': 7, 'edits': 'x'}))}"):
        other = Visit(browser, f"{server.url}/{hash}")
        assert other.page.locator("#prompt").input_value() != ""
        other.close()


def test_an_address_starts_nothing_without_a_click(browser: Any, server: PageServer) -> None:
    """Any site can open the page: the page requests only names, and the site cannot access its window."""
    made = [{"from": 0, "token": None, "count": 3}]
    at = {"form": {"text": "some words"}, "stage": "beams", "made": made, "leaf": 1}
    Visit(browser, server.url).close()  # the first model is in memory
    for model, is_loaded in (("smollm2", True), ("learned", False)):
        if not is_loaded:
            with ThreadPoolExecutor() as threads:  # Playwright has an event loop in this thread
                threads.submit(asyncio.run, server.models.unload(model)).result()
        visit = Visit(browser, "about:blank", wait="html")
        context, site, asked = visit.context, visit.page, list[tuple[str, str]]()
        context.on("request", lambda one, asked=asked: asked.append((one.method, one.url.removeprefix(server.url))))
        with context.expect_page() as opened:
            site.evaluate(
                "(url) => { window.opened = open(url); }", f"{server.url}/#{quote(json.dumps({'model': model, **at}))}"
            )
        page = opened.value
        page.get_by_role("button", name=AGAIN if is_loaded else "Load it").wait_for(timeout=SECONDS)
        page.wait_for_timeout(1000)
        assert {method for method, _ in asked} == {"GET"}
        assert (f"/look/models/{model}" in [path for _, path in asked]) == is_loaded
        assert page.evaluate("window.opener") is None
        assert site.evaluate("window.opened.closed")
        if not is_loaded:
            page.get_by_role("button", name="Load it").click()
        page.get_by_role("button", name=AGAIN).click()
        page.locator(MADE).first.wait_for(timeout=SECONDS)
        assert ("POST", "/look/generate") in asked
        visit.close()


@pytest.mark.parametrize("panel", ["attention", "beams"])
def test_a_place_that_is_none_is_the_usual_one(browser: Any, server: PageServer, panel: str) -> None:
    places: dict[str, list[Any]] = {
        "attention": [
            *({"head": 0.5}, {"head": -1}, {"near": 0.5}, {"token": 0.5}, {"block": 1e300}, {"top_k": -3}, 7),
            *({"view": "<b>"}, {"point": "<b>", "view": "vector"}, {"key": 1e9, "dim": 1e9}, {"stop": 99}),
        ],
        "beams": [{"beams": 2.5}],
    }
    made, visit = [{"from": 0, "token": None, "count": 3}], Visit(browser, server.url)
    visit.choose("mixture")
    for at in places[panel]:
        address = {"model": "mixture", "form": {"text": "some words"}, "stage": panel, "at": at, "made": made}
        visit.page.goto("about:blank")
        visit.page.goto(f"{server.url}/#{quote(json.dumps(address))}")
        visit.make_again()
        visit.page.locator(f"#stage-{panel} :is(ol li, tbody tr)").first.wait_for(timeout=SECONDS)
        assert visit.page.locator(".error").count() == 0, at
        assert visit.page.locator(".picture-box").count() == 1
    assert visit.said == []
    visit.close()


def test_a_selection_is_one_everywhere(browser: Any, server: PageServer) -> None:
    """Wherever a token, a block or a head is selected, the text, the picture, the panels and the address follow."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=8, temperature=0)
    page, section = visit.page, visit.open("attention")

    def is_all(token: int, block: int, head: int) -> None:
        visit.settle()
        assert page.locator(f"{TEXT} .token").nth(token).get_attribute("aria-pressed") == "true"
        assert page.locator(f"{TEXT} .token[aria-pressed='true']").count() == 1
        assert visit.chosen() == token
        assert page.locator(".ribbon.chosen").get_attribute("data-token") == str(token)
        matrix = section.get_by_role("slider", name="attention pattern")
        assert matrix.get_attribute("aria-valuenow") == str(token)
        word = page.locator(".column.text .token.chosen .word").text_content()
        title = f"What {word} looks at in block {block}, head {head}"
        assert title in section.locator("h4").first.inner_text()
        assert page.locator(".stack").get_attribute("aria-valuenow") == str(block)
        assert page.locator(".block-box .title").text_content() == f"open the block{'block'} {block} of 30"
        assert f"head {head} of 9" in page.locator(".crumbs .heads").inner_text()
        own = section.locator(".smalls [aria-pressed='true']")
        assert own.get_attribute("aria-label") == f"head {head}"
        visit.wait_for_place(token=token, block=block, head=head)

    page.locator(f"{TEXT} .token").nth(3).click()
    is_all(3, 0, 0)
    page.locator(".column.text .token[data-token='2']").click()
    is_all(2, 0, 0)
    page.locator(f"{TEXT} .token").nth(5).click()
    is_all(5, 0, 0)
    section.get_by_role("slider", name="attention pattern").press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    is_all(2, 0, 0)
    page.locator(".stack .level").nth(7).click()
    is_all(2, 7, 0)
    page.get_by_role("button", name="the block after").click()
    is_all(2, 8, 0)
    page.locator(".stack .level").nth(4).click()
    is_all(2, 4, 0)
    page.get_by_role("button", name="the next head").click()
    is_all(2, 4, 1)
    section.get_by_role("button", name="head 6", exact=True).click()
    is_all(2, 4, 6)
    visit.go(token=1, block=11, head=3)
    is_all(1, 11, 3)
    lens = visit.open("lens").locator("table.lens tbody tr").nth(21).locator("td").nth(6)
    lens.click()
    assert (visit.chosen(), page.locator(".stack").get_attribute("aria-valuenow")) == (6, "20")
    assert visit.said == []
    visit.close()


def test_back_and_reload_return_to_the_same_view(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    visit.write("The capital of France is", tokens=6, temperature=0)
    page = visit.page

    def view(wait: int = 100) -> tuple[str, ...]:
        page.wait_for_timeout(wait)
        visit.settle()
        picture: str = page.locator(".picture-box").evaluate("(one) => one.textContent")
        return picture, "".join(page.locator(".number-card").all_inner_texts()), visit.text(), page.url

    rest = 550  # choices within half a second are one entry of the history
    views = [view(rest)]
    page.locator(f"{TEXT} .token").nth(3).click()
    views.append(view(rest))
    page.locator(".stack .level").nth(13).click()
    views.append(view(rest))
    page.get_by_role("button", name="head 0", exact=True).first.click()
    page.locator(".head-view").wait_for()
    views.append(view(rest))
    page.locator(".head-view .number").nth(3).click()
    views.append(view(rest))
    assert page.locator(".formula").count() == 1
    visit.open("blocks")
    views.append(view(rest))
    assert len({one[3] for one in views}) == len(views)
    for wanted in reversed(views[:-1]):
        page.go_back()
        assert view() == wanted
    for wanted in views[1:]:
        page.go_forward()
        assert view() == wanted
    page.reload()
    page.locator(f"{TEXT} .token").first.wait_for(timeout=SECONDS)
    visit.rest()
    assert view(rest) == views[-1]
    assert visit.said == []
    visit.close()
