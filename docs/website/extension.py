"""Sphinx's extension of the site: docstrings, signatures and members of the API reference."""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

from website import docstrings, reference

SECTIONS: Any = Config(napoleon_numpy_docstring=False)
ARRAY = re.compile(r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[(.*?)\]\]")
"""NumPy's ``NDArray[...]`` as Python writes it: an alias in full."""


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    known = {shown: name for name in reference.names() for shown in (name, name.rpartition(".")[2])}

    def docstring(_app: Any, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
        rst = docstrings.to_rst(lines, known)
        # As the docstring of a function: Napoleon would read "The answer: a text" as a type of a property.
        lines[:] = GoogleDocstring(rst, SECTIONS, app, "function").lines()

    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", is_skipped)
    return {"parallel_read_safe": True}


def signature(_app: Any, what: str, _name: str, of: Any, _options: object, shown: str, returned: str) -> Any:
    """Hides the constructor of a class that programs do not construct. Structures and errors keep theirs."""
    if what == "class" and not reference.is_structure(of):
        return "", None
    if not shown and not returned:
        return None
    return ARRAY.sub(r"NDArray[\1]", shown or ""), ARRAY.sub(r"NDArray[\1]", returned or "") or None


def is_skipped(_app: Any, _what: str, _name: str, of: Any, skipped: bool, _options: object) -> bool | None:
    """Skips the fields of a named tuple, whose docstrings are Python's."""
    return True if str(getattr(of, "__doc__", "")).startswith("Alias for field number") else None
