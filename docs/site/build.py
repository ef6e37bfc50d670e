"""Build the site: ``python docs/site/build.py``. It needs no network, and a warning is an error.

    pages.py       the Markdown files of the repository, the navigation, and links
    commands.py    the command reference, from the help of the commands
    reference.py   the API reference, from docstrings
    llms.py        llms.txt: the site for language models
    conf.py        Sphinx's configuration, with extension.py and docstrings.py
    check.py       checks of the finished site

The result is in build/docs/html: open index.html, with or without a server.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import check
import commands
import llms
import pages
import reference
from sphinx.cmd.build import main as sphinx

from pellucid.cli.command import known_commands

HERE = Path(__file__).parent
WORK = pages.ROOT / "build" / "docs"
SOURCE, SITE = WORK / "source", WORK / "html"
TITLES = {"index": "Overview <self>", "contents": "All pages <contents>"}


def main() -> int:
    """Build the site. Returns the exit code."""
    try:
        found = list(site_pages())
        for folder in (SOURCE, SITE):
            shutil.rmtree(folder, ignore_errors=True)
        for page in found:
            _write(SOURCE / f"{page.place}.md", page.for_sphinx)
        shutil.copytree(pages.ROOT / "docs" / "images", SOURCE / "images")
    except pages.BrokenLink as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(HERE), "-d", str(WORK / "doctrees")]
    if code := sphinx([*options, str(SOURCE), str(SITE)]):
        return code
    for page in found:
        _write(SITE / f"{page.place}.md", page.markdown)
    _write(SITE / "llms.txt", llms.short(found))
    _write(SITE / "llms-full.txt", llms.full(found))
    problems = [*(f"{name}: not in the API reference" for name in reference.unlisted()), *check.problems(SITE)]
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    print(f"{len(found)} pages in {SITE.relative_to(pages.ROOT)}")
    return 1 if problems else 0


def site_pages() -> Iterator[pages.SitePage]:
    """All pages of the site."""
    address = pages.repository()
    for source in pages.sources():
        text, below = pages.staged(source, address), ""
        if source == "README.md":
            below = "\n".join(_toctree(section.places, section.title) for section in pages.navigation())
        elif source.endswith("/README.md") and source != pages.CONTENTS:
            below = _toctree(pages.children(source))
        yield pages.SitePage(pages.place(source), f"{pages.with_targets(text)}\n{below}", text)
    names = list(known_commands())
    listed = _toctree([f"commands/{name}" for name in names])
    yield pages.SitePage("commands/index", f"{commands.index()}\n{listed}", commands.index())
    for name in names:
        yield pages.SitePage(f"commands/{name}", commands.page(name), commands.page(name, for_site=False))
    listed = _toctree([f"api/{key}" for key in reference.PAGES])
    yield pages.SitePage("api/index", f"{reference.index()}\n{listed}", reference.index(for_site=False))
    for key in reference.PAGES:
        yield pages.SitePage(f"api/{key}", reference.page(key), reference.page(key, for_site=False))


def _toctree(places: Sequence[str], caption: str = "") -> str:
    entries = [TITLES.get(place, f"/{place}") for place in places]
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *entries, "```", ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
