"""Links of a Markdown text: the site and the description on PyPI give some of them another target."""

from __future__ import annotations

import re
from collections.abc import Callable

LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^()\s]+)(\))")
"""An inline link or picture: "!" or "", the text, the target, the closing parenthesis."""
CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})(?s:.*?)^ {0,3}(?P=fence)[`~]*[ \t]*$"
    r"|(?:(?<=\n\n)|\A)(?: {4}.*\n+)+"
    r"|(?P<span>`+)(?!`)(?:(?!\n\n)(?s:.))+?(?<!`)(?P=span)(?!`)",
    re.MULTILINE,
)
"""Code, which holds no links: fenced blocks, indented blocks, spans."""


def relinked(text: str, target: Callable[[str, bool], str]) -> str:
    """The text with ``target(link, is_picture)`` in place of each link that is not an address."""
    code = [match.span() for match in CODE.finditer(text)]

    def replace(match: re.Match[str]) -> str:
        mark, opening, link, closing = match.groups()
        if is_address(link) or any(start <= match.start() < stop for start, stop in code):
            return match.group()
        return f"{mark}{opening}{target(link, bool(mark))}{closing}"

    return LINK.sub(replace, text)


def links(text: str) -> list[str]:
    """The targets of the links and pictures of a text that are not addresses."""
    found: list[str] = []

    def keep(link: str, _: bool) -> str:
        found.append(link)
        return link

    relinked(text, keep)
    return found


def is_address(link: str) -> bool:
    """True for a link with a scheme, such as https://pypi.org."""
    return re.match(r"[a-z][a-z0-9+.-]*:", link) is not None
