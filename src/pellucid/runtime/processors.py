"""Resources available to this process: cores with their NUMA nodes, CPU quota, memory and address space."""

from __future__ import annotations

import sys
from typing import Protocol

from msgspec import Struct

from pellucid.kernels.core.loop import MAX_THREADS
from pellucid.runtime.resources import Core


class Processors(Struct, frozen=True):
    """The processors that a process may use. ``cores`` are sorted by node.

    ``quota`` is a container's limit of CPU time, in processors; None: no limit.
    """

    cores: tuple[Core, ...]
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Number of usable logical processors, at most the quota."""
        return self._within_quota(sum(len(core.cpus) for core in self.cores))

    @property
    def fast_cores(self) -> tuple[Core, ...]:
        """The cores without the efficiency cores; all cores if there are only efficiency cores."""
        return tuple(core for core in self.cores if not core.efficiency) or self.cores

    @property
    def threads(self) -> int:
        """Default number of threads of a step: one for each performance core, at most the quota.

        More threads are not faster: the hyper-threads of a core share the resources that limit the kernels. Each thread
        computes an equal share of a step, so a step would wait for a thread on an efficiency core. Threads beyond the
        quota are slower: the system stops all threads for the rest of each scheduling period.
        """
        return min(self._within_quota(len(self.fast_cores)), MAX_THREADS)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes of the cores, ascending."""
        return tuple(sorted({core.node for core in self.cores}))

    def _within_quota(self, count: int) -> int:
        return max(1, count if self.quota is None else min(count, int(self.quota)))


class Resources(Protocol):
    """The functions of each module of ``resources/``."""

    def cores(self) -> tuple[Core, ...]:
        """The cores that this process may use, by node."""

    def core_count(self) -> int:
        """Number of physical cores of the machine, including cores that this process may not use; 0: not known."""

    def quota(self) -> float | None:
        """Limit of CPU time, in processors; None: no limit."""

    def machine_bytes(self) -> int:
        """Bytes of memory that the process may use, limited by the machine and the container; 0: not known."""

    def free_bytes(self) -> int | None:
        """Bytes of memory that this process can still allocate; None: not known."""

    def free_address_space(self) -> int | None:
        """Bytes of address space that this process can still reserve; None: no limit."""


def _resources() -> Resources:
    # Only the module of this system is imported: each start of the command needs it.
    if sys.platform == "darwin":
        from pellucid.runtime.resources import macos as system
    elif sys.platform == "win32":
        from pellucid.runtime.resources import windows as system
    else:
        from pellucid.runtime.resources import linux as system
    return system


def processors() -> Processors:
    """The processors of this process."""
    system = _resources()
    return Processors(system.cores(), system.quota())


def core_count() -> int:
    """Number of physical cores of the machine, including cores that this process may not use; 0: not known."""
    return _resources().core_count()


def machine_bytes() -> int:
    """Bytes of memory that the process may use, limited by the machine and the container; 0: not known."""
    return _resources().machine_bytes()


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate, limited by machine and container; None: not known."""
    return _resources().free_bytes()


def free_address_space() -> int | None:
    """Bytes of address space that this process can still reserve (``ulimit``); None: no limit."""
    return _resources().free_address_space()
