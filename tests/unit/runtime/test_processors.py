"""Cores, nodes and quotas from fake copies of Linux's /proc and /sys. test_resources.py has the other systems."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from pellucid.kernels.core.loop import MAX_THREADS
from pellucid.runtime.processors import Processors, processors
from pellucid.runtime.resources import Core, linux


def described(system: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return system


def topology(siblings: dict[int, str], nodes: dict[int, str]) -> dict[str, str]:
    cpu, node = ("sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", "sys/devices/system/node/node{}/cpulist")
    return {
        **{cpu.format(number): f"{text}\n" for number, text in siblings.items()},
        **{node.format(number): f"{text}\n" for number, text in nodes.items()},
    }


def test_hyper_threads_are_one_core_and_cores_are_in_the_order_of_their_nodes(tmp_path: Path) -> None:
    # Two sockets of two cores, numbered as Linux often does: even numbers on one socket, hyper-threads at the end.
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    described(tmp_path, topology(siblings, {0: "0,2,4,6", 1: "1,3,5,7"}))
    cores = linux.cores_of(tmp_path, frozenset(range(8)))
    assert cores == tuple(Core(n, frozenset({c, c + 4})) for n, c in ((0, 0), (0, 2), (1, 1), (1, 3)))
    some = linux.cores_of(tmp_path, frozenset({2, 5, 6}))
    assert some == (Core(0, frozenset({2, 6})), Core(1, frozenset({5})))
    assert (Processors(some).usable, Processors(some).threads, Processors(some).nodes) == (3, 2, (0, 1))


def test_ranges_are_read(tmp_path: Path) -> None:
    described(tmp_path, topology({c: f"{c // 2 * 2}-{c // 2 * 2 + 1}" for c in range(6)}, {0: "0-1,4-5", 3: "2-3"}))
    assert [core.node for core in linux.cores_of(tmp_path, frozenset(range(6)))] == [0, 0, 3]


def capacities(values: list[int]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{value}\n" for cpu, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "fast"),
    [
        ([414] * 4 + [1024] * 4, 4),  # Rockchip RK3588: Cortex-A55 and Cortex-A76
        ([485] * 4 + [1024] * 2, 2),  # RK3399: Cortex-A53 and Cortex-A72
        ([523] * 4 + [1024] * 4, 4),  # Apple M2 under Asahi Linux
        ([261] * 4 + [871] * 3 + [1024], 4),  # Snapdragon with three kinds of cores: the two fast kinds count
        ([1024] * 8, 8),  # a server: cores of one kind
    ],
)
def test_cores_of_low_capacity_are_efficiency_cores(tmp_path: Path, values: list[int], fast: int) -> None:
    described(tmp_path, capacities(values))
    machine = Processors(linux.cores_of(tmp_path, frozenset(range(len(values)))))
    assert (machine.threads, machine.usable) == (fast, len(values))
    assert [core.efficiency for core in machine.cores] == [cpu < len(values) - fast for cpu in range(len(values))]


def test_capacities_are_compared_among_the_cores_of_this_process(tmp_path: Path) -> None:
    described(tmp_path, capacities([414] * 4 + [1024] * 4))
    assert Processors(linux.cores_of(tmp_path, frozenset(range(4)))).threads == 4


def test_intels_performance_cores(tmp_path: Path) -> None:
    # Core i5-12600K: six performance cores of two hyper-threads each, four efficiency cores.
    siblings = {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 12 else str(cpu) for cpu in range(16)}
    described(tmp_path, topology(siblings, {0: "0-15"}))
    described(tmp_path, {"sys/devices/cpu_core/cpus": "0-11\n", "sys/devices/cpu_atom/cpus": "12-15\n"})
    machine = Processors(linux.cores_of(tmp_path, frozenset(range(16))))
    assert (machine.threads, machine.usable, len(machine.cores)) == (6, 16, 10)
    assert Processors(linux.cores_of(tmp_path, frozenset(range(12, 16)))).threads == 4


def test_a_system_that_describes_nothing_has_a_core_for_each_processor(tmp_path: Path) -> None:
    cores = linux.cores_of(tmp_path, frozenset({0, 5}))
    assert cores == (Core(0, frozenset({0})), Core(0, frozenset({5})))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3.0,
        ),
        # In a container the path may be the host's path, with the group at the root.
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"}, 8.0),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "0::/../../etc\nnonsense\n", "sys/fs/cgroup/cpu.max": "what 0\n"}, None),
        ({"proc/self/cgroup": "0::/a\0b\n", "sys/fs/cgroup/cpu.max": "² 1\n"}, None),
    ],
)  # fmt: skip
def test_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert linux.quota_of(described(tmp_path, files)) == quota


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\nnonsense\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 4096000),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "5000\n",
                "sys/fs/cgroup/a/memory.current": "3000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "100\n",
            },
            2000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu:/y\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "700\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900\n",
            },
            0,
        ),
        (  # cached files are no used memory
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "5000\n",
                "sys/fs/cgroup/memory.current": "4800\n",
                "sys/fs/cgroup/memory.stat": "anon 500\ninactive_file 3000\nactive_file 1000\nx\n",
            },
            4200,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "4800\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\ntotal_active_file ²\n",
            },
            2200,
        ),
        ({"proc/meminfo": "MemAvailable:\nMemAvailable: ² kB\n"}, None),
    ],
)  # fmt: skip
def test_free_memory(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert linux.free_bytes_of(described(tmp_path, files)) == free


def test_the_memory_of_a_container_is_the_machines_memory(tmp_path: Path) -> None:
    limits = {"sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "400\n"}
    described(tmp_path, {"proc/self/cgroup": "0::/\n", **limits})
    assert linux.machine_bytes_of(tmp_path) == 1000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert linux.machine_bytes_of(tmp_path) > 1 << 28


def test_a_limit_of_address_space_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = resource.getpagesize()
    described(tmp_path, {"proc/self/statm": "1000 300 20 1 0 400 0\n"})
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert linux.free_address_space_of(tmp_path) is None
    limits[resource.RLIMIT_AS] = 5000 * page
    assert linux.free_address_space_of(tmp_path) == 4000 * page
    limits[resource.RLIMIT_DATA] = 600 * page
    assert linux.free_address_space_of(tmp_path) == 200 * page
    assert linux.machine_bytes_of(tmp_path) == 600 * page
    limits[resource.RLIMIT_DATA] = 300 * page
    assert linux.free_address_space_of(tmp_path) == 0


def test_no_more_threads_than_a_team_can_have() -> None:
    assert Processors(tuple(Core(0, frozenset({cpu})) for cpu in range(384))).threads == MAX_THREADS


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (2.9, 2), (0.5, 1), (64.0, 4)])
def test_no_more_threads_than_the_quota(quota: float | None, threads: int) -> None:
    four = tuple(Core(0, frozenset({cpu, cpu + 4})) for cpu in range(4))
    assert Processors(four, quota).threads == threads
    assert Processors(four, quota).usable == (threads if quota != 64.0 and quota else 8)


def test_this_machine() -> None:
    here = processors()
    assert 1 <= here.threads <= here.usable <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        assert frozenset().union(*(core.cpus for core in here.cores)) == os.sched_getaffinity(0)
