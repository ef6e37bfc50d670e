"""Several modules of the page as one script, for files and notebooks that have no server to load modules from.

Each module becomes a function that returns the names that other modules import. The functions run in the order of
their imports, so an import is a constant. The page's modules are regular enough for patterns: an import is one
statement ``import { a, b as c } from "/web/…";`` and an export stands before a declaration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

IMPORT = re.compile(r'^import \{([^}]*)\} from "/web/([^"]+)";\n?', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function\b|const\b|class\b)", re.MULTILINE)
LIST = re.compile(r"\bexport\{([^}]*)\};?\s*$")  # of a module in vendor/


def one_script(files: Mapping[str, bytes], start: str, wanted: Iterable[str] = ()) -> str:
    """The module ``start`` with all modules that it imports, as the text of one module without imports.

    ``files`` are the files of the page by path. At the end of the script the names ``wanted`` of the module ``start``
    are constants.

    Raises:
        ValueError: modules import each other in a circle, or an import or export has another form.
    """
    order, wanted = _ordered(files, start), list(wanted)
    constants = {path: f"$module{number}" for number, path in enumerate(order)}
    used: dict[str, set[str]] = {path: set() for path in order}
    used[start].update(wanted)
    for path in order:
        for names, source in IMPORT.findall(files[path].decode()):
            used[source].update(name for name, _ in _pairs(names))
    parts = [_function(files[path].decode(), path, used[path], constants) for path in order]
    if wanted:
        parts.append(f"const {{ {', '.join(wanted)} }} = {constants[start]};\n")
    return "".join(parts)


def _ordered(files: Mapping[str, bytes], start: str) -> list[str]:
    """Paths of a module and all that it imports; each stands after its imports."""
    order, open_ = list[str](), list[str]()

    def visit(path: str) -> None:
        if path in order:
            return
        if path in open_:
            raise ValueError(f"modules import each other: {' -> '.join([*open_, path])}")
        open_.append(path)
        for _, source in IMPORT.findall(files[path].decode()):
            visit(source)
        open_.pop()
        order.append(path)

    visit(start)
    return order


def _function(text: str, path: str, used: set[str], constants: Mapping[str, str]) -> str:
    """A module as a function that returns the names that other modules use."""

    def constant(found: re.Match[str]) -> str:
        names = ", ".join(name if name == own else f"{name}: {own}" for name, own in _pairs(found[1]))
        return f"const {{ {names} }} = {constants[found[2]]};\n"

    body = EXPORT.sub("", IMPORT.sub(constant, text))
    exported = {name: name for name in used}
    if listed := LIST.search(body):
        known = {own: name for name, own in _pairs(listed[1])}
        exported, body = {name: known[name] for name in used}, body[: listed.start()]
    if re.search(r"^(?:import|export)\b", body, re.MULTILINE):
        raise ValueError(f"{path}: an import or export has a form that one script cannot have")
    values = ", ".join(f"{name}: {exported[name]}" for name in sorted(used))
    return f"// {path}\nconst {constants[path]} = (() => {{\n{body}\nreturn {{ {values} }};\n}})();\n"


def _pairs(names: str) -> list[tuple[str, str]]:
    """Names of a list "a, b as c", each with the name after "as"."""
    parts = [one.split() for one in names.split(",") if one.strip()]
    return [(one[0], one[-1]) for one in parts]
