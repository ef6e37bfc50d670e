"""The Markdown files and notebooks of the repository: their places in the site, the navigation, and their links.

The files are written for GitHub, where their relative links work. ``staged`` returns the text of a page for the site:
links to pages get the places of these pages, and links to files that are no pages become addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from website import notebooks
from website.links import links, relinked

ROOT = Path(__file__).resolve().parents[2]
CONTENTS = "docs/README.md"
"""The page that lists all pages. Its sections and their tables are the navigation."""
GENERATED: Mapping[str, tuple[str, ...]] = {"Start": ("contents",), "Reference": ("api/index", "commands/index")}
"""Pages of the navigation that the tables do not list, by section."""


class BrokenLink(Exception):
    """A link of a page leads to no file."""


def repository() -> str:
    """The address of the repository (pyproject.toml)."""
    (address,) = re.findall(r'^Repository = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    return str(address)


def sources() -> list[str]:
    """The files that are pages, relative to the repository."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *notebooks.FOLDER.glob("*.ipynb")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def place(source: str) -> str:
    """The place of a page in the site, without a suffix: docs/decisions/README.md → decisions/index."""
    if source in ("README.md", CONTENTS):
        return {"README.md": "index"}.get(source, "contents")
    path = PurePosixPath(source)
    path = path.relative_to("docs") if path.parts[0] == "docs" else PurePosixPath(source.lower())
    return str(path.parent / "index" if path.name == "README.md" else path.with_suffix(""))


def read(source: str) -> str:
    """The text of a file; of a notebook, as Markdown."""
    text = (ROOT / source).read_text(encoding="utf-8")
    return notebooks.markdown(text) if source.endswith(notebooks.SUFFIX) else text


def title(source: str) -> str:
    """The title of a page."""
    return read(source).partition("\n")[0].removeprefix("# ")


def linked_file(source: str, link: str) -> tuple[str, str]:
    """The file or folder that a relative link of a page names, relative to the repository; and "#" with its anchor.

    Raises:
        BrokenLink: there is no such file.
    """
    name, mark, anchor = link.partition("#")
    target = normpath(PurePosixPath(source).parent / name) if name else source
    if target.startswith("..") or not (ROOT / target).exists():
        raise BrokenLink(f"{source}: {link}: no such file")
    return target, mark + anchor


def staged(source: str, address: str) -> str:
    """The text of a page for the site. ``address`` is the address of the repository.

    Raises:
        BrokenLink: a link leads to no file.
    """
    here, known = PurePosixPath(place(source)).parent, set(sources())

    def target(link: str, picture: bool) -> str:
        file, anchor = linked_file(source, link)
        if picture:
            return relpath(file.removeprefix("docs/"), here)
        if file in known:
            return anchor if link.startswith("#") else relpath(f"{place(file)}.md", here) + anchor
        return f"{address}/{'tree' if (ROOT / file).is_dir() else 'blob'}/main/{file}{anchor}"

    def entitled(match: re.Match[str]) -> str:
        file, _ = linked_file(source, match["link"])
        return f"[{title(file)}]({match['link']})" if file in known else match[0]

    # A link whose text is its path, as on GitHub, shows the title of the page.
    text = re.sub(r"\[(?P<link>[\w./-]+\.md)\]\((?P=link)\)", entitled, read(source))
    return relinked(text, target)


def with_targets(text: str) -> str:
    """The text with MyST's form of anchors, ``(name)=``, in place of HTML's form at the beginning of a paragraph."""
    return re.sub(r'^<a id="([\w-]+)"></a>', r"(\1)=\n", text, flags=re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A heading of the navigation, and the places of its pages."""

    title: str
    places: tuple[str, ...]


def navigation() -> list[Section]:
    """The sections of the navigation, in order."""
    sections = []
    for part in re.split(r"^## ", read(CONTENTS), flags=re.MULTILINE)[1:]:
        heading = part.partition("\n")[0].strip()
        listed = [place(linked_file(CONTENTS, link)[0]) for link in links(_first_cells(part))]
        sections.append(Section(heading, (*dict.fromkeys(listed), *GENERATED.get(heading, ()))))
    return sections


def _first_cells(text: str) -> str:
    """The first cell of each row of the tables in a text."""
    return "\n".join(row.split(" | ")[0] for row in text.splitlines() if row.startswith("|"))


def children(source: str) -> list[str]:
    """The places of the other pages in the folder of an index page: first the pages that it links, in order."""
    folder = PurePosixPath(source).parent
    inside = [other for other in sources() if PurePosixPath(other).parent == folder and other != source]
    files = [linked_file(source, link)[0] for link in links(read(source))]
    return [place(file) for file in dict.fromkeys([*(one for one in files if one in inside), *inside])]
