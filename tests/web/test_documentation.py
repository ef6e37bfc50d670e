"""The site that ``make docs`` builds, opened from its files as a reader without a network opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[2] / "build" / "docs" / "html"
PAGES = ("index.html", "serving.html", "performance.html", "api/llm.html", "api/options.html", "commands/run.html")

pytestmark = pytest.mark.skipif(not (SITE / "llms.txt").exists(), reason="make docs builds the site")


class Visit:
    """A page in a browser, and the addresses outside the site that it asked for."""

    def __init__(self, page: Any) -> None:
        self.page, self.outside = page, list[str]()
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.outside.append(request.url)

    def open(self, name: str, query: str = "") -> None:
        """Open a file of the site."""
        self.page.goto(f"{(SITE / name).as_uri()}{query}")


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    yield Visit(page)
    page.close()


def test_pages_fit_and_pass_axe_without_a_network(visit: Visit) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in PAGES:
        visit.open(name)
        assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        found = [(one["id"], one["nodes"][0]["html"]) for one in axe.run(visit.page).response["violations"]]
        assert found == [], name
    assert visit.outside == []


def test_the_colours_follow_the_reader(browser: Any) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((SITE / "index.html").as_uri())
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 25, 28)"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("prompt lookup", "decisions/0026-speculation-by-prompt-lookup.html"),
        ("beam_search", "api/llm.html#pellucid.LLM.beam_search"),
        ("--max-new-tokens", "commands/run.html#cmdoption-pellucid-run-max-new-tokens"),
    ],
)
def test_the_search_finds_pages_names_and_options(browser: Any, words: str, place: str) -> None:
    page = browser.new_page()
    page.goto((SITE / "index.html").as_uri())
    page.locator("input[name=q]").fill(words)
    page.locator("input[name=q]").press("Enter")
    page.locator("#search-results .search-summary", has_text="found").wait_for()
    links = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
    assert any(place in link for link in links), links
    page.close()
