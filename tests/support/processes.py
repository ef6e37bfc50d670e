"""Runs Python subprocesses that can import the tests' modules, for settings that a process reads only once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2


def environment(**more: str) -> dict[str, str]:
    """Environment variables of this process, with the folder of the tests on the import path."""
    folders = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **more}


def python(code: str, *arguments: str) -> list[str]:
    """Command line that runs Python code."""
    return [sys.executable, "-c", code, *arguments]


def run(commands: Sequence[tuple[list[str], dict[str, str]]]) -> list[str]:
    """Run commands, each with its environment, at most AT_ONCE together. Returns their standard outputs.

    Raises:
        AssertionError: a command failed.
    """

    def one(what: tuple[list[str], dict[str, str]]) -> str:
        command, variables = what
        result = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, commands))


def interrupt_main() -> None:
    """Send Ctrl-C to the main thread, and wake it. POSIX only."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
