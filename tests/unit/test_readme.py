"""What the README shows runs as it stands."""

import contextlib
import io
import re
from pathlib import Path

import pytest

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


def test_the_commands_exist() -> None:
    shown = set(re.findall(r"pellucid ([a-z]+) ", (ROOT / "README.md").read_text()))
    commands = {path.stem.rstrip("_") for path in (ROOT / "src/pellucid/cli").glob("*.py")}
    assert {"run", "chat", "embed"} <= shown & commands
    assert not {name for name in shown if name not in commands} - {"is", "names"}
