"""The Chromium of this machine, and the form of the page in it."""

from __future__ import annotations

import shutil
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Its path; None if there is none."""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
MAIN = "form button.main"
"""What begins a run."""


def fill(page: Any, text: str, **options: Any) -> None:
    """Write a prompt and options into the form. Its details are open then; an encoder has none."""
    page.locator("#prompt").fill(text)
    details = page.locator("details")
    if details.count():
        details.first.evaluate("(one) => { one.open = true; }")
        for name, value in options.items():
            page.get_by_label(name, exact=True).fill(str(value))
            page.get_by_label(name, exact=True).blur()


def run_form(page: Any, timeout: float) -> None:
    """Begin a run, and wait for ``timeout`` milliseconds at most until it has ended."""
    page.locator(MAIN).click()
    ended(page, timeout)


def ended(page: Any, timeout: float) -> None:
    """Wait until a run has ended."""
    page.locator(f"{MAIN}:not([disabled])").wait_for(timeout=timeout)
