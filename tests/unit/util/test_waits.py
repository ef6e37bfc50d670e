"""Waits in slices, as on Windows, where Ctrl-C cannot interrupt a wait for a lock."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest
from support.processes import interrupt_main

from pellucid.util import interpreter
from pellucid.util.interpreter import get, join, run_apart


@pytest.mark.parametrize("seconds", [None, 0.01])
def test_waits_end_with_what_they_wait_for(monkeypatch: pytest.MonkeyPatch, seconds: float | None) -> None:
    monkeypatch.setattr(interpreter, "SLICE", seconds)
    queue = SimpleQueue[int]()
    thread = threading.Timer(0.1, queue.put, (5,))
    thread.start()
    assert get(queue) == 5
    join(thread)
    assert not thread.is_alive()


@pytest.mark.parametrize("wait", ["get", "join"])
def test_an_interrupt_between_two_slices_ends_a_wait(monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    monkeypatch.setattr(interpreter, "SLICE", 0.02)
    done, ended = threading.Event(), list[bool]()
    thread = threading.Thread(target=lambda: ended.append(done.wait(20)))
    thread.start()
    # Unlike a signal, this does not wake the main thread, as on Windows.
    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        get(SimpleQueue[int]()) if wait == "get" else join(thread)
    assert not ended, "the wait ended before what it waits for"
    done.set()
    thread.join()


def test_work_apart_returns_its_result_or_raises_its_error() -> None:
    assert run_apart(lambda check: 5) == 5
    assert run_apart(lambda check: threading.get_ident()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        run_apart(lambda check: 1 // 0)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_stops_work_apart_and_waits_for_its_end() -> None:
    stopped, ended = threading.Event(), list[bool]()

    def work(check: Callable[[], None]) -> None:
        check()  # nothing yet
        ended.append(stopped.wait(20))
        check()
        ended.append(False)

    threading.Timer(0.2, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        run_apart(work, stopped.set)
    assert ended == [True]


def test_an_interrupt_after_the_end_of_the_work_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = list[bool]()

    def taken_and_interrupted(queue: SimpleQueue[None]) -> None:
        queue.get(timeout=20)
        assert not stopped, "the work has ended: nothing puts a second item"
        raise KeyboardInterrupt

    monkeypatch.setattr(interpreter, "get", taken_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_apart(lambda check: 5, lambda: stopped.append(True))
    assert stopped
