"""An open page of the server, what tests do with it, and what they read from it."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote, unquote

import pytest

from support.browser import AGAIN, GIVEN, MADE, TEXT, ended, fill, list_stages, run_form

SIZES = {"large": (1920, 1080), "wide": (1280, 900), "narrow": (390, 844)}
SCREENS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
SECONDS = 60_000
HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \u202e\x07\x1b[31m & &amp; {{7*7}} `${1}`"
# Functions of a page: whether values that it asked for are still to come.
READ = """() => !document.querySelector('[aria-busy="true"]')
    && ![...document.querySelectorAll('[role=status], .empty')].some((one) => one.textContent.startsWith('Reading'))"""

NO_OPENING = "#" + quote('{"model": ""}')
"""An address that asks for nothing: the page waits for what the test does."""
QUIET = 0.45  # seconds after which the address follows a run
UP_TO_DATE = """(text) => {
    if (location.hash.length < 2) return false;
    return !document.querySelector(text) || JSON.parse(decodeURIComponent(location.hash.slice(1))).made?.length > 0;
}"""


class Visit:
    """An open page that collects its console messages."""

    def __init__(
        self,
        browser: Any,
        url: str,
        size: str = "wide",
        scheme: str = "light",
        wait: str = "textarea, .error",
        motion: str = "reduce",
        scale: float = 1,
        opening: bool = False,
    ) -> None:
        """Open a page. With ``opening``, it opens as for a person: on a finished picture of its first example."""
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            reduced_motion=motion,
            device_scale_factor=scale,
        )
        self._ran = time.monotonic()
        self.page, self.said = self.context.new_page(), list[str]()
        self.page.on("console", lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(url if opening or not url.startswith("http") or "#" in url else f"{url}/{NO_OPENING}")
        load = self.page.get_by_role("button", name="Load it")
        self.page.locator(wait).or_(load).first.wait_for(timeout=SECONDS)
        if load.count():
            load.click()
            self.page.locator(wait).first.wait_for(timeout=SECONDS)

    def choose(self, model: str) -> None:
        """Choose a model in the header."""
        select = self.page.locator("header select")
        if select.input_value() != model:
            # Until the answer is there, the page may still show the form of the model before, and drop what is typed.
            with self.page.expect_response(lambda one: one.url.endswith(f"/look/models/{model}"), timeout=SECONDS):
                select.select_option(model)
        self.page.locator("textarea").wait_for(timeout=SECONDS)

    def write(self, text: str, tokens: int = 12, **options: Any) -> None:
        """Write a text into the form, run it, and wait until it ends."""
        fill(self.page, text, tokens=tokens, **options)
        run_form(self.page, SECONDS)
        self.page.locator(GIVEN).first.wait_for(timeout=SECONDS)
        self._ran = time.monotonic()

    def make_again(self) -> None:
        """Click on the button that generates the text of the page's address, and wait until the text ends."""
        self.page.get_by_role("button", name=AGAIN).click()
        self.page.locator(GIVEN).first.wait_for(timeout=SECONDS)
        ended(self.page, SECONDS)
        self._ran = time.monotonic()

    def screen(self, size: str, scheme: str) -> None:
        """Show the page on a screen of another size, in light or dark colours."""
        width, height = SIZES[size]
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_timeout(30)
        self.page.evaluate(  # the page draws itself anew, then the browser
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def stages(self) -> list[str]:
        """Names of all panels."""
        list_stages(self.page)
        return [one.get_attribute("id").removeprefix("tab-") for one in self.page.locator("[role=tab]").all()]

    def open(self, stage: str) -> Any:
        """Open a panel and wait for its values. Returns it."""
        list_stages(self.page)
        tab, panel = self.page.locator(f"#tab-{stage}"), self.page.locator(f"#stage-{stage}")
        if tab.get_attribute("aria-selected") != "true":
            tab.click()
        panel.locator(".body").wait_for()
        self.settle()
        return panel

    def settle(self) -> None:
        """Wait until all values are there that the page asked for."""
        self.page.wait_for_timeout(20)
        self.page.wait_for_function(READ, timeout=SECONDS)

    def rest(self) -> None:
        """Wait until a run has ended and its values are there."""
        ended(self.page, SECONDS)
        self.settle()

    def text(self) -> str:
        """The text that people read."""
        text: str = self.page.locator(TEXT).text_content()
        return text

    def given(self) -> str:
        """The prompt in the text."""
        return "".join(self.page.locator(GIVEN).all_text_contents())

    def made(self) -> int:
        """Number of generated tokens in the text."""
        count: int = self.page.locator(MADE).count()
        return count

    def chosen(self) -> int:
        """The token that is selected in the picture."""
        return int(self.page.locator(".column.text .token.chosen").first.get_attribute("data-token"))

    def wait_for_place(self, **place: Any) -> None:
        """Wait until the address says this of the selection; what it does not say is 0."""
        code = """(wanted) => {
            const { at = {} } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
            return Object.entries(wanted).every(([name, value]) => (at[name] ?? 0) === value);
        }"""
        self.page.wait_for_function(code, arg=place, timeout=5000)

    def go(self, **place: Any) -> None:
        """Change the selection in the address, as a link does."""
        self.page.wait_for_timeout(max(0, 1000 * (self._ran + QUIET - time.monotonic())))
        self.page.wait_for_function(UP_TO_DATE, arg=TEXT, timeout=SECONDS)
        address = json.loads(unquote(self.page.url.partition("#")[2]))
        address["at"] = address.get("at", {}) | place
        self.page.evaluate("(to) => { location.hash = encodeURIComponent(to); }", json.dumps(address))
        self.settle()

    def answers(self) -> dict[str, Any]:
        """What the server has answered to the page, by path and body."""
        plain = "(key, one) => (ArrayBuffer.isView(one) ? Array.from(one) : one)"
        text: str = self.page.evaluate(
            f"() => JSON.stringify(Object.fromEntries(globalThis.pellucid.answers), {plain})"
        )
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        self.context.close()


def serious(page: Any, part: str | None = None, *more: str) -> list[str]:
    """Serious and critical findings of axe, on the page or on the part that a selector finds.

    ``more`` are rules that axe does not check by itself.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-web installs axe")
    if not page.evaluate("() => !!globalThis.axe"):
        page.evaluate(axe.Axe().axe_script)
    run = """([part, more]) => {
        const rules = Object.fromEntries(more.map((name) => [name, { enabled: true }]));
        return axe.run(part ?? document, { resultTypes: ['violations'], rules }).then((one) => one.violations);
    }"""
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in page.evaluate(run, [part, more])
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


def is_fitting(page: Any) -> bool:
    """Whether the page is not wider than the screen."""
    found: bool = page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    return found


def clipped(page: Any) -> list[str]:
    """Texts of the picture that its edges cut."""
    code = """() => [...document.querySelectorAll('.picture-svg')].flatMap((picture) => {
        const box = picture.getBoundingClientRect();
        return [...picture.querySelectorAll('text')].map((one) => [one.textContent, one.getBoundingClientRect()])
            .filter(([text, { left, right }]) => text && (left < box.left - 1 || right > box.right + 1))
            .map(([text]) => text);
    })"""
    found: list[str] = page.evaluate(code)
    return found


def compared(changes: Any) -> list[str]:
    """Probability of the likeliest token where the texts part, without and with the edits, as text of the page."""
    changes.get_by_role("button", name="Compare", exact=True).click(timeout=SECONDS)
    changes.locator(".two").wait_for(timeout=SECONDS)
    row: list[str] = changes.locator(".bars tbody tr").first.locator(".num").all_inner_texts()
    return row


def numbers(text: str) -> list[float]:
    """All numbers in a text."""
    return [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]
