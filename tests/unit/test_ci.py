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
    not (SCRIPT.exists() and shutil.which("git") and shutil.which("bash")), reason="needs .ci/run, git and bash"
)


class Checkout:
    """A repository with the script. Its `make` only prints the target, and it has no other Python.

    The target that the variable FAILS names fails.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root / "repository", root / "bin"
        (self.root / ".ci").mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / ".ci" / "run")
        self.bin.mkdir()
        make = self.bin / "make"
        make.write_text(
            '#!/bin/sh\nif [ $1 = --silent ]; then echo check test-most; exit; fi\necho $1\n[ $1 != "$FAILS" ]\n'
        )
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
        return self.run(root, **variables).stdout.split()

    def run(self, root: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """A run of the script. Its output has the targets."""
        variables = {"PATH": str(self.bin), "PYTHON": sys.executable, **variables}
        script = (root or self.root) / ".ci" / "run"
        done = subprocess.run([str(script)], env=variables, capture_output=True, text=True)
        targets = [line for line in done.stdout.splitlines() if line.startswith(("check", "test", "docs"))]
        return subprocess.CompletedProcess(done.args, done.returncode, "\n".join(targets), done.stderr)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


SHORT = ["check", "test-most", "docs", "test-web", "test-wheel"]
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


@pytest.mark.parametrize(("fails", "code"), [("check", 1), ("docs", 1), ("test-long", 1), ("", 0)])
def test_all_targets_run_and_the_last_line_names_the_failed_ones(checkout: Checkout, fails: str, code: int) -> None:
    done = checkout.run(CI_LONG="1", FAILS=fails)
    assert done.stdout.split() == ALL
    assert done.returncode == code
    assert done.stderr.splitlines()[-1:] == ([f"failed: {fails}"] if fails else [])


@pytest.mark.skipif(os.name == "nt", reason="the layout of a POSIX environment")
@pytest.mark.parametrize(
    ("target", "fails", "failed"),
    [
        ("test", "", ""),
        ("test", "mypy", "check"),
        ("test", "loadfile tests/unit/cluster", "test-cluster"),
        ("test-python", "--ignore=tests/web", "test-most"),
        ("test-quick", "pytest tests/unit/capacity", "test-alone"),
        ("test-fast", "slow", "test-most test-cluster test-alone"),
    ],
)
def test_a_failed_group_does_not_stop_the_others(tmp_path: Path, target: str, fails: str, failed: str) -> None:
    """In an environment of programs that write down their arguments, and fail at a text in them."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "mypy", "lint-imports"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/log\n')
        if fails:
            with program.open("a") as file:
                file.write(f"""case "{name} $*" in *'{fails}'*) exit 1;; esac\n""")
        program.chmod(0o755)
    for name in ("installed", "dev"):
        (tmp_path / name).touch()
    make = ["make", target, f"VENV={tmp_path}"]
    environment = {"PATH": os.environ["PATH"]}  # without the variables of a make that runs this test
    done = subprocess.run(make, cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True)
    log = (tmp_path / "log").read_text()
    assert log.count("python -m pytest") == 3
    assert ("ruff check" in log) == (target in ("test", "test-fast"))
    assert ("not slow" in log, "not long" in log) == (
        (True, False) if target in ("test-quick", "test-fast") else (False, True)
    )
    assert (done.returncode != 0) == bool(failed)
    assert [line for line in done.stderr.splitlines() if line.startswith("failed")] == (
        [f"failed: {failed}"] if failed else []
    )
    if failed:
        assert done.stderr.splitlines()[-2] == f"failed: {failed}"
