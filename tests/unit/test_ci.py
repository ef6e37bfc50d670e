"""CI runs the long tests where kernels change, where it is asked to, and where it cannot tell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
KERNEL, OTHER = "src/pellucid/kernels/simd.py", "src/pellucid/llm.py"

pytestmark = pytest.mark.skipif(
    not (SCRIPT.exists() and shutil.which("git") and shutil.which("bash")),
    reason="needs .ci/run, git and bash",
)


class Checkout:
    """A repository with the script. Its `make` only prints the target, and it has no other Python."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root / "repository", root / "bin"
        (self.root / ".ci").mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / ".ci" / "run")
        self.bin.mkdir()
        make = self.bin / "make"
        make.write_text("#!/bin/sh\necho $1\n")
        make.chmod(0o755)
        for name in ("bash", "dirname", "env", "git", "sh"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit(".ci/run")

    def git(self, *arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *arguments], cwd=self.root, check=True)

    def commit(self, path: str) -> None:
        """Commit a change of a file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(self.root / path, "a", encoding="utf-8") as file:
            file.write("\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")

    def targets(self, root: Path | None = None, **variables: str) -> list[str]:
        """Targets of `make` that the script runs."""
        variables = {"PATH": str(self.bin), "PYTHON": sys.executable, **variables}
        script = (root or self.root) / ".ci" / "run"
        done = subprocess.run([str(script)], env=variables, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith(("test", "docs"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


SHORT = ["test", "docs", "test-web"]
ALL = [*SHORT, "test-long"]


@pytest.mark.parametrize(("path", "targets"), [(KERNEL, ALL), (OTHER, SHORT)])
def test_on_main_the_last_commit_counts(checkout: Checkout, path: str, targets: list[str]) -> None:
    checkout.commit(KERNEL)
    checkout.commit(path)
    assert checkout.targets() == targets


@pytest.mark.parametrize(("path", "targets"), [(KERNEL, ALL), (OTHER, SHORT)])
def test_all_commits_of_a_branch_count(checkout: Checkout, path: str, targets: list[str]) -> None:
    checkout.commit(KERNEL)
    checkout.git("switch", "--quiet", "--create", "branch")
    checkout.commit(path)
    checkout.commit(OTHER)
    assert checkout.targets() == targets


def test_a_base_and_long_tests_can_be_asked_for(checkout: Checkout) -> None:
    checkout.commit(KERNEL)
    checkout.commit(OTHER)
    assert checkout.targets() == SHORT
    assert checkout.targets(CI_BASE="HEAD~2") == ALL
    assert checkout.targets(CI_BASE="0" * 40) == ALL
    assert checkout.targets(CI_LONG="1") == ALL


def test_long_tests_run_where_the_base_is_unknown(checkout: Checkout, tmp_path: Path) -> None:
    checkout.commit(OTHER)
    shallow = tmp_path / "shallow"
    checkout.git("clone", "--quiet", "--depth", "1", checkout.root.as_uri(), str(shallow))
    assert checkout.targets(shallow) == ALL
    bare = tmp_path / "no repository"
    shutil.copytree(checkout.root / ".ci", bare / ".ci")
    assert checkout.targets(bare, GIT_CEILING_DIRECTORIES=os.fspath(tmp_path)) == ALL


def test_tests_that_the_makefile_names_exist() -> None:
    root = SCRIPT.parents[1]
    make = ["make", "--dry-run", "--always-make", "test-python", "test-long", "test-web", "test-soak"]
    done = subprocess.run(make, cwd=root, capture_output=True, text=True, check=True)
    named = set(re.findall(r"(?<=[ =])(?:tests|bench)/[\w/.]+", done.stdout))
    assert "tests/unit/cluster" in named
    assert [path for path in sorted(named) if not (root / path).exists()] == []
