"""The installed Chromium, and the form of the page."""

from __future__ import annotations

import json
import shutil
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Path of the installed Chromium; None if there is none."""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
MAIN = "form button.main"
"""Selector of the button that starts a run."""
TEXT = ".text[role='group']"
"""Selector of the text that people read, token by token."""
GIVEN, MADE = f"{TEXT} .given", f"{TEXT} .made"
"""Selectors of the prompt's tokens in the text, and of the generated tokens."""

AGAIN = "Make the text again"
"""Name of the button that makes the text of an address."""
LABELS = {"tokens": "most tokens"}
"""Labels of the form's numbers that have another name."""


def fill(page: Any, text: str, **options: Any) -> None:
    """Write a prompt into the form, open the settings and write options there. An encoder has no settings."""
    page.locator("#prompt").fill(text)
    details = page.locator(".write .settings")
    if details.count():
        details.evaluate("(one) => { one.open = true; }")
        for name, value in options.items():
            number = details.get_by_label(LABELS.get(name, name), exact=True)
            number.fill(str(value))
            number.blur()
        details.evaluate("(one) => { one.open = false; }")


def run_form(page: Any, timeout: float) -> None:
    """Start a run and wait until it ends, at most ``timeout`` milliseconds."""
    page.locator(MAIN).click()
    ended(page, timeout)


def ignore_eos(page: Any) -> None:
    """Let texts go on after an end-of-text token: they have all tokens that the form asks for."""

    def longer(route: Any) -> None:
        body = route.request.post_data_json or {}
        route.continue_(post_data=json.dumps({**body, "ignore_eos": True}))

    page.route("**/look/generate", longer)


def list_stages(page: Any) -> None:
    """Show the tabs of all panels."""
    tabs = page.get_by_role("button", name="Stages in depth")
    if tabs.count():
        tabs.click()


def ended(page: Any, timeout: float) -> None:
    """Wait until the run ends, at most ``timeout`` milliseconds."""
    page.locator(f"{MAIN}:not([disabled])").wait_for(timeout=timeout)
