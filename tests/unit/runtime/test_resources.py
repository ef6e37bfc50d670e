"""Cores and memory on macOS and Windows, from recorded answers of both systems.

``Kernel32`` and ``Darwin`` stand for the systems' libraries. They fill the caller's structures, as the systems do.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from support.fresh import fresh

from pellucid.runtime.processors import Processors
from pellucid.runtime.resources import Core
from pellucid.runtime.resources import macos as macos_resources
from pellucid.runtime.resources import windows as windows_resources
from pellucid.util import macos, windows

GB = 1 << 30

# From `sysctl hw` on Macs.
M1_MAX = {
    "hw.nperflevels": 2, "hw.physicalcpu": 10, "hw.logicalcpu": 10, "hw.memsize": 32 * GB,
    "hw.perflevel0.physicalcpu": 8, "hw.perflevel0.logicalcpu": 8, "hw.perflevel0.name": "Performance",
    "hw.perflevel1.physicalcpu": 2, "hw.perflevel1.logicalcpu": 2, "hw.perflevel1.name": "Efficiency",
}  # fmt: skip
M3_PRO = {
    **M1_MAX, "hw.perflevel0.physicalcpu": 5, "hw.perflevel0.logicalcpu": 5,
    "hw.perflevel1.physicalcpu": 6, "hw.perflevel1.logicalcpu": 6,
}  # fmt: skip
M5_PRO = {
    **M1_MAX, "hw.perflevel0.physicalcpu": 6, "hw.perflevel0.logicalcpu": 6, "hw.perflevel0.name": "Super",
    "hw.perflevel1.physicalcpu": 12, "hw.perflevel1.logicalcpu": 12, "hw.perflevel1.name": "Performance",
}  # fmt: skip
INTEL_MAC = {"hw.physicalcpu": 6, "hw.logicalcpu": 12, "hw.memsize": 16 * GB}


class Darwin:
    """macOS's C library: ``sysctlbyname`` with the given values, and Mach's statistics of ``pages``."""

    def __init__(self, values: Mapping[str, int | str], pages: bytes = b"") -> None:
        self._values, self._pages = values, pages

    def sysctlbyname(self, name: bytes, out: Any, size: Any, new: Any, new_size: Any) -> int:
        value = self._values.get(name.decode())
        if value is None:
            return -1
        data = value.encode() + b"\0" if isinstance(value, str) else value.to_bytes(8 if value >> 32 else 4, "little")
        size._obj.value = len(data)
        if out is not None:
            ctypes.memmove(out, data, len(data))
        return 0

    def mach_host_self(self) -> int:
        return 0x1303

    def host_statistics64(self, host: Any, flavour: int, out: Any, count: Any) -> int:
        needed = len(self._pages) // 4
        if flavour != 4 or count._obj.value < needed:  # as XNU: HOST_VM_INFO64_REV0_COUNT
            return 5
        ctypes.memmove(out, self._pages, len(self._pages))
        return 0


@pytest.fixture
def on_macos(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Begins a process on a described machine. Returns the module of its resources."""

    def begin(values: Mapping[str, int | str], pages: bytes = b"") -> Any:
        library = Darwin(values, pages)
        monkeypatch.setattr(macos, "library", lambda: library)
        return fresh(macos_resources)

    monkeypatch.setattr(macos_resources.mmap, "PAGESIZE", 16384)
    return begin


@pytest.mark.parametrize(
    ("values", "threads", "cores", "usable"),
    [(M1_MAX, 8, 10, 10), (M3_PRO, 5, 11, 11), (M5_PRO, 18, 18, 18), (INTEL_MAC, 6, 6, 12)],
)
def test_macs(on_macos: Any, values: dict[str, int | str], threads: int, cores: int, usable: int) -> None:
    here = on_macos(values)
    machine = Processors(here.cores(), here.quota())
    assert (machine.threads, here.core_count(), machine.usable) == (threads, cores, usable)
    assert len(machine.cores) == cores
    cpus = [cpu for core in machine.cores for cpu in core.cpus]
    assert len(set(cpus)) == len(cpus)
    assert here.machine_bytes() == values["hw.memsize"]


def test_free_memory_of_a_mac(on_macos: Any) -> None:
    # vm_statistics64 of revision 0, as in `vm_stat`: free, active, inactive, wired; counters; purgeable, speculative.
    pages = struct.pack("<4I9Q2I", 7_000, 300_000, 290_000, 120_000, *range(9), 5_000, 3_000)
    here = on_macos(M1_MAX, pages)
    assert here.free_bytes() == 297_000 * 16384


