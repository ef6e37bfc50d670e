"""Cores and memory on macOS.

macOS has no limits of CPU time, no NUMA nodes, and no way to bind a thread to a core: the numbers of the logical
processors are counts.
"""

from __future__ import annotations

import functools
import mmap
import os

from pellucid.runtime.resources import Core
from pellucid.util.macos import sysctl_number, sysctl_text, vm_statistics


def cores() -> tuple[Core, ...]:
    """The cores of the machine, performance cores first.

    Apple's processors have performance levels, the fastest first. A level counts as efficiency cores if it has this
    name. Source: Apple, "Determining system capabilities" (hw.nperflevels, hw.perflevelN.physicalcpu).
    """
    return _cores()


@functools.cache
def _cores() -> tuple[Core, ...]:
    found = list[Core]()
    for level in range(sysctl_number("hw.nperflevels")):
        slow = level > 0 and sysctl_text(f"hw.perflevel{level}.name") in ("Efficiency", "")
        physical, logical = (sysctl_number(f"hw.perflevel{level}.{kind}cpu") for kind in ("physical", "logical"))
        _append(found, physical, logical, slow)
    if not found:  # a Mac with an Intel processor
        physical, logical = sysctl_number("hw.physicalcpu"), sysctl_number("hw.logicalcpu")
        _append(found, physical or os.cpu_count() or 1, logical, False)
    return tuple(found)


def _append(found: list[Core], physical: int, logical: int, slow: bool) -> None:
    """Append ``physical`` cores that have ``logical`` logical processors together."""
    first, threads = sum(len(core.cpus) for core in found), max(logical // physical, 1) if physical else 0
    for core in range(physical):
        begin = first + core * threads
        found.append(Core(0, frozenset(range(begin, begin + threads)), slow))


def core_count() -> int:
    """Number of physical cores of the machine."""
    return len(_cores())


def quota() -> float | None:
    """Limit of CPU time, in processors: None, no limit."""
    return None


def machine_bytes() -> int:
    """Bytes of memory of the machine; 0: not known."""
    return sysctl_number("hw.memsize")


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate; None: not known.

    Inactive pages count as free, because the system reuses them first. Source: psutil, ``virtual_memory().available``.
    """
    pages = vm_statistics()
    return None if pages is None else (pages.free + pages.inactive) * mmap.PAGESIZE


def free_address_space() -> int | None:
    """Bytes of address space that this process can still reserve; None: no limit. This system has none."""
    return None
