"""Runs the program in a pseudo-terminal. Input arrives as from a keyboard, also Ctrl-C and Ctrl-D."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping

CTRL_C, CTRL_D = "\x03", "\x04"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")
# The session that owns the terminal gets the keyboard's signals, so the program first takes the terminal.
START = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("pellucid", run_name="__main__")
"""


class Terminal:
    """``pellucid`` in a terminal. ``output`` is everything that it has written, with control codes."""

    def __init__(self, *arguments: str, columns: int = 80, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", **(env or {})}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, **(env or {})},
        )
        os.close(slave)
        self.output = ""
        self._seen = 0

    def type(self, text: str) -> None:
        """Type a text without the Enter key."""
        os.write(self._master, text.encode())

    def line(self, text: str) -> None:
        """Type a text and press Enter."""
        self.type(f"{text}\n")

    def wait(self, expected: str, seconds: float = 60) -> str:
        """Wait until ``expected`` appears after the output of earlier calls. Returns the output up to its end."""
        end = time.monotonic() + seconds
        while (at := self.output.find(expected, self._seen)) < 0:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"no {expected!r} in {self.output[self._seen :]!r}")
        start, self._seen = self._seen, at + len(expected)
        return self.output[start : self._seen]

    def interrupt(self, expected: str) -> str:
        """Press Ctrl-C at a prompt until ``expected`` appears. Python misses a Ctrl-C just before readline waits."""
        for _ in range(20):
            self.type(CTRL_C)
            with contextlib.suppress(AssertionError):
                return self.wait(expected, 3)
        raise AssertionError(f"no {expected!r} after many a Ctrl-C")

    def more(self, characters: int, seconds: float = 60) -> None:
        """Wait for ``characters`` more characters of output."""
        end, wanted = time.monotonic() + seconds, len(self.output) + characters
        while len(self.output) < wanted:
            assert self._read(end - time.monotonic()), self.output[self._seen :]

    @property
    def echoes(self) -> bool:
        """True if the terminal echoes input."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def end(self, seconds: float = 60) -> int:
        """Wait until the program ends. Returns its exit code."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    @property
    def text(self) -> str:
        """The output without control codes."""
        return CONTROL.sub("", self.output)

    def _read(self, seconds: float) -> bool:
        """Read the next output. Returns False after the timeout or at the end of the output."""
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the program has closed its side
            return False
        self.output += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 80, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """``pellucid`` with these arguments in a terminal."""
    made = Terminal(*arguments, columns=columns, env=env)
    try:
        yield made
    finally:
        made.close()
