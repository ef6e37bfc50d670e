"""The budget of the source: make budget. Its numbers fall, or rise by the lines of a new feature (decision 62).

Prints the lines and modules of ``src``, and of all modules of the package that run for ``pellucid.load`` with a first
answer and for ``pellucid run``. Exits with 1 if a number is above its limit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "pellucid"
LIMITS = {"src": (107_160, 480), "load + generate": (36_000, 177), "pellucid run": (38_450, 189)}
"""The most lines and modules."""

COUNT = """
import sys
from pathlib import Path
for one in list(sys.modules.values()):
    file = getattr(one, "__file__", None) or ""
    if one.__name__.partition(".")[0] == "pellucid" and file.endswith(".py"):
        print("module", file)
"""
LOAD = "import pellucid\npellucid.load(sys.argv[1], threads=1).generate('a', max_new_tokens=2)\n"
RUN = "from pellucid.cli.main import main\nmain(['run', sys.argv[1], 'a', '--max-new-tokens', '2'])\n"


def of_run(program: str, model: Path) -> tuple[int, int]:
    """The lines and modules of the package that a program imports."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}{COUNT}", str(model)], capture_output=True, text=True
    )
    if ended.returncode:
        sys.exit(ended.stderr)
    return size([Path(line[7:]) for line in ended.stdout.splitlines() if line.startswith("module ")])


def size(files: list[Path]) -> tuple[int, int]:
    """The lines and the number of files."""
    return sum(len(file.read_text().splitlines()) for file in files), len(files)


def main() -> int:
    from pellucid.testing import random_model

    with tempfile.TemporaryDirectory() as folder:
        model = random_model("llama", Path(folder) / "tiny.gguf")
        found = {
            "src": size(sorted(SOURCE.rglob("*.py"))),
            "load + generate": of_run(LOAD, model),
            "pellucid run": of_run(RUN, model),
        }
    above = False
    for name, (lines, modules) in found.items():
        most = LIMITS[name]
        above |= lines > most[0] or modules > most[1]
        print(f"{name:16} {lines:8,} lines (limit {most[0]:,})  {modules:4} modules (limit {most[1]})")
    return int(above)


if __name__ == "__main__":
    sys.exit(main())
