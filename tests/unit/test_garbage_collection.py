"""Garbage collection is disabled inside a block and restored afterwards."""

from __future__ import annotations

import gc
import threading

import pytest

from pellucid.util.interpreter import no_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_it_was_afterwards(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with no_collection(), no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="wrong"), no_collection():
            raise ValueError("wrong")
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if before else gc.disable()


def test_the_last_of_several_threads_ends_it() -> None:
    assert gc.isenabled()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with no_collection():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with no_collection():
        thread.start()
        inside.wait()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
