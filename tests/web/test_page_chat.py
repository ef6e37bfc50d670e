"""The chat of the page: messages and answers as Python makes them, and the picture of the last answer."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="make test-web installs Playwright")

from support.page_server import PageServer
from support.page_visit import SECONDS, Visit, serious

import pellucid

pytestmark = pytest.mark.model
TOKENS = 12


def send(page: Any, text: str, answers: int) -> str:
    """Send a message, and return the answer: the last of ``answers``."""
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".message.assistant").nth(answers - 1).wait_for(timeout=SECONDS)
    page.locator("button:has-text('New chat'):not([disabled])").wait_for(timeout=SECONDS)
    answer: str = page.locator(".message.assistant p").nth(answers - 1).inner_text()
    return answer


def test_a_conversation_is_that_of_python(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    page = visit.page
    page.get_by_role("button", name="Chat", exact=True).click()
    page.locator(".write .settings").evaluate("(one) => { one.open = true; }")
    for label, value in (("most tokens", TOKENS), ("temperature", 0)):
        page.get_by_label(label, exact=True).fill(str(value))
        page.get_by_label(label, exact=True).blur()
    first = send(page, "Say hello.", 1)
    count = int(page.locator(".text[role='group']").get_attribute("data-count"))
    second = send(page, "Say it again.", 2)
    assert page.locator(".message").count() == 4
    assert int(page.locator(".text[role='group']").get_attribute("data-count")) > count
    assert page.locator(".column.text .token.made").count() > 0
    page.get_by_role("button", name="copy", exact=True).first.click()
    assert serious(page) == []
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0
    assert visit.said == []
    visit.close()

    talk = [{"role": "user", "content": "Say hello."}]
    with pellucid.load("smollm2", threads=2) as llm:
        how: dict[str, Any] = {"temperature": 0, "max_new_tokens": TOKENS}
        answer = llm.generate(talk, **how).text
        assert first.split() == answer.split()
        talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Say it again."}]
        assert second.split() == llm.generate(talk, **how).text.split()
