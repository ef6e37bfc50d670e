"""Waits in slices, as on Windows, where Ctrl-C cannot interrupt a wait for a lock."""

from __future__ import annotations

import _thread
import threading
import time
from queue import SimpleQueue

import pytest

from pellucid.util import interpreter
from pellucid.util.interpreter import get, join


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
    done = threading.Event()
    thread = threading.Thread(target=done.wait, args=(20,))
    thread.start()
    # Unlike a signal, this does not wake the main thread, as on Windows.
    threading.Timer(0.2, _thread.interrupt_main).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        get(SimpleQueue[int]()) if wait == "get" else join(thread)
    assert time.monotonic() - began < 5
    done.set()
    thread.join()
