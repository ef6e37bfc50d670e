"""Renders a conversation to one text with the model's Jinja template, in worker processes with limits.

A template is an untrusted program. A single call in it can use unlimited time and memory, and no check inside the same
process can stop it. So it runs in a worker: a separate Python process (``template_worker.py``) with a memory limit,
which is killed at its timeout. A worker is started when it is first needed, or earlier by ``start_ahead``, and kept for
the next rendering. Threads that render at the same time use one worker each, up to ``MAX_WORKERS``.

Workers run in their own session, on Windows with their own console, so Ctrl-C does not reach them. It reaches only the
process that waits for a worker, and this process kills the worker. Workers exit when their input ends, so they outlive
this process by at most one rendering.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from pellucid.errors import InvalidRequest, TemplateError, reason, shown
from pellucid.tokenize.chat.template_pipes import PIPE_BYTES, TimedOut, TooMuchMemory, WorkerEnded, memory_of, pipes_of
from pellucid.util.interpreter import OWN_CONSOLE

MAX_WORKERS = 4
"""Maximum number of renderings at a time, over all threads. Further renderings wait."""

# A start usually takes less than 0.1 seconds. A busy machine with a cold disk may need much more.
STARTUP_SECONDS = 60.0
# Time for a worker to stop itself after the timeout and report the template's line.
GRACE_SECONDS = 0.1
# Maximum size of a reply in bytes.
MAX_BYTES = 100_000_000
INHERITED_VARIABLES = ("TZ", "TZDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that a worker inherits: the time zone, for ``strftime_now``, and the paths of libraries."""

# Exit codes of Windows: access violation, stack overflow, abort.
_CRASHES = (0xC000_0005, 0xC000_00FD, 0xC000_0409)

BOOT = "import sys; sys.path += sys.argv[1:]; import template_worker; template_worker.main()"

Reply = Mapping[str, Any]
"""{"text": str} or {"error": str, "line": int | None}."""


def start_ahead() -> None:
    """Start a worker if there is none; do not wait for it. Raises :class:`TemplateError` if the start fails."""
    _workers.start_ahead()


def end_workers() -> None:
    """End all workers. The next rendering starts another."""
    _workers.close()


class _Worker:
    """A worker process, used by one thread at a time."""

    def __init__(self) -> None:
        self._is_ready = False
        command = _command()
        self._name = command[0]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pipesize=PIPE_BYTES,
                cwd="/",
                env={name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
                start_new_session=True,
                creationflags=OWN_CONSOLE,
            )
        except OSError as error:
            blamed = error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC)
            raise _start_error(reason(error), self._name if blamed else None) from None
        try:
            self._memory = memory_of(self.process.pid)
        except OSError as error:
            self.process.kill()
            self.process.communicate()  # closes the pipes
            raise _start_error(f"its memory cannot be limited: {reason(error)}") from None
        self._pipes = pipes_of(self.process, self._memory.check)

    def ask(self, request: bytes, seconds: float, megabytes: int) -> dict[str, Any]:
        """Return the reply to a request. If "last" is set in the reply, the caller must close the worker."""
        if not self._is_ready:
            self._await_ready()
        try:
            self._memory.limit(megabytes << 20)
            with self._pipes.until(time.monotonic() + seconds + GRACE_SECONDS):
                self._pipes.write(len(request).to_bytes(4, "big") + request)
                reply = self._read()
            return {**reply, "last": True} if self._memory.is_large else reply
        except TimedOut:
            return _failure(f"it ran for more than {seconds:g} seconds")
        except TooMuchMemory:
            return _failure(f"it used more than {megabytes:,} MB of memory")
        except WorkerEnded:
            return _failure(self._exit_reason(seconds))

    def _await_ready(self) -> None:
        try:
            with self._pipes.until(time.monotonic() + STARTUP_SECONDS):
                reply = self._read()
        except TimedOut:
            raise _start_error(f"it is not ready after {STARTUP_SECONDS:g} seconds") from None
        except WorkerEnded:
            raise _start_error("it does not run as Python with -I -S -c", self._name) from None
        if "ready" not in reply:
            raise _start_error(shown(str(reply.get("error"))))
        self._is_ready = True

    def _read(self) -> dict[str, Any]:
        size = int.from_bytes(self._pipes.read(4), "big")
        if size > MAX_BYTES:
            raise WorkerEnded
        try:
            reply = json.loads(self._pipes.read(size).decode("utf-8", "surrogatepass"))
        except ValueError:
            raise WorkerEnded from None
        if not isinstance(reply, dict):
            raise WorkerEnded
        return reply

    def _exit_reason(self, seconds: float) -> str:
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "its process stopped answering"
        if sys.platform == "win32":
            if code in _CRASHES:
                return f"its process crashed ({code:#x}); the template may be nested too deeply"
            return f"its process was ended with code {code}: try again"
        if code == -signal.SIGXCPU:
            return f"it ran for more than {seconds:g} seconds"
        if code in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT):
            return f"its process crashed ({signal.Signals(-code).name}); the template may be nested too deeply"
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return f"its process was ended {how}: try again"

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self._pipes.close()
        self.process.wait()
        self._memory.close()

    def abandon(self) -> None:
        """Drop the parent's worker in a forked child. A worker outlives the parent while a child has its pipes."""
        self.process.returncode = 0  # the worker is not a child of this process: there is nothing to wait for
        self._pipes.close()


