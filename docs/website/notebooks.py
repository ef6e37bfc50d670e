"""The notebooks of docs/notebooks: their code is run here, and their text becomes pages of the site.

``PYTHONPATH=docs python -m website.notebooks [NAME ...]`` runs notebooks (by default all) and stores their output:
printed text, and small pictures with a palette of 128 colours. The tests run the same code.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SUFFIX = ".ipynb"
DPI, COLOURS = 72, 128
"""Resolution and number of colours of a stored picture."""

Cell = dict[str, Any]


def cells(text: str, kind: str = "") -> list[Cell]:
    """The cells of a notebook's JSON, or only its cells of a kind: "markdown" or "code"."""
    found: list[Cell] = json.loads(text)["cells"]
    return [cell for cell in found if kind in ("", cell["cell_type"])]


def source(cell: Cell) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def markdown(text: str) -> str:
    """A notebook's JSON as Markdown: text, blocks of code, printed text, and pictures as data URIs."""
    parts = []
    for cell in cells(text):
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                parts.append(f"![{alternative(output)}](data:image/png;base64,{output['data']['image/png']})")
    return "\n\n".join(parts) + "\n"


def without_pictures(text: str) -> str:
    """The Markdown of a notebook, with the titles of its pictures in place of the pictures."""
    return re.sub(r"!\[([^\]]*)\]\(data:[^)]*\)", r"*\1*", text)


def alternative(output: Cell) -> str:
    """The text in place of a picture: the titles of its plots."""
    return "".join(output["data"]["text/plain"])


def run(text: str) -> Iterator[list[Cell]]:
    """Run the code cells of a notebook's JSON in a new namespace. Yields the outputs of each cell.

    An exception of the code is not caught. Figures are closed.
    """
    importlib.import_module("matplotlib").use("Agg")
    scope: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(text, "code")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source(cell), f"cell {number}", "exec"), scope)
        outputs = list(_pictures())
        if printed.getvalue():
            lines = printed.getvalue().splitlines(keepends=True)
            outputs.insert(0, {"name": "stdout", "output_type": "stream", "text": lines})
        yield outputs


def _pictures() -> Iterator[Cell]:
    """Outputs of the open figures of matplotlib."""
    pyplot, image = (importlib.import_module(name) for name in ("matplotlib.pyplot", "PIL.Image"))
    for number in pyplot.get_fignums():
        figure, drawn, file = pyplot.figure(number), io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, dpi=DPI)
        small = image.open(drawn).convert("RGB").quantize(COLOURS, dither=image.Dither.NONE)
        small.save(file, "PNG", optimize=True)
        titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
        data = {
            "image/png": base64.b64encode(file.getvalue()).decode(),
            "text/plain": [f"Plot: {'; '.join(titles) or 'untitled'}"],
        }
        yield {"data": data, "metadata": {}, "output_type": "display_data"}
    pyplot.close("all")


def with_outputs(text: str) -> str:
    """A notebook's JSON with the outputs of a new run."""
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, run(text)), 1):
        cell["execution_count"], cell["outputs"] = number, outputs
    return dumped(notebook)


def dumped(notebook: dict[str, Any]) -> str:
    """The JSON of a notebook, in Jupyter's layout."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(names: Sequence[str]) -> int:
    """Run notebooks and store their outputs. Returns the exit code."""
    paths = {path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}
    for name in names or paths:
        if name not in paths:
            print(f"notebooks: {name}: no such notebook; there are {', '.join(paths)}", file=sys.stderr)
            return 2
        paths[name].write_text(with_outputs(paths[name].read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{name}: {paths[name].stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
