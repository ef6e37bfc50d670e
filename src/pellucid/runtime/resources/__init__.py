"""Cores, CPU quota and memory that the system gives to this process: one module for each system.

Each module has the functions of ``processors.Resources``.
"""

from __future__ import annotations

from msgspec import Struct


class Core(Struct, frozen=True):
    """A physical core: its NUMA node, and its logical processors that this process may use.

    ``efficiency`` is True for the slower cores of a processor with several kinds of cores.
    """

    node: int
    cpus: frozenset[int]
    efficiency: bool = False
