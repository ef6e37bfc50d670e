"""The worker processes that render chat templates in this process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pellucid.tokenize.chat import template


class Workers:
    """``processes`` are the processes that were started, in order."""

    def __init__(self) -> None:
        self.processes = list[subprocess.Popen[bytes]]()

    @property
    def running(self) -> list[subprocess.Popen[bytes]]:
        """The processes whose end nobody has noticed."""
        return [one for one in self.processes if one.returncode is None]

    @property
    def pids(self) -> list[int]:
        return [one.pid for one in self.running]


@contextmanager
def own_workers(pipes: Callable[..., Any] | None = None) -> Iterator[Workers]:
    """No worker runs when the block begins, nor after it. ``pipes`` replaces ``template.pipes_of``."""
    made, opened = Workers(), pipes or template.pipes_of

    def recorded(process: subprocess.Popen[bytes], check: Any) -> Any:
        made.processes.append(process)
        return opened(process, check)

    template.end_workers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "pipes_of", recorded)
        yield made
    template.end_workers()
