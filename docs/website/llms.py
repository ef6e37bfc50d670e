"""llms.txt and llms-full.txt: the site for language models (https://llmstxt.org).

llms.txt lists the pages with a line about each, as links to their Markdown. llms-full.txt has the pages themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pellucid.cli.command import known_commands
from website import pages, reference
from website.contents import SitePage

OPTIONAL = ("How it works", "Extend it", "The project")
"""Sections that a reader with little room may leave out. llms-full.txt leaves them out."""
HEAD = """# Pellucid

> {about}

Pellucid runs GGUF and safetensors models on CPUs: from Python (`pellucid.load`), from the command line (`pellucid run`,
`pellucid serve`), and over HTTP with the APIs of OpenAI, Anthropic, Ollama and llama.cpp. Every value of a run can be
recorded and changed (`llm.trace`, `edits=`).
"""


def short(site: Sequence[SitePage]) -> str:
    """The text of llms.txt."""
    titles = {page.place: page.markdown.partition("\n")[0].removeprefix("# ") for page in site}
    about, parts, optional = abouts(), [], list[str]()
    for section in pages.navigation():
        places = [place for place in section.places if place != "contents"]
        lines = [f"- [{titles[place]}]({place}.md): {about[place]}" for place in places]
        if section.title in OPTIONAL:
            optional += lines
        else:
            parts.append("\n".join([f"## {section.title}\n", *lines]))
    return "\n\n".join([HEAD.format(about=_description()).strip(), *parts, "\n".join(["## Optional\n", *optional, ""])])


def full(site: Sequence[SitePage]) -> str:
    """The text of llms-full.txt: the pages of all sections that are not optional, with the pages of their folders."""
    texts = {page.place: page.markdown.strip() for page in site}
    wanted = dict[str, None]()
    for section in pages.navigation():
        if section.title not in OPTIONAL:
            for place in section.places:
                wanted[place] = None
                if place.endswith("/index"):
                    wanted |= dict.fromkeys(other for other in texts if other.startswith(place.removesuffix("index")))
    return "\n\n".join(texts[place] for place in wanted if place != "contents") + "\n"


def abouts() -> dict[str, str]:
    """A line about each page of the navigation, by place."""
    rows = re.findall(r"^\| \[.*?\]\((.*?)\) \| (.*) \|$", pages.read(pages.CONTENTS), re.MULTILINE)
    found = {pages.place(pages.linked_file(pages.CONTENTS, link)[0]): about for link, about in rows}
    return found | {
        "api/index": f"{len(reference.names())} public names of the Python package, with their docstrings.",
        "commands/index": f"{len(known_commands())} commands, with their arguments and options.",
    }


def _description() -> str:
    (about,) = re.findall(r'^description = "(.+)"$', pages.read("pyproject.toml"), re.MULTILINE)
    return str(about)
