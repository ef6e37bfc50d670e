"""Completion in a shell: Typer's scripts, commands, options and names of models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROGRAM, Outcome, pellucid

from pellucid.cli.command import model_names
from pellucid.weights import store

pytestmark = pytest.mark.slow


def completed(line: str, home: Path) -> list[str]:
    """The words that bash gets for a line whose last word is incomplete."""
    words = line.split(" ")
    done = pellucid(
        env={
            "_PELLUCID_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "PELLUCID_HOME": str(home),
        }
    )
    assert done.err == ""
    return done.answer.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pellucid r", {"record", "rerank", "rm", "run"}),
        ("pellucid run sm", {"smollm2"}),
        ("pellucid rm ge", {"gemma3"}),
        ("pellucid run smollm2 --temp", {"--temperature"}),
        ("pellucid serve --alias x m", {"minilm"}),
        ("pellucid eval p", {"perplexity"}),
        ("pellucid eval perplexity --thr", {"--threads"}),
        ("pellucid run ./a", set()),  # the shell completes the name of a file
        ("pellucid nonsense --th", set()),
    ],
)
def test_a_line(line: str, words: set[str], tmp_path: Path) -> None:
    assert set(completed(line, tmp_path)) == words


def test_models_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = store.Installed("mine", Path("x"), 5, "hf:me/mine", True)
    monkeypatch.setattr(store, "installed", lambda: [here])
    assert model_names("mi") == ["mine", "minilm"]
    monkeypatch.undo()
    monkeypatch.setenv("PELLUCID_HOME", "~nosuch/x")
    assert model_names("mi") == ["minilm"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str) -> None:
    any_shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # otherwise Typer takes the shell that runs it
    script = pellucid("--show-completion", shell, env=any_shell).answer
    assert "_PELLUCID_COMPLETE=complete_" + shell in script


def test_the_help_lists_the_options_of_completion() -> None:
    page = pellucid("--help").answer
    assert "--install-completion" in page
    assert "--install-completion" not in pellucid("run", "--help").answer


@pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="needs bash")
def test_installed_in_bash(tmp_path: Path) -> None:
    """The installed script works in bash: pressing Tab calls its function."""
    home = {**os.environ, "HOME": str(tmp_path), "PELLUCID_HOME": str(tmp_path / "home")}
    any_shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    install = subprocess.run(
        [*PROGRAM, "--install-completion", "bash"], env=home | any_shell, capture_output=True, text=True, check=True
    )
    assert "bash completion installed" in install.stdout
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "pellucid").write_text(f'#!/bin/sh\nexec {sys.executable} -m pellucid "$@"\n')
    (bin / "pellucid").chmod(0o755)
    script = (
        "source ~/.bash_completions/pellucid.sh; COMP_WORDS=(pellucid ru); COMP_CWORD=1; "
        "$(complete -p pellucid | sed 's/.*-F \\([^ ]*\\).*/\\1/') pellucid; echo ${COMPREPLY[@]}"
    )
    path = {"PATH": f"{bin}:{home['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=home | path, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Outcome(0, done.stdout, done.stderr) == Outcome(0, "run\n", "")
