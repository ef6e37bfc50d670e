"""Job objects and priorities of Windows and macOS, with libraries that record their calls."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support.systems import BOOT_OF_WINDOWS
from support.workers import own_workers

from pellucid.errors import TemplateError
from pellucid.sample.grammars import grammar
from pellucid.tokenize.chat import template, template_pipes
from pellucid.tokenize.chat.template import render
from pellucid.util import macos, windows

JOB, PROCESS = 0x7FFF_0000_0040, 0x7FFF_0000_0044  # handles that do not fit into 32 bits


class Function:
    """A function of a library. Its result is an int of 32 bits unless ``restype`` is set, as in ctypes."""

    def __init__(self, body: Callable[..., int]) -> None:
        self._body, self.restype = body, ctypes.c_int

    def __call__(self, *arguments: Any) -> int:
        return self.restype(self._body(*arguments)).value


class Kernel32:
    """Records the jobs, their limits, and the handles that are closed. Functions in ``failing`` fail."""

    def __init__(self, *failing: str) -> None:
        self.limits = list[tuple[int, int, int]]()
        self.members, self.closed = list[tuple[int, int]](), list[int]()
        self.opened: tuple[int, int] | None = None
        self.commit = 50 << 20
        self.CreateJobObjectW = Function(lambda *_: JOB)
        self.OpenProcess = Function(self._open)
        for name in failing:
            setattr(self, name, Function(lambda *_: 0))

    def _open(self, rights: Any, inherited: int, process: Any) -> int:
        self.opened = rights.value, process.value
        return PROCESS

    def SetInformationJobObject(self, job: Any, kind: Any, limits: Any, size: Any) -> int:
        assert (job.value, kind.value, size.value) == (JOB, 9, 144)
        data = bytes(limits._obj)
        (flags,) = struct.unpack_from("<I", data, 16)
        process, whole = struct.unpack_from("<QQ", data, 112)
        self.limits.append((flags, process, whole))
        return 1

    def AssignProcessToJobObject(self, job: Any, process: Any) -> int:
        self.members.append((job.value, process.value))
        return 1

    def K32GetProcessMemoryInfo(self, process: Any, out: Any, size: Any) -> int:
        assert process.value == PROCESS
        struct.pack_into("<Q", (ctypes.c_char * 72).from_address(ctypes.addressof(out._obj)), 56, self.commit)
        return 1

    def CloseHandle(self, handle: Any) -> int:
        self.closed.append(handle.value)
        return 1


@pytest.fixture
def kernel32(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel32]:
    def make(*failing: str) -> Kernel32:
        system = Kernel32(*failing)
        monkeypatch.setattr(windows, "library", lambda name: {"kernel32": system}[name])
        return system

    return make


def test_a_job_limits_its_process_and_ends_with_this_process(kernel32: Any) -> None:
    system = kernel32()
    job = windows.JobObject(4711)
    assert system.opened == (0x1101, 4711)  # terminate, set quota, query limited information
    assert system.members == [(JOB, PROCESS)]
    job.limit(512 << 20)
    job.limit(512 << 20)  # does not ask again
    job.limit(300 << 20)
    assert system.limits == [(0x2400, 0, 0), (0x2500, 512 << 20, 0), (0x2500, 300 << 20, 0)]
    assert job.allocated_bytes == 50 << 20
    job.close()
    assert sorted(system.closed) == [JOB, PROCESS]


@pytest.mark.parametrize(
    ("failing", "closed"),
    [
        ("CreateJobObjectW", []),
        ("OpenProcess", [JOB]),
        ("SetInformationJobObject", [JOB, PROCESS]),
        ("AssignProcessToJobObject", [JOB, PROCESS]),
    ],
)
def test_a_job_that_cannot_be_made_leaves_nothing_open(kernel32: Any, failing: str, closed: list[int]) -> None:
    system = kernel32(failing)
    with pytest.raises(OSError, match="only"):
        windows.JobObject(4711)
    assert sorted(system.closed) == closed


def test_a_worker_runs_in_a_job(kernel32: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_workers() as workers:
        system = kernel32()
        monkeypatch.setattr(template, "memory_of", template_pipes.JobMemory)
        monkeypatch.setattr(template, "BOOT", BOOT_OF_WINDOWS)
        assert render("{{ 1 }}", {}) == "1"
        (pid,) = workers.pids
        assert system.opened[1] == pid
        assert system.limits[-1] == (0x2500, 512 << 20, 0)
        system.commit = 200 << 20
        assert render("{{ 2 }}", {}) == "2"
        assert not workers.running  # ended, because it was large
        assert sorted(system.closed) == [JOB, PROCESS]
        kernel32("AssignProcessToJobObject")
        with pytest.raises(TemplateError, match=r"its memory cannot be limited: "):
            render("{{ 3 }}", {})
        assert not workers.running


def begin_thread(name: str) -> None:
    """Run a thread of a new pool of grammars to its end."""
    with grammar.pool.__wrapped__(name) as pool:
        pool.submit(int).result()


def test_a_thread_of_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, int]]()

    class Threads:
        GetCurrentThread = Function(lambda: -2)

        def SetThreadPriority(self, thread: Any, priority: int) -> int:
            asked.append((thread.value, priority))
            return 1

    monkeypatch.setattr(windows, "library", lambda name: Threads())
    monkeypatch.setattr(grammar.sys, "platform", "win32")
    begin_thread("mask")
    assert not asked
    begin_thread("large")
    assert asked == [((1 << 64) - 2, -1)]


def test_a_thread_of_low_priority_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    class Darwin:
        def pthread_set_qos_class_self_np(self, quality: Any, relative: int) -> int:
            asked.append(quality.value)
            return 0

    monkeypatch.setattr(macos, "library", Darwin)
    monkeypatch.setattr(grammar.sys, "platform", "darwin")
    begin_thread("mask")
    assert not asked
    begin_thread("slow")
    assert asked == [0x11]


def test_a_process_that_is_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, bytes]]()

    class Power:
        def SetProcessInformation(self, process: Any, kind: int, state: Any, size: Any) -> int:
            assert size.value == 12
            asked.append((kind, bytes(state._obj)))
            return 1

    monkeypatch.setattr(windows, "library", lambda name: Power())
    windows.prevent_throttling()
    assert asked == [(4, struct.pack("<III", 1, 1, 0))]  # version, control of the execution speed, off