class _Workers:
    """All workers of this process."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_WORKERS)
        self._all, self._idle = set[_Worker](), list[_Worker]()

    def ask(self, request: bytes, seconds: float, megabytes: int) -> Reply:
        """Send a request to a worker and return its reply (``template_worker.py`` documents both).

        The reply is also an "error" if the worker takes more than ``seconds`` or ``megabytes``, or crashes. Raises
        :class:`TemplateError` if no worker can be started.
        """
        with self._free:
            worker = self._take()
            last = True
            try:
                reply = worker.ask(request, seconds, megabytes)
                last = reply.get("last", True)
            finally:  # also at Ctrl-C
                self._give_back(worker, last)
        return reply

    def start_ahead(self) -> None:
        with self._lock:
            if not self._all:
                self._idle.append(self._start())

    def close(self) -> None:
        with self._lock:
            for worker in self._all:
                worker.close()
            self._all.clear()
            self._idle.clear()

    def forget(self) -> None:
        """Drop all workers in the child after a fork, because they belong to the parent."""
        for worker in self._all:
            worker.abandon()
        self._reset()

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                self._drop(worker)
            return self._start()

    def _give_back(self, worker: _Worker, last: bool) -> None:
        with self._lock:
            if last or worker not in self._all:
                self._drop(worker)
            else:
                self._idle.append(worker)

    def _start(self) -> _Worker:
        worker = _Worker()
        self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._all.discard(worker)
        worker.close()


def _command() -> list[str]:
    """The command that starts a worker. Its import path has only the folders that Jinja needs."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise TemplateError(
            "chat templates are rendered by a separate Python, and sys.executable names none: set it to a Python"
        )
    folders = []
    for package in ("jinja2", "markupsafe"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise TemplateError(f"chat templates need {package}: pip install {package}")
        folders.append(os.path.dirname(os.path.dirname(os.path.abspath(spec.origin))))
    # BOOT appends these folders, so that the standard library comes first.
    path = dict.fromkeys([*folders, os.path.dirname(os.path.abspath(__file__))])
    # On Windows the Python of a virtual environment starts the base Python as a second process.
    base = getattr(sys, "_base_executable", None) if sys.platform == "win32" else None
    return [base or sys.executable, "-I", "-S", "-X", "utf8", "-c", BOOT, *path]


def _start_error(why: str, executable: str | None = None) -> TemplateError:
    """The error for a worker that does not start; ``executable`` is given if it is the cause."""
    if executable is None:
        return TemplateError(f"the Python that renders chat templates cannot be started: {why}")
    return TemplateError(
        f"the Python that renders chat templates, {shown(executable)}, cannot be started: {why}; "
        "sys.executable must name a Python"
    )


def _failure(what: str) -> dict[str, Any]:
    return {"error": what, "line": None, "last": True}


_workers = _Workers()
atexit.register(end_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.forget)


SOURCE_CHARACTERS = 1_000_000
# Maximum size of the source and all variables as JSON, in UTF-8.
REQUEST_BYTES = 40_000_000
MAX_MESSAGE_CHARACTERS = 400


class RenderLimits(Struct, frozen=True):
    """Limits of one rendering: seconds, megabytes of memory (on Linux: of address space), characters of output."""

    seconds: float = 5.0
    megabytes: int = 512
    characters: int = 10_000_000


LIMITS = RenderLimits()


def render(source: str | None, variables: Mapping[str, Any], limits: RenderLimits = LIMITS) -> str:
    """Render the template with the variables.

    Raises TemplateError: the template is missing, cannot be parsed, fails, calls ``raise_exception`` or exceeds a
    limit, or no worker process can be started. The message is one line, with the template's line number if known.
    Raises InvalidRequest: the variables are too long.
    """
    if source is None:
        raise TemplateError("this model has no chat template; give the prompt as one text instead")
    if len(source) > SOURCE_CHARACTERS:
        raise TemplateError(f"the chat template has {len(source):,} characters; {SOURCE_CHARACTERS:,} are allowed")
    values = {"source": source, "variables": variables, **asdict(limits)}
    request = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(request) > REQUEST_BYTES:
        raise InvalidRequest(
            f"the conversation has {len(request):,} bytes as JSON; {REQUEST_BYTES:,} are allowed: shorten it"
        )
    reply = _workers.ask(request, limits.seconds, limits.megabytes)
    if isinstance(text := reply.get("text"), str):
        return text
    line = reply.get("line")
    at = f", line {line:,}" if isinstance(line, int) else ""
    raise TemplateError(f"chat template{at}: {_one_line(str(reply.get('error')))}")


def _one_line(text: str) -> str:
    """A template's error as one line of printable characters, shortened for a message."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(line) > MAX_MESSAGE_CHARACTERS:
        line = line[: MAX_MESSAGE_CHARACTERS - 3] + "..."
    return line or "no reason given"
