"""What others send: hostile texts, keys, and requests of other clients."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from support.browser import MAIN
from support.page_server import PageServer
from support.page_visit import HOSTILE, SECONDS, Visit

from pellucid.serve.guard import AccessRules


def test_hostile_texts_stay_texts(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("mixture")
    visit.page.on("dialog", lambda dialog: pytest.fail("a script of a text ran"))
    visit.write(HOSTILE)
    for stage in visit.stages():
        visit.open(stage)
    assert visit.page.locator("#app img, #app script, #app iframe").count() == 0
    for view in ("block", "head", "vector"):
        visit.go(view=view, point="embed", token=2, key=1)
    text = visit.given()
    assert "<img src=x onerror=alert(1)>" in text
    assert "\u202e" not in text
    assert visit.said == []
    visit.close()


def test_requests_of_other_clients_are_watched(browser: Any, server: PageServer) -> None:
    visit = Visit(browser, server.url)
    visit.choose("smollm2")
    section = visit.open("live")

    def other() -> None:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
        client.completions.create(
            model="smollm2", prompt="Once upon a time", max_tokens=600, extra_body={"ignore_eos": True}
        )

    thread = threading.Thread(target=other)
    thread.start()
    section.get_by_role("button", name="watch", exact=True).click(timeout=SECONDS)
    section.locator(".watched canvas").wait_for(timeout=SECONDS)
    assert section.locator(".watched .error").count() == 0
    assert len(section.locator(".watched .text").inner_text()) > 4
    thread.join()
    section.locator("h4", has_text="ended").wait_for(timeout=SECONDS)
    assert visit.said == []
    visit.close()


def test_a_key_is_asked_for(browser: Any, folder: Path) -> None:
    server = PageServer(folder, AccessRules(keys=["secret"]))
    visit = Visit(browser, server.url)
    assert "key is needed" in visit.page.locator(".error").inner_text()
    visit.page.get_by_label("Key").fill("secret")
    visit.page.get_by_role("button", name="Use this key").click()
    visit.page.locator("textarea").wait_for(timeout=SECONDS)
    server.close()
    visit.page.locator(MAIN).click()
    visit.page.get_by_text("The server does not answer").wait_for(timeout=SECONDS)
    visit.close()
