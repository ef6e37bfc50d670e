"""The Python interpreter: garbage collection, waits that Ctrl-C interrupts, modules by function name, processes."""

from __future__ import annotations

import _thread
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import NoReturn, TypeVar

OWN_CONSOLE = 0x0800_0000 | 0x0000_0200 if sys.platform == "win32" else 0
"""Flags of CreateProcess for a process that Ctrl-C does not reach: CREATE_NO_WINDOW and CREATE_NEW_PROCESS_GROUP."""

# Python's garbage collection: off while many long-lived objects are created, frequent while requests run.

NEW_OBJECTS = 2000
_lock = threading.Lock()
_inside = 0  # number of threads in ``no_collection``
_enabled = False  # True if collection was on before the first of these threads entered


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn garbage collection off in this process while the context lasts. Threads may use it at the same time.

    Reading and planning a model creates 10^5 objects. Repeated collections would take 30 to 60 ms.
    """
    global _inside, _enabled
    with _lock:
        if not _inside:
            _enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _enabled:
                gc.enable()


def collect_requests() -> None:
    """Collect new objects often, and existing objects never. A server calls this when it starts.

    An error in a reference cycle keeps its traceback alive, and the traceback keeps the body and the logits of the
    request alive. Commands that end soon need no frequent collection.
    """
    gc.collect()
    gc.freeze()
    # Python delays a full collection until the number of old objects has grown by a quarter. This call sets it to 0.
    gc.collect()
    gc.set_threshold(NEW_OBJECTS, 10, 10)


# A module whose name is a function in another library: a call of the module says what to call instead.


class UncallableModule(ModuleType):
    """A module that raises TypeError with ``remedy`` if it is called."""

    remedy: str

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{self.__name__} is a module: {self.remedy}")


def explain_calls(module: str, remedy: str) -> None:
    """Let calls of an imported module raise TypeError with ``remedy``."""
    found = sys.modules[module]
    found.__class__ = UncallableModule
    found.__dict__["remedy"] = remedy


# Waits that Ctrl-C interrupts on every system. Python on Windows cannot interrupt a thread that waits for a lock. There
# a wait ends after ``SLICE`` seconds and begins again, and Ctrl-C raises its exception in between.

T = TypeVar("T")

SLICE: float | None = 0.1 if sys.platform == "win32" else None


def get(queue: SimpleQueue[T]) -> T:
    """The next item of a queue."""
    while True:
        try:
            return queue.get(timeout=SLICE)
        except Empty:
            pass


def join(thread: threading.Thread) -> None:
    """Wait until a thread ends."""
    thread.join(SLICE)
    while thread.is_alive():
        thread.join(SLICE)


def run_apart(work: Callable[[Callable[[], None]], T], stop: Callable[[], object] = lambda: None) -> T:
    """Run ``work(check)`` in a thread, and return its result or raise its error.

    After Ctrl-C, ``check()`` raises KeyboardInterrupt in ``work``; ``stop`` is called, and ``work`` must end.

    Ctrl-C interrupts the main thread anywhere, also after it has acquired the lock of a `Condition` or a `Future` and
    before the ``with`` that would release it. Other threads then wait for this lock forever. The main thread therefore
    leaves such work to another thread, and holds no lock while it waits.
    """
    results, errors, ended = list[T](), list[BaseException](), SimpleQueue[None]()
    stopped = False

    def check() -> None:
        if stopped:
            raise KeyboardInterrupt

    def run() -> None:
        try:
            results.append(work(check))
        except BaseException as error:
            errors.append(error)
        ended.put(None)

    _thread.start_new_thread(run, ())  # the start of a ``threading.Thread`` waits for a Condition
    try:
        get(ended)
    except BaseException:
        stopped = True
        stop()
        if not (results or errors):  # Ctrl-C may also come after ``get`` has taken the item
            get(ended)
        raise
    if errors:
        raise errors[0]
    return results[0]
