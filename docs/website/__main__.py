"""Builds the site, without a network: ``PYTHONPATH=docs python -m website``. A warning is an error.

The result is in build/docs/html. Its index.html opens in a browser with or without a server.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from website import check, contents, llms, pages, reference

WORK = pages.ROOT / "build" / "docs"
SOURCE, SITE = WORK / "source", WORK / "html"


def main() -> int:
    """Build the site. Returns the exit code."""
    try:
        site = list(contents.site_pages())
    except pages.BrokenLink as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    for page in site:
        _write(SOURCE / f"{page.place}.md", page.for_sphinx)
    shutil.copytree(pages.ROOT / "docs" / "images", SOURCE / "images")
    configuration = ["-c", str(Path(__file__).parent), "-d", str(WORK / "doctrees")]
    if sphinx(["-W", "--keep-going", "-q", *configuration, str(SOURCE), str(SITE)]):
        return 1
    for page in site:
        _write(SITE / f"{page.place}.md", page.markdown)
    _write(SITE / "llms.txt", llms.short(site))
    _write(SITE / "llms-full.txt", llms.full(site))
    problems = [f"{name}: a public name without an entry in the API reference" for name in reference.unlisted()]
    problems += check.problems(SITE)
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(f"{len(site)} pages: {SITE.relative_to(pages.ROOT)}/index.html")
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
