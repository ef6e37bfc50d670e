"""The notebooks of docs/notebooks: their code runs, prints what is stored, and stays short."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from website import notebooks  # noqa: E402

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))
MOST_LINES, MOST_BYTES = 15, 600_000
NUMBER = re.compile(r"-?\d+\.?\d*")

by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def lines_of_code(text: str) -> int:
    """The lines of a notebook without imports, assertions, and texts (constants in capitals)."""
    count = 0
    for cell in notebooks.cells(text, "code"):
        lines = notebooks.source(cell).splitlines()
        count += sum(bool(line.strip()) for line in lines)
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert)) or _is_text(node):
                assert node.end_lineno is not None
                count -= node.end_lineno - node.lineno + 1
    return count


def _is_text(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    calls = [one for one in ast.walk(node.value) if isinstance(one, (ast.Call, ast.comprehension))]
    return node.targets[0].id.isupper() and all(ast.unparse(one).startswith("range(") for one in calls)


@pytest.mark.model
@by_name
def test_a_notebook_runs_and_prints_what_is_stored(path: Path) -> None:
    """Numbers may differ a little: NumPy's matrix products round differently on other processors.

    A notebook that reads texts of Python states its version: other versions print other results.
    """
    pytest.importorskip("matplotlib")
    text = path.read_text(encoding="utf-8")
    version = json.loads(text)["metadata"]["language_info"].get("version", "")
    prints_the_same = sys.version.startswith(version)
    for cell, made in zip(notebooks.cells(text, "code"), notebooks.run(text)):
        stored = cell["outputs"]
        assert [one["output_type"] for one in made] == [one["output_type"] for one in stored]
        for one, other in zip(made, stored):
            if one["output_type"] == "stream" and prints_the_same:
                assert_alike("".join(one["text"]), "".join(other["text"]))
            elif one["output_type"] != "stream":
                assert notebooks.alternative(one) == notebooks.alternative(other)


@pytest.mark.long
@pytest.mark.model
@pytest.mark.parametrize("processor", ["Prescott", "Sandybridge", "Haswell", "SkylakeX"])
def test_notebooks_do_not_depend_on_the_order_of_sums_in_a_blas(processor: str) -> None:
    """OpenBLAS has products for each kind of processor, and adds in another order in each."""
    name = test_a_notebook_runs_and_prints_what_is_stored.__name__
    command = [sys.executable, "-m", "pytest", f"{__file__}::{name}"]
    environment = {**os.environ, "OPENBLAS_CORETYPE": processor}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def assert_alike(made: str, stored: str) -> None:
    """The texts are equal, and their numbers are equal within a tenth."""
    assert re.sub(r"\s+", "", NUMBER.sub("", made)) == re.sub(r"\s+", "", NUMBER.sub("", stored))
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (made, stored)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.1, abs=0.1)


def test_numbers_that_differ_are_found() -> None:
    assert_alike("[13.9 2.8]", "[13.9  2.81]")
    with pytest.raises(AssertionError):
        assert_alike("[13.9 2.8]", "[13.9 3.8]")
    with pytest.raises(AssertionError):
        assert_alike("France 1", "Spain 1")


@by_name
def test_a_notebook_is_short(path: Path) -> None:
    assert lines_of_code(path.read_text(encoding="utf-8")) <= MOST_LINES


@by_name
def test_a_notebook_has_the_format_of_jupyter(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert notebooks.dumped(notebook) == text
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = notebooks.cells(text)
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
    first, last = cells[0], cells[-1]
    assert notebooks.source(first).startswith("# ")
    assert notebooks.source(last).startswith("**Conclusion.**")
    assert any("assert" in notebooks.source(cell) for cell in notebooks.cells(text, "code"))


def test_the_notebooks_are_small_and_listed() -> None:
    assert sum(path.stat().st_size for path in PATHS) < MOST_BYTES
    index = (notebooks.FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\(([\w-]+)\.ipynb\)", index) == sorted(
        (path.stem for path in PATHS), key=lambda name: index.index(f"({name}.ipynb)")
    )


def test_a_notebook_becomes_markdown() -> None:
    picture = base64.b64encode(b"PNG").decode()
    shown = {"data": {"image/png": picture, "text/plain": ["Plot: heads"]}, "output_type": "display_data"}
    printed = {"output_type": "stream", "text": ["1\n", "2\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [printed, shown]},
    ]
    text = notebooks.markdown(json.dumps({"cells": cells}))
    begin = "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n2\n```\n\n"
    assert text == f"{begin}![Plot: heads](data:image/png;base64,{picture})\n"
    assert notebooks.without_pictures(text) == f"{begin}*Plot: heads*\n"


def test_outputs_are_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = ["import matplotlib.pyplot as plt\n", "plt.title('A')\n", "print(6 * 7)"]
    cell = {"cell_type": "code", "execution_count": None, "outputs": [], "source": code}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    assert notebooks.main([]) == 0
    printed, shown = notebooks.cells((tmp_path / "a.ipynb").read_text())[0]["outputs"]
    assert printed["text"] == ["42\n"]
    assert notebooks.alternative(shown) == "Plot: A"
    assert base64.b64decode(shown["data"]["image/png"]).startswith(b"\x89PNG")
    assert notebooks.main(["b"]) == 2
