"""A run while it goes: the picture moves, step by step, and can be stopped and shown again slowly."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.browser import MADE, MAIN, TEXT, ended, fill
from support.page_server import PageServer
from support.page_visit import SECONDS, Visit

import pellucid

MOMENT = """() => ({
    rows: [...document.querySelectorAll('.column.text .token')].map((one) => +one.dataset.token),
    chosen: +document.querySelector('.column.text .token.chosen')?.dataset.token,
    ribbons: [...document.querySelectorAll('.ribbon')]
        .map((one) => [+one.dataset.token, +(one.dataset.residual ?? NaN)]),
    added: [...document.querySelectorAll('.add.attention')].map((one) => +(one.dataset.added ?? NaN)),
    arcs: document.querySelectorAll('.arcs [data-key]').length,
    tokens: +document.querySelector(".text[role='group']").dataset.count,
    level: +(document.querySelector('.level.chosen').dataset.residual ?? NaN),
    candidates: document.querySelectorAll('.candidate').length,
    drawn: document.querySelector('.drawn text').textContent,
    isMoving: !!document.querySelector('.section > .runner'),
})"""


def start(visit: Visit, text: str, tokens: int) -> None:
    """Begin a run, and wait for some tokens."""
    fill(visit.page, text, tokens=tokens, temperature=0.7, seed=1)
    visit.page.locator(MAIN).click()
    visit.page.locator(MADE).nth(5).wait_for(timeout=SECONDS)


def test_the_picture_follows_a_run(browser: Any, server: PageServer) -> None:
    """Rows and the chosen token change while tokens come; the loop runs, and rests at the end."""
    visit = Visit(browser, server.url, motion="no-preference")
    visit.choose("smollm2")
    start(visit, "Once upon a time there was a", 1500)
    first = visit.page.evaluate(MOMENT)
    visit.page.wait_for_function(
        """(count) => +document.querySelector(".text[role='group']").dataset.count > count""",
        arg=first["tokens"] + 20,
    )
    second = visit.page.evaluate(MOMENT)
    assert first["isMoving"]
    assert second["isMoving"]
    for moment in (first, second):
        assert moment["chosen"] == moment["tokens"] - 2, "the token after which the last one was drawn"
        assert moment["rows"][-2:] == [moment["chosen"], moment["chosen"] + 1]
        assert moment["candidates"] > 4
        assert moment["drawn"] != "?"
    assert second["level"] != first["level"]
    assert dict(first["ribbons"]).keys() != dict(second["ribbons"]).keys()
    assert second["chosen"] > first["chosen"]
    assert second["rows"] != first["rows"]
    visit.page.get_by_role("button", name="Stop").click()
    ended(visit.page, SECONDS)
    visit.settle()
    rest = visit.page.evaluate(MOMENT)
    assert not rest["isMoving"]
    assert rest["chosen"] == rest["tokens"] - 2
    assert all(np.isfinite(value) for _, value in rest["ribbons"])
    assert visit.said == []
    visit.close()


def test_ribbons_of_a_running_text_are_its_values(browser: Any, server: PageServer) -> None:
    """What the stream carries is drawn at once, and is what Python records of the same text."""
    visit = Visit(browser, server.url, "large", motion="no-preference")
    visit.choose("smollm2")
    visit.go(block=5)
    start(visit, "Once upon a time there was a", 200)
    moments = list[Any]()
    for number in (8, 60):  # far apart, because the text grows while the page is read
        visit.page.locator(MADE).nth(number).wait_for(timeout=SECONDS)
        moments.append(visit.page.evaluate(MOMENT))
    ended(visit.page, SECONDS)
    visit.settle()
    ids = max((one["prompt"] for one in visit.answers().values() if "prompt" in one), key=len)
    with pellucid.load("smollm2", threads=2) as llm:
        with llm.trace("blocks.5.residual", "blocks.5.attention.output") as trace:
            llm.generate(ids, max_new_tokens=1, temperature=0)
        residual, added = (
            np.linalg.norm(trace.sequences[0][name].astype(float), axis=1)
            for name in ("blocks.5.residual", "blocks.5.attention.output")
        )
    for moment in moments:
        read = [(token, value) for token, value in moment["ribbons"] if np.isfinite(value)]
        assert len(read) >= len(moment["ribbons"]) - 2, "the last token may not have been read yet"
        for token, value in read:
            assert abs(value - residual[token]) < 1e-3 * residual[token], token
        for (token, _), value in zip(moment["ribbons"], moment["added"]):
            assert not np.isfinite(value) or abs(value - added[token]) < 1e-3 * added[token], token
        assert moment["arcs"] > 0
    assert dict(moments[0]["ribbons"]).keys() != dict(moments[1]["ribbons"]).keys()
    assert visit.said == []
    visit.close()


def test_step_makes_one_token(browser: Any, server: PageServer) -> None:
    """Each step has one token, and the steps together have the text of a run with the same seeds."""
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    page = visit.page
    fill(page, "The capital of France is", tokens=40, temperature=0)
    for count in range(1, 5):
        page.get_by_role("button", name="Step").click()
        page.locator(MADE).nth(count - 1).wait_for(timeout=SECONDS)
        ended(page, SECONDS)
        assert visit.made() == count
        visit.settle()
        last = page.locator(MADE).last.text_content().removesuffix("\n").replace(" ", "·")
        assert page.locator(".drawn").text_content() == f"{last}drawn"
        assert visit.chosen() == 5 + count - 2
    steps = visit.text()
    visit.write("The capital of France is", tokens=4, temperature=0)
    assert visit.text() == steps
    assert visit.said == []
    visit.close()


def test_a_slow_replay_shows_stage_after_stage(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.write("some words", tokens=3, temperature=0)
    page, before = visit.page, visit.text()
    slow = page.get_by_role("button", name="Slow")
    slow.click()
    seen = list[str]()
    page.get_by_role("button", name="Pause").click()
    for _ in range(6):
        seen.append(page.locator(".column.lit").first.get_attribute("class").split()[1])
        page.get_by_role("button", name="Next stage").click()
    page.wait_for_timeout(2000)
    assert len(set(seen)) == 6, seen
    assert page.locator(".column.lit").count() == 1, "a pause ends with a click"
    assert seen[0] == "text"
    assert page.locator(f"{TEXT} .token").count() < len(before)
    slow.click()
    assert visit.text() == before
    assert page.locator(".column.unlit").count() == 0
    assert visit.said == []
    visit.close()
