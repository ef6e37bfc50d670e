"""Packing on several threads runs every piece once, and raises the error of any piece."""

from __future__ import annotations

import signal
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest

from pellucid.weights.pack import Packing, pack


def packings(pieces: list[Any]) -> list[Packing]:
    matrix: Any = None
    return [Packing(matrix, pieces[i : i + 7]) for i in range(0, len(pieces), 7)]


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_every_piece_runs_once(threads: int) -> None:
    done: list[int] = []
    pack(packings([partial(done.append, number) for number in range(500)]), threads)
    assert sorted(done) == list(range(500))


@pytest.mark.parametrize("error", [IndexError("in a piece"), KeyboardInterrupt(), ValueError("bad")])
def test_an_error_is_raised_and_ends_the_others(error: BaseException) -> None:
    done: list[int] = []

    def piece(number: int) -> None:
        if number == 3:
            raise error
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(type(error)):
        pack(packings([partial(piece, number) for number in range(500)]), 2)
    assert len(done) < 400
    assert not running()


def running() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "pellucid-pack" and one.is_alive()]


@pytest.mark.skipif(sys.platform == "win32", reason="a signal cannot be sent to a thread")
def test_no_piece_runs_after_ctrl_c() -> None:
    done: list[int] = []

    def piece(number: int) -> None:
        if number == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        pack(packings([partial(piece, number) for number in range(50)]), 2)
    assert not running()
    assert len(done) < 20
