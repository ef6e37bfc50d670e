"""Cores, CPU quota and memory on Windows.

The number of a logical processor is 64 times its processor group, plus its number in the group.
"""

from __future__ import annotations

import functools
import os

from pellucid.runtime.resources import Core
from pellucid.util import windows


def cores() -> tuple[Core, ...]:
    """The cores that this process may use, by node.

    A core is an efficiency core if another core has a higher efficiency class. Faster cores have a higher class.
    """
    machine = _relations(windows.CORE)
    every = frozenset[int]().union(*(core.cpus for core in machine))
    if not every:
        return tuple(Core(0, frozenset({cpu})) for cpu in range(os.cpu_count() or 1))
    allowed = windows.allowed_cpus(every)
    node_of = {cpu: node.value for node in _relations(windows.NODE) for cpu in node.cpus}
    usable = [core for core in machine if core.cpus & allowed]
    best = max(core.value for core in usable)
    found = [Core(node_of.get(min(core.cpus), 0), core.cpus & allowed, core.value < best) for core in usable]
    return tuple(sorted(found, key=lambda core: (core.node, min(core.cpus))))


@functools.cache
def _relations(kind: int) -> tuple[windows.Relation, ...]:
    return windows.relations(kind)


def core_count() -> int:
    """Number of physical cores of the machine, including cores that this process may not use; 0: not known."""
    return len(_relations(windows.CORE))


def quota() -> float | None:
    """Limit of CPU time of the process's job, in processors; None: no limit."""
    share = windows.job_cpu_share()
    return None if share is None else share * (os.cpu_count() or 1)


def machine_bytes() -> int:
    """Bytes of memory that the process may use, limited by the machine and the job; 0: not known."""
    status = windows.memory_status()
    found = [] if status is None else [int(status.total)]
    return min([*found, *(limit for limit, _ in windows.job_memory_limits())], default=0)


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate; None: not known.

    Windows counts memory when it is allocated, not when it is first touched, and fails if RAM and page file together
    cannot hold it.
    """
    status = windows.memory_status()
    free = [] if status is None else [int(status.free), int(status.free_commit)]
    free += [max(0, limit - used) for limit, used in windows.job_memory_limits()]
    return min(free, default=None)


def free_address_space() -> int | None:
    """Bytes of address space that this process can still reserve; None: no limit. This system has none."""
    return None
