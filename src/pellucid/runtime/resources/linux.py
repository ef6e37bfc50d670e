"""Cores, CPU quota and memory on Linux, from the files of /proc and /sys.

On a system without these files, each logical processor counts as a core, and the free memory is not known. ``SYSTEM``
is the folder of /proc and /sys.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from pellucid.runtime.resources import Core

SYSTEM = Path("/")
# A core is an efficiency core if its capacity is less than this share of the largest capacity. The efficiency cores of
# published Arm processors have 0.25 to 0.52 of it.
EFFICIENCY_CAPACITY = 0.6
# Arm and RISC-V processors state capacities. Intel's hybrid processors list the performance cores here instead.
PERFORMANCE_CORES = "sys/devices/cpu_core/cpus"


def cores() -> tuple[Core, ...]:
    """The cores that this process may use, by node."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return cores_of(SYSTEM, frozenset(allowed))


def core_count() -> int:
    """Number of physical cores of the machine, including cores that this process may not use; 0: not known."""
    return len(cores_of(SYSTEM, frozenset(_listed(SYSTEM / "sys/devices/system/cpu/online"))))


def quota() -> float | None:
    """Limit of CPU time, in processors; None: no limit."""
    return quota_of(SYSTEM)


def machine_bytes() -> int:
    """Bytes of memory that the process may use, limited by the machine and the container; 0: not known."""
    return machine_bytes_of(SYSTEM)


def free_address_space() -> int | None:
    """Bytes of address space that this process can still reserve; None: no limit."""
    return free_address_space_of(SYSTEM)


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate, limited by machine and container; None: not known."""
    return free_bytes_of(SYSTEM)


@functools.lru_cache(8)
def cores_of(system: Path, allowed: frozenset[int]) -> tuple[Core, ...]:
    """The cores of the ``allowed`` logical processors. A processor without system files counts as a core of node 0."""
    node_of = {}
    for folder in (system / "sys/devices/system/node").glob("node[0-9]*"):
        node_of.update(dict.fromkeys(_listed(folder / "cpulist"), int(folder.name.removeprefix("node"))))
    slow, found = _efficiency(system, allowed), {}
    for cpu in sorted(allowed):
        siblings = system / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cpus = (frozenset(_listed(siblings)) | {cpu}) & allowed
        found[min(cpus)] = Core(node_of.get(cpu, 0), cpus, cpu in slow)
    return tuple(sorted(found.values(), key=lambda core: (core.node, min(core.cpus))))


def _efficiency(system: Path, allowed: frozenset[int]) -> Set[int]:
    """The allowed logical processors of efficiency cores. Empty if all allowed processors are of one kind.

    Source: Linux kernel documentation, ABI/testing/sysfs-devices-system-cpu (cpu_capacity); for Intel's hybrid
    processors tools/perf/Documentation/intel-hybrid.txt (cpu_core).
    """
    if fast := allowed & frozenset(_listed(system / PERFORMANCE_CORES)):
        return allowed - fast
    texts = {cpu: _text(system / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").strip() for cpu in allowed}
    capacities = {cpu: int(text) for cpu, text in texts.items() if text.isdecimal()}
    least = EFFICIENCY_CAPACITY * max(capacities.values(), default=0)
    return {cpu for cpu, capacity in capacities.items() if capacity < least}


def machine_bytes_of(system: Path) -> int:
    found = []
    if hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits = [limit for limit, _ in (*_memory_limits(system), *_address_limits(system))]
    return min([*found, *limits], default=0)


def free_bytes_of(system: Path) -> int | None:
    """Free memory. Source: Linux kernel documentation, filesystems/proc.rst, admin-guide/cgroup-v2.rst (memory.max)."""
    lines = ((*line.split(), "", "") for line in _text(system / "proc/meminfo").splitlines())
    free = [1024 * int(kib) for name, kib, *_ in lines if name == "MemAvailable:" and kib.isdecimal()]
    free += [max(0, limit - used) for limit, used in _memory_limits(system)]
    return min(free, default=None)


def free_address_space_of(system: Path) -> int | None:
    """As ``free_address_space``: what RLIMIT_AS and RLIMIT_DATA leave."""
    return min((max(0, limit - used) for limit, used in _address_limits(system)), default=None)


def _address_limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage, in bytes, of the address space and of its private part. Source: Linux man-pages, proc(5)."""
    if sys.platform == "win32":  # the tests of this module run there too
        return
    import resource

    sizes = [resource.getpagesize() * int(pages) for pages in _text(system / "proc/self/statm").split()]
    total, data = (sizes[0], sizes[5]) if len(sizes) > 5 else (0, 0)
    for name, used in (("RLIMIT_AS", total), ("RLIMIT_DATA", data)):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            yield limit, used


def _memory_limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage of memory, in bytes, of each control group of the process that has a limit.

    The usage is without cached files, because the system drops them when memory is needed.
    """
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    caches = {1: ("total_inactive_file", "total_active_file"), 2: ("inactive_file", "active_file")}
    for group, version in _groups(system, "memory"):
        limit, used = (_text(group / name).strip() for name in names[version])
        if limit.isdecimal() and used.isdecimal():
            lines = _text(group / "memory.stat").splitlines()
            stat = dict(line.split(" ", 1) for line in lines if " " in line)
            cached = sum(int(stat[name]) for name in caches[version] if stat.get(name, "").isdecimal())
            yield int(limit), max(0, int(used) - cached)


@functools.lru_cache(8)
def quota_of(system: Path) -> float | None:
    """The lowest CPU quota of the process's control groups (cgroups), version 2 or 1; None: no quota.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst.
    """
    quotas = (_quota_1(group) if version == 1 else _quota_2(group) for group, version in _groups(system, "cpu"))
    return min((quota for quota in quotas if quota), default=None)


def _groups(system: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the process's control groups for a controller, and their version, 1 or 2."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.replace("\0", "").split(":", 2), "", ""][:3]
        roots, version = [system / "sys/fs/cgroup"], 2
        if controller in controllers.split(","):
            roots, version = [roots[0] / name for name in {controller, controllers}], 1
        elif controllers:
            continue
        for root in roots:
            # In a container, the path may be a path on the host. The root folder is then the container's group.
            group = root / path.lstrip("/")
            yield from ((one, version) for one in (group, *group.parents) if one.is_relative_to(root))


def _quota_2(group: Path) -> float | None:
    return _processors_of(*[*_text(group / "cpu.max").split(), "", ""][:2])


def _quota_1(group: Path) -> float | None:
    return _processors_of(*(_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")))


def _processors_of(limit: str, period: str) -> float | None:
    """Convert a limit of CPU time per period to a number of processors; None: no limit."""
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() and int(period) else None


def _listed(path: Path) -> Iterable[int]:
    """The numbers of a list such as "0-3,8" in a file; empty if the file does not exist."""
    for part in _text(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last if last.isdecimal() else first) + 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
