"""The files of the page, and pages in one file: with a recorded run, or with an attribution graph alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

# Several modules of the page as one script, for files and notebooks that have no server to load modules from.
#
# Each module becomes a function that returns the names that other modules import. The functions run in the order of
# their imports, so an import is a constant. The page's modules are regular enough for patterns: an import is one
# statement ``import { a, b as c } from "/web/…";`` and an export stands before a declaration.

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


SHARED = "/* Until here: what the page of a graph alone needs too (bundle.py). */"
"""The line of style.css after the rules that all pages have."""
KINDS = (".html", ".js", ".css", ".svg")
PREFIX, BARE = "/web/", "pellucid/"
"""Beginnings of module names: a path on a server, and a bare name in a report, where no server resolves a path."""


@cache
def web_files() -> dict[str, bytes]:
    """Files of the page, by their paths below ``web/``."""
    found = dict[str, bytes]()

    def walk(folder: Any, prefix: str) -> None:
        for one in folder.iterdir():
            if one.is_dir():
                walk(one, f"{prefix}{one.name}/")
            elif one.name.endswith(KINDS):
                found[prefix + one.name] = one.read_bytes()

    walk(files("pellucid.web"), "")
    return found


@cache
def page_script() -> bytes:
    """All modules of the page as one script: a browser asks once, not a hundred times."""
    return one_script(web_files(), "app.js").encode()


def page_of_run(title: str, name: str, run: bytes) -> str:
    """The page with a recorded run (the contents of its file are ``run``): one HTML file that loads nothing else.

    The file contains the server's modules as ``data:`` URLs, which the content security policy must allow. Inline
    scripts run only if the policy lists their hashes. The run is data that no browser runs as a script.
    """
    own = web_files()
    modules = {
        BARE + path: _data(content.replace(f'"{PREFIX}'.encode(), f'"{BARE}'.encode()))
        for path, content in own.items()
        if path.endswith(".js")
    }
    known = json.dumps({"imports": modules}, sort_keys=True)
    start, style = f'import "{BARE}app.js";', own["style.css"].decode()
    policy = (
        f"default-src 'none'; script-src {_hash(known)} {_hash(start)} data:; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f"{_head(policy, title)}"
        f'<style>{style}</style>\n<script type="importmap">{known}</script>\n</head>\n<body>\n'
        '<div id="app"><p class="empty">Loading the report …</p></div>\n'
        "<noscript>The report needs JavaScript; it loads nothing and asks nobody.</noscript>\n"
        f"{_packed('run', name, run)}"
        f'<script type="module">{start}</script>\n</body>\n</html>\n'
    )


def graph_html(document: Mapping[str, Any]) -> str:
    """The page of an attribution graph: one HTML file with nothing else, which loads nothing.

    ``document`` is Neuronpedia's graph JSON: metadata, qParams, nodes and links. The page checks it, and shows what is
    wrong with it. Save in the page writes it back with the pinned nodes and groups.

    Raises:
        ValueError: a number is not finite, which JSON cannot have.
    """
    own = web_files()
    facts = document.get("metadata", {})
    name = str(facts.get("slug") or "this graph")
    data = json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
    script = one_script(own, "graph/alone.js")
    style = own["style.css"].decode().partition(SHARED)[0]
    if "</script" in script:
        raise ValueError("a module of the page holds the end tag of scripts")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f"{_head(policy, str(facts.get('prompt') or name))}<style>{style}</style>\n</head>\n<body>\n"
        '<div id="app"><p class="empty">Loading the graph …</p></div>\n'
        "<noscript>The graph needs JavaScript; it loads nothing and asks nobody.</noscript>\n"
        f"{_packed('graph', name, data)}"
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


@cache
def widget_script() -> str:
    """The ES module of a widget in a notebook, as anywidget takes it: its default export has ``render``."""
    return one_script(web_files(), "widgets/widget.js", ["render"]) + "export default { render };\n"


@cache
def widget_style() -> str:
    """The style of the page for elements inside of a widget alone: a notebook has rules of its own."""
    own = web_files()["style.css"].decode().replace(":root", "&").replace("\nbody {", "\n& {")
    return f".pellucid {{\n{own}\n}}\n"


def _head(policy: str, title: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
    )


def _packed(identity: str, name: str, data: bytes) -> str:
    """Data in the page, which no browser runs as a script."""
    return (
        f'<script type="application/gzip" id="{identity}" data-name="{html.escape(name)}">'
        f"{base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()}</script>\n"
    )


def _data(script: bytes) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
