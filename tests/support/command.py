"""Runs the real program in a subprocess and returns its outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

PROGRAM = [sys.executable, "-W", "error", "-m", "pellucid"]


@dataclass(frozen=True)
class Outcome:
    """Exit code and both outputs of a command."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> str:
        """Standard output of a command that succeeded."""
        assert self.code == 0, self.err
        return self.out

    @property
    def document(self) -> Any:
        """The JSON document that the command printed."""
        return json.loads(self.answer)

    @property
    def refusal(self) -> str:
        """The error message of a refused command, without its prefix."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("pellucid: ")
        assert self.err.endswith("\n")
        assert self.err[:-1].isprintable(), self.err  # hence a single line
        return self.err[len("pellucid: ") : -1]


Command: TypeAlias = Callable[..., Outcome]


def pellucid(*arguments: str | bytes, given: str | bytes = "", env: Mapping[str, str] | None = None) -> Outcome:
    """Run ``pellucid`` with the arguments; ``given`` is its standard input."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        input=given if isinstance(given, bytes) else given.encode(),
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
