"""Widgets in the real notebooks: JupyterLab and marimo, each in a real browser: make test-widgets.

    python tests/web/notebook_apps.py

Each opens a notebook with widgets of a graph and of attention, runs it, and pins a node of the graph,
whose group reaches the data in Python. No request leaves the machine, and no script fails. It needs the extra
``notebook``, Playwright, jupyterlab, marimo and a Chromium.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.browser import ARGUMENTS, CHROMIUM

HERE = Path(__file__).parent
SECONDS = 120
SHOWN = """\
import sys
sys.path.insert(0, {here!r})
import numpy as np
import graphs
from pellucid.integrations.widgets import show
weights = np.tril(np.ones((2, 3, 3), np.float32)) / np.arange(1, 4)[:, None]
graph, attention = show(graphs.small()), show((["The", " cat", " sat"], weights))
"""
GROUPS = 'groups = graph.data["qParams"]["supernodes"]\nprint("groups:", groups)\n'
MARIMO = """\
import marimo
app = marimo.App()

@app.cell
def _():
{shown}
    import marimo as mo
    wrapped = mo.ui.anywidget(graph)
    wrapped
    return attention, graph, mo, wrapped

@app.cell
def _(attention):
    attention
    return

@app.cell
def _(graph, mo, wrapped):
    wrapped.value
    mo.md("groups: " + repr(graph.data["qParams"]["supernodes"]))
    return

if __name__ == "__main__":
    app.run()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def jupyter(folder: Path) -> tuple[list[str], str]:
    """The command of JupyterLab, and the address of the notebook."""
    cells = [SHOWN.format(here=str(HERE)) + "graph", "attention", GROUPS]
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"c{at}",
                "metadata": {},
                "outputs": [],
                "execution_count": None,
                "source": text,
            }
            for at, text in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (folder / "check.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    command = [
        "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", f"--notebook-dir={folder}",
        "--IdentityProvider.token=", "--ServerApp.allow_origin=*",
        "--LabApp.extension_manager=readonly", "--LabApp.news_url=null",
    ]  # fmt: skip
    return command, f"http://127.0.0.1:{port}/lab/tree/check.ipynb"


def marimo(folder: Path) -> tuple[list[str], str]:
    """The command of marimo, and the address of the notebook."""
    shown = SHOWN.format(here=str(HERE)).rstrip().replace("\n", "\n    ")
    (folder / "check.py").write_text(MARIMO.format(shown="    " + shown))
    port = free_port()
    command = ["-m", "marimo", "run", str(folder / "check.py"), "--headless", "--no-token", f"--port={port}"]
    return command, f"http://127.0.0.1:{port}"


def run_cells(page: Any) -> None:
    """Run all cells of the open notebook of JupyterLab."""
    cell = page.locator(".jp-CodeCell .cm-content")
    cell.first.wait_for(timeout=SECONDS * 1000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=SECONDS * 1000)
    for name in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=name, exact=True).click()


def groups_of_jupyter(page: Any) -> str:
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.press("Control+Enter")
    output = page.locator(".jp-OutputArea-output", has_text="groups: [[")
    output.wait_for(timeout=SECONDS * 1000)
    return str(output.inner_text())


def groups_of_marimo(page: Any) -> str:
    output = page.get_by_text("groups: [[")
    output.wait_for(timeout=SECONDS * 1000)
    return str(output.inner_text())


def check(name: str, page: Any, begin: Callable[[Any], None], groups: Callable[[Any], str]) -> None:
    """Use the widgets of an open notebook."""
    begin(page)
    page.locator(".pellucid .node").first.wait_for(timeout=SECONDS * 1000)
    assert page.locator(".pellucid .node").count() == 11
    page.locator(".pellucid .near li").first.wait_for(timeout=SECONDS * 1000)
    box = page.locator(".pellucid .graph-scroll").bounding_box()
    assert box is not None
    assert box["height"] > 150, f"{name}: the style is missing"
    schemes = page.locator(".pellucid").evaluate_all("(all) => all.map((one) => one.dataset.scheme)")
    assert set(schemes) == {"light"}, f"{name}: the notebook is light, the widgets are {schemes}"
    for node in ("0_7_4", "1_3_2"):
        page.locator(f".pellucid .node[data-id='{node}']").click()
    page.get_by_label("name of the group").fill("inputs")
    page.get_by_role("button", name="Group the selected nodes").click()
    page.locator(".pellucid").get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("Saved in the widget’s data.").wait_for()
    assert "['inputs', '0_7_4', '1_3_2']" in groups(page), groups(page)
    page.screenshot(path=f".screenshots/widgets-{name}.png", full_page=True)
    print(f"{name}: ok", flush=True)


APPS: dict[str, tuple[Any, Callable[[Any], None], Callable[[Any], str]]] = {
    "jupyterlab": (jupyter, run_cells, groups_of_jupyter),
    "marimo": (marimo, lambda page: None, groups_of_marimo),
}


def main() -> None:
    """Check the notebooks that the arguments name, by default all."""
    Path(".screenshots").mkdir(exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name in sys.argv[1:] or APPS:
            prepared, begin, groups = APPS[name]
            with tempfile.TemporaryDirectory() as folder:
                command, url = prepared(Path(folder))
                environment = {**os.environ, "HOME": folder, "JUPYTER_CONFIG_DIR": folder}
                with Path(folder, "log").open("w") as log:
                    server = subprocess.Popen(
                        [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
                    )
                try:
                    reached(url, server, Path(folder, "log"))
                    page, asked, said = browser.new_page(), list[str](), list[str]()
                    page.on("request", lambda one, asked=asked: asked.append(one.url))
                    page.on("pageerror", lambda error, said=said: said.append(str(error)))
                    page.goto(url)
                    check(name, page, begin, groups)
                    outside = [
                        one for one in asked if not one.startswith(("http://127.0.0.1", "ws://127", "data:", "blob:"))
                    ]
                    assert not outside, outside
                    assert not said, said
                    page.close()
                finally:
                    server.terminate()
                    server.wait()
        browser.close()


def reached(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    for _ in range(SECONDS * 2):
        if server.poll() is not None:
            raise SystemExit(f"the server did not start:\n{log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"no answer from {url}:\n{log.read_text()}")


if __name__ == "__main__":
    main()
