"""What this process may use: which cores, how much of them, near which memory they are; how much memory is free."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from pellucid.kernels.program.loop import MAX_THREADS

SYSTEM = Path("/")


class Core(Struct, frozen=True):
    """A physical core: the logical processors of it that may be used, and its NUMA node."""

    node: int
    cpus: frozenset[int]


class Processors(Struct, frozen=True):
    """What a process may use; ``cores`` are in the order of their nodes.

    ``quota`` is how many processors' time it may take (a container's limit); None: any.
    """

    cores: tuple[Core, ...]
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Number of logical processors."""
        return self._within_quota(sum(len(core.cpus) for core in self.cores))

    @property
    def threads(self) -> int:
        """How many threads run a step by default: one for each physical core.

        Hyper-threads share the resources that limit the kernels. More threads than the quota would all be stopped for
        the rest of each period of the scheduler.
        """
        return min(self._within_quota(len(self.cores)), MAX_THREADS)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes of the cores, ascending."""
        return tuple(sorted({core.node for core in self.cores}))

    def _within_quota(self, count: int) -> int:
        return max(1, count if self.quota is None else min(count, int(self.quota)))


def processors() -> Processors:
    """Those of this process."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Processors(_cores(SYSTEM, frozenset(allowed)), _quota(SYSTEM))


def core_count() -> int:
    """Number of physical cores of the machine, with those that this process may not use; 0: the system does not say."""
    return len(_cores(SYSTEM, frozenset(_listed(SYSTEM / "sys/devices/system/cpu/online"))))


def machine_bytes() -> int:
    """The bytes of memory that the process may use, by its machine and its container; 0: the system does not say."""
    return _machine_bytes(SYSTEM)


def _machine_bytes(system: Path) -> int:
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        found = []
    return min([*found, *(most for most, _ in _memory_limits(system))], default=0)


def free_bytes() -> int | None:
    """The bytes of memory that this process can still get, by the machine and its container; None: not known."""
    return _free_bytes(SYSTEM)


def _free_bytes(system: Path) -> int | None:
    """Source: the Linux kernel's documentation, filesystems/proc.rst and admin-guide/cgroup-v2.rst (memory.max)."""
    said = ((*line.split(), "", "") for line in _text(system / "proc/meminfo").splitlines())
    free = [1024 * int(kib) for name, kib, *_ in said if name == "MemAvailable:" and kib.isdecimal()]
    free += [max(0, most - used) for most, used in _memory_limits(system)]
    return min(free, default=None)


def _memory_limits(system: Path) -> Iterator[tuple[int, int]]:
    """The most bytes that the process's control groups may take, and those that they take."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    for group, version in _groups(system, "memory"):
        most, used = (_text(group / name).strip() for name in names[version])
        if most.isdecimal() and used.isdecimal():
            yield int(most), int(used)


@functools.lru_cache(8)
def _cores(system: Path, allowed: frozenset[int]) -> tuple[Core, ...]:
    """The cores of ``allowed`` logical processors; one that the system does not describe is a core of node 0."""
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
    """The least quota of the process's control groups (cgroups), version 2 or 1; None: there is none.

    Source: the Linux kernel's documentation, admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst.
    """
    quotas = (
        _quota_1(group) if version == 1 else _quota_2(group) for group, version in _groups(system, "cpu")
    )
    return min((quota for quota in quotas if quota), default=None)


def _groups(system: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the process's control groups that may limit something, and their version, 1 or 2."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.replace("\0", "").split(":", 2), "", ""][:3]
        roots, version = [system / "sys/fs/cgroup"], 2
        if controller in controllers.split(","):
            roots, version = [roots[0] / name for name in {controller, controllers}], 1
        elif controllers:
            continue
        for root in roots:
            # Inside of a container the path may be that of the host; the root is the container's group then.
            group = root / path.lstrip("/")
            yield from ((one, version) for one in (group, *group.parents) if one.is_relative_to(root))


def _quota_2(group: Path) -> float | None:
    return _processors_of(*[*_text(group / "cpu.max").split(), "", ""][:2])


def _quota_1(group: Path) -> float | None:
    return _processors_of(*(_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")))


def _processors_of(limit: str, period: str) -> float | None:
    """How many processors' time a limit in each period is; None: it is no limit."""
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() and int(period) else None


def _listed(path: Path) -> Iterable[int]:
    """The numbers of a list such as "0-3,8"; none if there is no such file."""
    for part in _text(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last if last.isdecimal() else first) + 1)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
