"""The files of the page, and pages in one file: with a recorded run, or with an attribution graph alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pellucid.web.modules import one_script

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
