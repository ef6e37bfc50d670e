"""Ctrl-C while kernels are compiled."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pellucid.kernels.core import library


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_takes_effect_at_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with library.delayed():
            press_ctrl_c()
            press_ctrl_c()
            done.append("compiled")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["compiled"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_is_the_error_that_it_was() -> None:
    with pytest.raises(LookupError), library.delayed():
        raise LookupError


def test_other_threads_have_no_signals_to_hold_back() -> None:
    done = []

    def work() -> None:
        with library.delayed():
            done.append("compiled")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["compiled"]
