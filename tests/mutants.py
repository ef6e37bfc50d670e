"""Changes one operator of the source at a time, and reports which changes the tests notice.

    .venv/bin/python tests/mutants.py [--count 28] [--seed 0] [--all] [--list] [PATH:LINE …]

A mutant replaces one comparison, one plus or minus, or one `and` or `or` of a random place in src/. The script runs
the quick tests of the mutant's folder, with all tiny models, on a copy of the repository and stops at the first
failure; with ``--all``, the tests of `make test` follow where the quick tests notice nothing. The last lines name the
mutants that no test noticed: each needs a test, or is equivalent to the source. ``PATH:LINE`` takes the mutants of a
line in place of random ones.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = Path("src/pellucid")
OTHERS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
"""The operator of each node as it is written, and the operator that replaces it."""
QUICK = ("-m", "not slow", "--all-models", "--hypothesis-profile=quick")
TIMEOUT = 3600
"""Seconds, far above the time of all tests: an endless loop counts as noticed."""


@dataclass(frozen=True)
class Mutant:
    """One operator of a file at byte ``start``, and its replacement."""

    path: Path
    line: int
    start: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} → {self.after}"

    def source(self, text: bytes) -> bytes:
        """The file's text with the replacement."""
        return text[: self.start] + self.after.encode() + text[self.start + len(self.before.encode()) :]


def mutants_of(path: Path, text: bytes) -> Iterator[Mutant]:
    """All mutants of a file. Annotations are not changed: no test can notice it."""
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    tree = ast.parse(text)
    skipped = {id(part) for node in ast.walk(tree) for hint in _hints(node) for part in ast.walk(hint)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for left, operator, right in _operations(node):
            start = lines[left.end_lineno - 1] + left.end_col_offset  # type: ignore[attr-defined]
            end = lines[right.lineno - 1] + right.col_offset  # type: ignore[attr-defined]
            if type(operator) in OTHERS:
                before, after = OTHERS[type(operator)]
                at = text.find(before.encode(), start, end)
                if at >= 0:
                    yield Mutant(path, left.end_lineno or 0, at, before, after)  # type: ignore[attr-defined]


def _hints(node: ast.AST) -> list[ast.AST]:
    names = ("annotation", "returns")
    return [hint for name in names if isinstance(hint := getattr(node, name, None), ast.AST)]


def _operations(node: ast.AST) -> list[tuple[ast.AST, ast.AST, ast.AST]]:
    """The (left operand, operator, right operand) of a node."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        return list(zip(operands, node.ops, operands[1:]))
    if isinstance(node, ast.BinOp):
        return [(node.left, node.op, node.right)]
    if isinstance(node, ast.BoolOp):
        return [(left, node.op, right) for left, right in zip(node.values, node.values[1:])]
    return []


def tests_of(path: Path, root: Path) -> list[str]:
    """Test paths of a mutant: the tests of its folders, and the files of tests that import its module.

    A module whose folder has no tests is also tested by the tests of the public API.
    """
    unit, names = root / "tests" / "unit", path.relative_to("src").with_suffix("").parts
    folders = [unit / name for name in names if (unit / name).is_dir()]
    imports = re.compile(rf"\b{'[.]'.join(names)}\b|from {'[.]'.join(names[:-1])} import .*\b{names[-1]}\b")
    files = [file for file in sorted(unit.rglob("test_*.py")) if not {*file.parents} & {*folders}]
    importing = [file for file in files if imports.search(file.read_text())]
    if len(names) == 2 and folders:  # all files import llm.py
        return list(map(str, folders))
    api = [] if folders else [unit / "llm", *sorted(unit.glob("test_*.py"))]
    return list(dict.fromkeys(map(str, [*folders, *importing, *api])))


def caught(mutant: Mutant, root: Path, tests: Sequence[str]) -> str:
    """Run tests with a mutant in a copy of the repository. Returns the failed test, or "" if all pass."""
    file = root / mutant.path
    text = file.read_bytes()
    file.write_bytes(mutant.source(text))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=no", *tests]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        file.write_bytes(text)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return "" if done.returncode == 0 else (failed or [f"exit code {done.returncode}"])[0]


def at_lines(places: Sequence[str]) -> list[Mutant]:
    """All mutants of the lines ``PATH:LINE``."""
    found = []
    for path, _, line in (place.rpartition(":") for place in places):
        mutants = mutants_of(Path(path), (ROOT / path).read_bytes())
        found += [mutant for mutant in mutants if mutant.line == int(line)]
    return found


def drawn(count: int, seed: int) -> list[Mutant]:
    """``count`` mutants, each of a random file that has any."""
    rng = random.Random(seed)
    files = sorted(path.relative_to(ROOT) for path in (ROOT / SOURCE).rglob("*.py"))
    found: list[Mutant] = []
    while len(found) < count:
        path = rng.choice(files)
        if mutants := list(mutants_of(path, (ROOT / path).read_bytes())):
            found.append(rng.choice(mutants))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw mutants, run their tests, and print a line for each."""
    parser = argparse.ArgumentParser(description="Mutation testing of random operators.")
    parser.add_argument("--count", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="run all tests on what the quick tests miss")
    parser.add_argument("--list", action="store_true", help="print the mutants without running tests")
    parser.add_argument("places", nargs="*", metavar="PATH:LINE", help="all mutants of these lines")
    options = parser.parse_args(arguments)
    mutants = at_lines(options.places) or drawn(options.count, options.seed)
    if options.list:
        print(*mutants, sep="\n")
        return
    missed: list[Mutant] = []
    quick = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv*", ".peers", ".*_cache", "node_modules", "__pycache__")
        shutil.copytree(ROOT, root, ignore=ignored)
        for mutant in mutants:
            failed = caught(mutant, root, [*QUICK, *tests_of(mutant.path, root)])
            quick += bool(failed)
            if not failed and options.all:
                failed = caught(mutant, root, ["-m", "not long", str(root / "tests")])
            missed += [] if failed else [mutant]
            print("noticed" if failed else "MISSED ", mutant, f"({failed})" if failed else "", flush=True)
    seed = "" if options.places else f" (seed {options.seed})"
    print(f"the quick tests notice {quick} of {len(mutants)} mutants{seed}")
    if options.all:
        print(f"all tests notice {len(mutants) - len(missed)}")
    print(*missed, sep="\n")


if __name__ == "__main__":
    main()