def test_a_mac_that_reports_nothing_has_a_core_for_each_processor(
    on_macos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = on_macos({}, b"\0" * 400)  # statistics of a kernel that wants a larger structure
    monkeypatch.setattr(here.os, "cpu_count", lambda: 3)
    assert len(here.cores()) == 3
    assert (here.machine_bytes(), here.free_bytes()) == (0, None)


def core_record(efficiency: int, mask: int, group: int = 0) -> bytes:
    """A record of a core, as GetLogicalProcessorInformationEx returns it."""
    smt = int(mask & (mask - 1) != 0)
    return struct.pack("<IIBB20xHQH6x", 0, 48, smt, efficiency, 1, mask, group)


def node_record(number: int, mask: int, group: int = 0, groups: int = 1) -> bytes:
    return struct.pack("<III18xHQH6x", 1, 48, number, groups, mask, group)


I7_12700 = b"".join([*(core_record(1, 3 << 2 * n) for n in range(8)), *(core_record(0, 1 << n) for n in range(16, 20))])
LUNAR_LAKE = b"".join([*(core_record(1, 1 << n) for n in range(4)), *(core_record(0, 1 << n) for n in range(4, 8))])
# Recorded: the cores, and the node, of a virtual machine with two processors.
RECORDED = (
    "000000003000000000000000000000000000000000000000000000000000010001000000000000000000000000000000"
    "000000003000000000000001000000000000000000000000000000000000010002000000000000000000000000000000"
)
RECORDED_NODE = "010000003000000000000000000000000000000000000000000000000000000003000000000000000000000000000000"


class Kernel32:
    """Windows' kernel32.dll for a described machine."""

    def __init__(
        self,
        cores: bytes,
        nodes: bytes = b"",
        groups: tuple[int, ...] = (0,),
        mask: int = (1 << 64) - 1,
        job: Mapping[int, bytes] | None = None,
    ) -> None:
        self._records, self._groups, self._mask, self._job = {0: cores, 1: nodes}, groups, mask, job or {}

    def GetLogicalProcessorInformationEx(self, kind: Any, out: Any, size: Any) -> int:
        records, room = self._records[kind.value], size._obj.value
        size._obj.value = len(records)
        if out is None or room < len(records) or not records:
            return 0
        ctypes.memmove(out, records, len(records))
        return 1

    def GetProcessGroupAffinity(self, process: Any, count: Any, groups: Any) -> int:
        count._obj.value = len(self._groups)
        for at, group in enumerate(self._groups):
            groups[at] = group
        return 1

    def GetProcessAffinityMask(self, process: Any, mine: Any, system: Any) -> int:
        mine._obj.value, system._obj.value = self._mask, (1 << 64) - 1
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert status._obj.size == 64
        data = struct.pack("<II7Q", 64, 40, 32 * GB, 18 * GB, 48 * GB, 20 * GB, 1 << 47, 1 << 46, 0)
        ctypes.memmove(status, data, 64)
        return 1

    def K32GetProcessMemoryInfo(self, process: Any, out: Any, size: Any) -> int:
        assert size.value == 72
        ctypes.memmove(out, struct.pack("<II8Q", 72, 0, *range(6), 3 * GB, 4 * GB), 72)
        return 1

    def QueryInformationJobObject(self, job: Any, kind: Any, out: Any, size: Any, got: Any) -> int:
        data = self._job.get(kind.value)
        if data is None:
            return 0
        assert size.value == len(data)
        ctypes.memmove(out, data, len(data))
        return 1


def limits(flags: int, process: int = 0, job: int = 0, peak: int = 0) -> bytes:
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""
    return struct.pack("<qqI4xQQI4xQII6Q4Q", 0, 0, flags, 0, 0, 0, 0, 0, 0, *(0,) * 6, process, job, 0, peak)


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Begins a process on a described machine. Returns the module of its resources."""

    def begin(*arguments: Any, **more: Any) -> Any:
        system = Kernel32(*arguments, **more)
        monkeypatch.setattr(windows, "library", lambda name: {"kernel32": system}[name])
        return fresh(windows_resources)

    monkeypatch.setattr(windows_resources.os, "cpu_count", lambda: 20)
    return begin


def test_structures_have_the_sizes_of_64_bit_windows() -> None:
    sizes = [ctypes.sizeof(one) for one in (windows.MemoryStatus, windows.JobLimits, windows.ProcessMemory)]
    assert sizes == [64, 144, 72]
    assert (windows.JobLimits.flags.offset, windows.JobLimits.process_memory.offset) == (16, 112)
    assert windows.ProcessMemory.commit.offset == 56


def test_recorded_answers_of_windows(on_windows: Any) -> None:
    here = on_windows(bytes.fromhex(RECORDED), bytes.fromhex(RECORDED_NODE))
    assert here.cores() == (Core(0, frozenset({0})), Core(0, frozenset({1})))


@pytest.mark.parametrize(("cores", "threads", "usable"), [(I7_12700, 8, 20), (LUNAR_LAKE, 4, 8)])
def test_cores_of_the_highest_efficiency_class(on_windows: Any, cores: bytes, threads: int, usable: int) -> None:
    here = on_windows(cores)
    machine = Processors(here.cores(), here.quota())
    assert (machine.threads, machine.usable) == (threads, usable)
    assert here.core_count() == len(machine.cores)


def test_a_process_that_may_use_efficiency_cores_only(on_windows: Any) -> None:
    here = on_windows(I7_12700, mask=0xF0000)
    assert [core.cpus for core in here.cores()] == [{16}, {17}, {18}, {19}]
    assert Processors(here.cores()).threads == 4
    assert here.core_count() == 12


def test_processor_groups_and_nodes(on_windows: Any) -> None:
    # Two sockets of 64 cores: Windows puts 64 logical processors into a group.
    cores = b"".join(core_record(0, 1 << n, group) for group in (0, 1) for n in range(64))
    nodes = b"".join(node_record(group, (1 << 64) - 1, group) for group in (0, 1))
    here = on_windows(cores, nodes, groups=(0, 1), mask=0)  # the mask says nothing about several groups
    machine = Processors(here.cores())
    assert (machine.usable, machine.nodes) == (128, (0, 1))
    here = on_windows(cores, nodes, groups=(1,))  # before Windows 11, a process runs in one group
    machine = Processors(here.cores())
    assert (machine.usable, machine.nodes, min(machine.cores[0].cpus)) == (64, (1,), 64)


def test_windows_that_reports_nothing_has_a_core_for_each_processor(on_windows: Any) -> None:
    here = on_windows(b"")
    assert len(here.cores()) == 20
    assert here.core_count() == 0


@pytest.mark.parametrize(
    ("job", "total", "free"),
    [
        ({}, 32, 18),  # not in a job
        ({9: limits(0)}, 32, 18),  # in a job without limits
        ({9: limits(0x100, process=8 * GB)}, 8, 5),  # the process has allocated 3 GB
        ({9: limits(0x200, job=16 * GB), 28: struct.pack("<QQ", 6 * GB, 9 * GB)}, 16, 10),
        ({9: limits(0x200, job=16 * GB, peak=9 * GB)}, 16, 7),  # before Windows 10 only the peak is known
        ({9: limits(0x200, job=2 * GB), 28: struct.pack("<QQ", 6 * GB, 9 * GB)}, 2, 0),
    ],
)  # fmt: skip
def test_memory_of_windows(on_windows: Any, job: dict[int, bytes], total: int, free: int) -> None:
    here = on_windows(I7_12700, job=job)
    assert (here.machine_bytes(), here.free_bytes()) == (total * GB, free * GB)


@pytest.mark.parametrize(
    ("rate", "quota"),
    [
        (None, None),
        (struct.pack("<II", 0, 0), None),
        (struct.pack("<II", 0x1 | 0x4, 2500), 5.0),  # a hard cap of 25 % of 20 processors
        (struct.pack("<II", 0x1 | 0x2, 5), None),  # a weight limits nothing
        (struct.pack("<IHH", 0x1 | 0x10, 1000, 5000), 10.0),  # from 10 % to 50 %
    ],
)
def test_quota_of_windows(on_windows: Any, rate: bytes | None, quota: float | None) -> None:
    here = on_windows(I7_12700, job={} if rate is None else {15: rate})
    assert here.quota() == quota


def test_the_module_of_the_system_is_asked(on_windows: Any, on_macos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.runtime import processors as module

    for name, here in (("windows", on_windows(I7_12700)), ("macos", on_macos(M1_MAX))):
        monkeypatch.setattr(f"pellucid.runtime.resources.{name}", here)
        monkeypatch.setitem(sys.modules, f"pellucid.runtime.resources.{name}", here)
    for platform, threads, memory in (("win32", 8, 32 * GB), ("darwin", 8, 32 * GB)):
        monkeypatch.setattr(module.sys, "platform", platform)
        assert (module.processors().threads, module.machine_bytes()) == (threads, memory)
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert (module.core_count(), module.free_bytes()) == (12, 18 * GB)


@pytest.mark.parametrize("module", [macos, windows])
def test_other_systems_have_no_such_library(module: Any) -> None:
    with pytest.raises(OSError, match="only"):
        module.library(*(("kernel32",) if module is windows else ()))
