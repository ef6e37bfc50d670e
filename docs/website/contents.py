"""All pages of the site: the Markdown files, the command reference and the API reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pellucid.cli.command import known_commands
from website import commands, notebooks, pages, reference

TITLES = {"index": "Overview <self>", "contents": "All pages <contents>"}
"""Entries of the navigation whose title is not the page's own."""


@dataclass(frozen=True)
class SitePage:
    """A page of the site: its place, its text for Sphinx, and its text as plain Markdown."""

    place: str
    for_sphinx: str
    markdown: str


def site_pages() -> Iterator[SitePage]:
    """Yield the pages.

    Raises:
        BrokenLink: a page links to a file that does not exist.
    """
    address = pages.repository()
    for source in pages.sources():
        text, below = pages.staged(source, address), ""
        if source == "README.md":
            below = "\n".join(_toctree(section.places, section.title) for section in pages.navigation())
        elif source.endswith("/README.md") and source != pages.CONTENTS:
            below = _toctree(pages.children(source))
        plain = notebooks.without_pictures(text)
        yield SitePage(pages.place(source), f"{pages.with_targets(text)}\n{below}", plain)
    names = list(known_commands())
    yield SitePage(
        "commands/index", f"{commands.index()}\n{_toctree([f'commands/{name}' for name in names])}", commands.index()
    )
    for name in names:
        yield SitePage(f"commands/{name}", commands.page(name), commands.page(name, for_site=False))
    keys = list(reference.PAGES)
    yield SitePage(
        "api/index", f"{reference.index()}\n{_toctree([f'api/{key}' for key in keys])}", reference.index(for_site=False)
    )
    for key in keys:
        yield SitePage(f"api/{key}", reference.page(key), reference.page(key, for_site=False))


def _toctree(places: Sequence[str], caption: str = "") -> str:
    """Sphinx's directive that puts pages into the navigation."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    entries = [TITLES.get(place, f"/{place}") for place in places]
    return "\n".join(["```{toctree}", *options, "", *entries, "```", ""])
