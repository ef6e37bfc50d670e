"""On which cores a team's threads run, and in which memory weights and pages lie.

On a machine with several memory nodes (NUMA: two sockets, for example) a core reads its own node's memory faster, and
all nodes together give their sum. So the threads are spread evenly over the nodes, each thread's part of every matrix
lies in its node's memory, and what all threads read, keys and values and the matrices of experts, lies in turns in the
memory of each. Memory is placed when it is first touched, whoever touches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.runtime.memory import address
from pellucid.runtime.processors import Processors, processors

Pin = Literal["none", "nodes", "cores"]
PINS: tuple[str, ...] = get_args(Pin)

_MBIND = {"x86_64": 237, "aarch64": 235}  # system calls of Linux: man 2 mbind
_PREFERRED, _INTERLEAVE = 1, 3


class Placement:
    """The places of ``threads`` threads.

    ``pin`` says what each thread is bound to: "nodes", the cores of a node; "cores", a core of its own; "none". By
    default "nodes" on a machine that has several, and "none" on others.

    Raises:
        InvalidRequest: ``pin`` is none of these, there are more threads than cores to bind to, or the system binds
            no threads.
    """

    def __init__(self, threads: int, pin: str | None = None, machine: Processors | None = None) -> None:
        machine = machine or processors()
        several, cores = len(machine.nodes) > 1, machine.cores
        self.pin = ("nodes" if several else "none") if pin is None else pin
        if self.pin not in PINS:
            raise InvalidRequest(f"pin={pin!r}: must be one of {', '.join(PINS)}")
        if self.pin != "none" and not hasattr(os, "sched_setaffinity"):
            raise InvalidRequest(f"pin={pin!r}: {sys.platform} binds no threads; leave pin out")
        if self.pin == "cores" and threads > len(cores):
            raise InvalidRequest(
                f"pin='cores': {threads} threads, {len(cores)} cores; use as many threads at most"
            )
        own = [cores[thread * len(cores) // threads] for thread in range(threads)]
        self.threads = threads
        self._nodes = tuple(core.node for core in own) if several and self.pin != "none" else (0,) * threads
        self._seats: list[frozenset[int] | None] = [None] * threads
        if self.pin == "cores":
            self._seats = [core.cpus for core in own]
        elif self.pin == "nodes":
            of_node = {
                node: frozenset[int]().union(*(core.cpus for core in cores if core.node == node))
                for node in machine.nodes
            }
            self._seats = [of_node[core.node] for core in own]

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of each thread; all the same if memory is not placed."""
        return self._nodes

    def seat(self, thread: int) -> frozenset[int] | None:
        """The logical processors that a thread is bound to; None: it is not."""
        return self._seats[thread]

    def sit(self, thread: int) -> None:
        """Bind the calling thread, which is this one of the team, if the system still gives it these processors."""
        seat = self._seats[thread]
        if seat is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, seat)

    def divide(self, memory: NDArray[np.uint8], ends: Sequence[int]) -> None:
        """Place memory that nobody has touched: the bytes from ``ends[t - 1]`` to ``ends[t]`` near thread t."""
        begin = 0
        for thread, end in enumerate(ends):
            if thread + 1 == self.threads or self._nodes[thread] != self._nodes[thread + 1]:
                self._place(memory[begin:end], _PREFERRED, [self._nodes[thread]])
                begin = end

    def interleave(self, memory: NDArray[np.uint8]) -> None:
        """Place the pages of memory, which nobody has touched, in turns near all threads."""
        self._place(memory, _INTERLEAVE, sorted(set(self._nodes)))

    def _place(self, memory: NDArray[np.uint8], policy: int, nodes: Sequence[int]) -> None:
        """Ask Linux to place the pages that begin in ``memory``. It is a wish: a full node's pages go elsewhere."""
        number = _MBIND.get(platform.machine())
        if len(set(self._nodes)) < 2 or number is None or not len(memory):
            return
        page = os.sysconf("SC_PAGE_SIZE")
        begin, end = (-(-at // page) * page for at in (address(memory), address(memory) + len(memory)))
        mask = (ctypes.c_ulong * 16)()
        bits = 8 * ctypes.sizeof(ctypes.c_ulong)
        for node in nodes:
            mask[node // bits] |= 1 << node % bits
        if end > begin:
            call = ctypes.CDLL(None, use_errno=True).syscall
            call(
                ctypes.c_long(number), ctypes.c_void_p(begin), ctypes.c_ulong(end - begin), ctypes.c_int(policy),
                mask, ctypes.c_ulong(16 * bits), ctypes.c_uint(0),
            )  # fmt: skip
