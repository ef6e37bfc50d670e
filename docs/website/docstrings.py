"""Docstrings for the API reference. They are Google style, with ``code`` and indented blocks as in Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

LITERAL = re.compile(r"(``(?:[^`]|`(?!`))+``|:\w+:`[^`]+`|`[^`]+`)")


def first_sentence(documented: Any) -> str:
    """The first sentence of a docstring, for a cell of a Markdown table."""
    text = inspect.getdoc(documented) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]
    parts = LITERAL.split(sentence)
    return "".join(
        part.replace("|", "\\|") if number % 2 else re.sub(r"([\\*_<>\[\]|])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def to_rst(lines: Collection[str], known: Mapping[str, str]) -> list[str]:
    """The lines of a docstring in reStructuredText.

    An indented block after a blank line is code. A name in double backticks that is ``known`` links to its entry.
    """
    rst: list[str] = []
    text, code = "", False  # the last line of text before the line; whether the line before it is code
    for line in lines:
        indented, after_blank = line.startswith("    "), bool(rst) and not rst[-1].strip()
        if code and (indented or not line.strip()):
            rst.append(line)
            continue
        code = indented and after_blank and not text.startswith(" ")
        if code:
            rst += [f".. code-block:: {'python' if _is_python(line) else 'text'}", "", line]
            continue
        rst.append(line)
        text = line if line.strip() else text
    return _with_links("\n".join(rst), known).split("\n")


def _is_python(line: str) -> bool:
    return re.match(r"\s*(with|for|from|import|@|\w+[.(=])", line) is not None or " = " in line


def _with_links(text: str, known: Mapping[str, str]) -> str:
    """Escapes what reStructuredText would read as markup, and links known names. Leaves code blocks alone."""
    blocks = re.split(r"(^\.\. code-block::.*\n\n(?: {4}.*\n?|\n)+)", text, flags=re.MULTILINE)
    return "".join(block if number % 2 else _inline(block, known) for number, block in enumerate(blocks))


def _inline(text: str, known: Mapping[str, str]) -> str:
    parts = LITERAL.split(text)
    for number, part in enumerate(parts):
        if number % 2:
            name = part.strip("`")
            if part.startswith("``") and name in known:
                parts[number] = f":py:obj:`{name} <{known[name]}>`"
            elif part.startswith("`") and not part.startswith("``"):
                parts[number] = f"``{name}``"
            following = parts[number + 1]
            if not part.startswith(":") and following and re.match(r"[\w(\[]", following):
                parts[number] += "\\ "
        else:
            parts[number] = re.sub(r"([*|\\])|(?<=\w)_(?!\w)", lambda match: "\\" + match.group(), part)
    return "".join(parts)
