"""The files of the page, and the page with a recorded run in one file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from functools import cache
from importlib.resources import files
from typing import Any

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
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f'<style>{style}</style>\n<script type="importmap">{known}</script>\n</head>\n<body>\n'
        '<div id="app"><p class="empty">Loading the report …</p></div>\n'
        "<noscript>The report needs JavaScript; it loads nothing and asks nobody.</noscript>\n"
        f'<script type="application/gzip" id="run" data-name="{html.escape(name)}">'
        f"{base64.b64encode(gzip.compress(run, 6, mtime=0)).decode()}</script>\n"
        f'<script type="module">{start}</script>\n</body>\n</html>\n'
    )


def _data(script: bytes) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
