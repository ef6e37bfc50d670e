"""llms.txt and llms-full.txt: the site for language models (https://llmstxt.org).

llms.txt lists the pages with a line about each, as links to their Markdown. llms-full.txt has the pages themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pages
import reference

from pellucid.cli.command import known_commands

OPTIONAL = ("How it works", "Extend it", "The project")
"""Sections that a reader with little room may leave out. llms-full.txt leaves them out."""
HEAD = """# Pellucid

> {about}

Pellucid runs GGUF and safetensors models on CPUs, from Python (`pellucid.load`), from the command line (`pellucid run`,
`chat`, `serve`) and over HTTP with the APIs of OpenAI, Anthropic, Ollama and llama.cpp. Every value of a run can be recorded
and changed (`llm.trace`, `edits=`).
"""


def short(site: Iterable[pages.SitePage]) -> str:
    """llms.txt."""
    titles = {page.place: _title(page.markdown) for page in site}
    about, parts, optional = abouts(), [], []
    for section in pages.navigation():
        places = [place for place in section.places if place != "contents"]
        lines = [f"- [{titles[place]}]({place}.md): {about[place]}" for place in places]
        if section.title in OPTIONAL:
            optional += lines
        else:
            parts.append("\n".join([f"## {section.title}\n", *lines]))
    parts.append("\n".join(["## Optional\n", *optional]))
    return "\n\n".join([HEAD.format(about=_description()).strip(), *parts, ""])


def full(site: Sequence[pages.SitePage]) -> str:
    """llms-full.txt: the pages of all sections that are not optional, with the pages below them."""
    texts = {page.place: page.markdown for page in site}
    wanted: list[str] = []
    for section in pages.navigation():
        if section.title not in OPTIONAL:
            for place in section.places:
                folder = place.removesuffix("index") if place.endswith("/index") else None
                wanted += [place, *(other for other in texts if folder and other.startswith(folder) and other != place)]
    return "\n\n".join(texts[place].strip() for place in wanted if place != "contents") + "\n"


def abouts() -> dict[str, str]:
    """A line about each page, from the tables of the contents."""
    rows = re.findall(r"^\| \[.*?\]\((.*?)\) \| (.*) \|$", pages.read(pages.CONTENTS), re.MULTILINE)
    found = {pages.place(pages.linked_file(pages.CONTENTS, link)[0]): about for link, about in rows}
    return found | {
        "api/index": f"The Python API: {len(reference.names())} names with their docstrings.",
        "commands/index": f"The options of {len(known_commands())} commands.",
    }


def _title(markdown: str) -> str:
    return markdown.partition("\n")[0].removeprefix("# ")


def _description() -> str:
    (about,) = re.findall(r'^description = "(.+)"$', pages.read("pyproject.toml"), re.MULTILINE)
    return str(about)
