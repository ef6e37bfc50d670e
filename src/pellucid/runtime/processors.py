"""Resources available to this process: cores with their NUMA nodes, CPU quota, memory and address space."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from pellucid.kernels.program.loop import MAX_THREADS

SYSTEM = Path("/")


class Core(Struct, frozen=True):
    """A physical core: its NUMA node, and its logical processors that this process may use."""

    node: int
    cpus: frozenset[int]


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
    def threads(self) -> int:
        """Default number of threads of a step: one for each physical core, at most the quota.

        More threads are not faster: the hyper-threads of a core share the resources that limit the kernels. Threads
        beyond the quota are slower: the system stops all threads for the rest of each scheduling period.
        """
        return min(self._within_quota(len(self.cores)), MAX_THREADS)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes of the cores, ascending."""
        return tuple(sorted({core.node for core in self.cores}))

    def _within_quota(self, count: int) -> int:
        return max(1, count if self.quota is None else min(count, int(self.quota)))


def processors() -> Processors:
    """The processors of this process."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Processors(_cores(SYSTEM, frozenset(allowed)), _quota(SYSTEM))


def core_count() -> int:
    """Number of physical cores of the machine, including cores that this process may not use; 0: not known."""
    return len(_cores(SYSTEM, frozenset(_listed(SYSTEM / "sys/devices/system/cpu/online"))))


def machine_bytes() -> int:
    """Bytes of memory that the process may use, limited by machine, container and ``ulimit``; 0: not known."""
    return _machine_bytes(SYSTEM)


def _machine_bytes(system: Path) -> int:
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        found = []
    limits = [limit for limit, _ in (*_memory_limits(system), *_address_limits(system))]
    return min([*found, *limits], default=0)


def free_bytes() -> int | None:
    """Bytes of memory that this process can still allocate, limited by machine and container; None: not known."""
    return _free_bytes(SYSTEM)


def _free_bytes(system: Path) -> int | None:
    """Free memory. Source: Linux kernel documentation, filesystems/proc.rst, admin-guide/cgroup-v2.rst (memory.max)."""
    lines = ((*line.split(), "", "") for line in _text(system / "proc/meminfo").splitlines())
    free = [1024 * int(kib) for name, kib, *_ in lines if name == "MemAvailable:" and kib.isdecimal()]
    free += [max(0, limit - used) for limit, used in _memory_limits(system)]
    return min(free, default=None)


def free_address_space() -> int | None:
    """Bytes of address space that this process can still reserve (RLIMIT_AS, RLIMIT_DATA); None: no limit."""
    return min((max(0, limit - used) for limit, used in _address_limits(SYSTEM)), default=None)


def _address_limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage, in bytes, of the address space and of its private part. Source: Linux man-pages, proc(5)."""
    try:
        import resource
    except ImportError:  # Windows
        return
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
    for group, version in _groups(system, "memory"):
        limit, used = (_text(group / name).strip() for name in names[version])
        if limit.isdecimal() and used.isdecimal():
            cached = (
                ("total_inactive_file", "total_active_file")
                if version == 1
                else ("inactive_file", "active_file")
            )
            stat = dict(
                line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line
            )
            reclaimable = sum(int(stat[name]) for name in cached if stat.get(name, "").isdecimal())
            yield int(limit), max(0, int(used) - reclaimable)


@functools.lru_cache(8)
def _cores(system: Path, allowed: frozenset[int]) -> tuple[Core, ...]:
    """The cores of the ``allowed`` logical processors. A processor without system files counts as a core of node 0."""
    node_of = {}
    for folder in (system / "sys/devices/system/node").glob("node[0-9]*"):
        node_of.update(dict.fromkeys(_listed(folder / "cpulist"), int(folder.name.removeprefix("node"))))
    found = {}
    for cpu in sorted(allowed):
        siblings = system / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cpus = (frozenset(_listed(siblings)) | {cpu}) & allowed
        found[min(cpus)] = Core(node_of.get(cpu, 0), cpus)
    return tuple(sorted(found.values(), key=lambda core: (core.node, min(core.cpus))))


@functools.lru_cache(8)
def _quota(system: Path) -> float | None:
    """The lowest CPU quota of the process's control groups (cgroups), version 2 or 1; None: no quota.

    Source: Linux kernel documentation, admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst.
    """
    quotas = (
        _quota_1(group) if version == 1 else _quota_2(group) for group, version in _groups(system, "cpu")
    )
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
        return path.read_text()
    except (OSError, ValueError):
        return ""
