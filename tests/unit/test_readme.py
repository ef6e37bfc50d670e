"""The examples of the README and the documents run as they stand, and the documents name every option and command."""

import contextlib
import io
import re
from dataclasses import fields
from pathlib import Path

import pytest

from pellucid.cli.command import known_commands
from pellucid.model.family import known_families
from pellucid.sample.options import Options
from pellucid.sample.step import owners, steps
from pellucid.weights.quant.format import formats

ROOT = Path(__file__).parents[2]


@pytest.mark.model
def test_the_python_block_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    said = io.StringIO()
    for block in blocks:
        with contextlib.redirect_stdout(said):
            exec(compile(block, "README.md", "exec"), {})
    assert said.getvalue().strip()


@pytest.mark.model
@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "docs").glob("*.md"))])
def test_the_python_blocks_of_a_document_run_one_after_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks write files
    run_blocks(ROOT / "docs" / name)


@pytest.mark.model
@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "docs" / "guides").glob("se[ea]*.md"))])
def test_the_python_blocks_of_a_worked_example_run_one_after_the_other(name: str) -> None:
    assert run_blocks(ROOT / "docs" / "guides" / name)


def run_blocks(path: Path) -> int:
    """Run the Python blocks of a document in a single scope. Returns the number of blocks."""
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, path.name, "exec"), scope)
    return len(blocks)


def test_the_worked_examples_are_linked() -> None:
    pages = ("tracing.md", "lenses.md", "features.md")
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages)
    for path in (ROOT / "docs" / "guides").glob("see-*.md"):
        assert f"(guides/{path.name})" in text, path.name


def test_every_step_and_option_is_in_the_document_of_sampling() -> None:
    text = (ROOT / "docs" / "sampling.md").read_text()
    own = [one.name for one in fields(Options) if one.name != "sampling"]
    for name in [*steps(), *owners(), *own]:
        assert f"`{name}" in text or f"{name}=" in text, name


def test_the_commands_exist() -> None:
    _, _, after = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").partition("\n## The commands\n")
    shown = set(re.findall(r"pellucid ([a-z][a-z-]*)[ ;`\n]", after.partition("\n## ")[0]))
    in_readme = set(re.findall(r"pellucid ([a-z][a-z-]*)[ ;`]", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown == set(known_commands())
    assert in_readme <= shown


def test_the_families_are_named() -> None:
    (row,) = re.findall(r"\| families \| (.*) \|", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    assert {re.sub(r" \(.*\)", "", name) for name in row.split(", ")} == set(known_families())


def test_the_block_formats_are_named() -> None:
    (row,) = re.findall(r"\| weights \| (.*) \|", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    assert set(row.split(", ")) == set(formats())
