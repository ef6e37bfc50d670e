"""Placement of threads and memory, on described machines and with system calls on this machine."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.systems import affinity

from pellucid.errors import InvalidRequest
from pellucid.runtime import memory as module
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.memory import HUGE_PAGE, Placement, address, aligned
from pellucid.runtime.processors import Processors, processors
from pellucid.runtime.resources import Core

PAGE = os.sysconf("SC_PAGE_SIZE")
TWO_SOCKETS = Processors(tuple(Core(cpu // 8, frozenset({cpu, cpu + 16})) for cpu in range(16)))
ONE_SOCKET = Processors(TWO_SOCKETS.cores[:8])


def placed(monkeypatch: pytest.MonkeyPatch, made: Placement) -> list[tuple[int, int, int, list[int]]]:
    """Records the system calls of a placement: (begin, end, policy, nodes)."""
    asked: list[tuple[int, int, int, list[int]]] = []

    class Library:
        def syscall(self, number: Any, begin: Any, size: Any, policy: Any, mask: Any, bits: Any, flags: Any) -> int:
            nodes = [node for node in range(64) if mask[0] >> node & 1]
            asked.append((begin.value, begin.value + size.value, policy.value, nodes))
            return 0

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Library())
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    return asked


@pytest.fixture(autouse=True)
def _lets_memory_be_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system allows memory placement, like most systems outside of containers."""
    monkeypatch.setattr(module, "may_place", lambda: True)


def test_a_system_that_places_no_memory_has_no_threads_bound_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "may_place", lambda: False)
    assert Placement(4, None, TWO_SOCKETS).pin == "none"
    assert Placement(4, "nodes", TWO_SOCKETS).nodes == (0, 0, 1, 1)


@affinity
def test_a_thread_is_seated_for_a_while() -> None:
    before = os.sched_getaffinity(0)
    made = Placement(1, "cores")
    with made.bound():
        assert os.sched_getaffinity(0) == made.cpus_of(0)
    assert os.sched_getaffinity(0) == before


def test_threads_are_spread_over_the_nodes() -> None:
    assert Placement(4, None, TWO_SOCKETS).nodes == (0, 0, 1, 1)
    assert Placement(5, None, TWO_SOCKETS).nodes == (0, 0, 0, 1, 1)
    assert Placement(16, "cores", TWO_SOCKETS).nodes == (0,) * 8 + (1,) * 8
    assert Placement(1, None, TWO_SOCKETS).nodes == (0,)
    node = frozenset({*range(8), *range(16, 24)})
    assert Placement(4, None, TWO_SOCKETS).cpus_of(1) == node
    assert Placement(4, "cores", TWO_SOCKETS).cpus_of(2) == {8, 24}


def test_efficiency_cores_have_a_thread_only_if_there_are_more_threads_than_other_cores() -> None:
    cores = tuple(Core(0, frozenset({cpu}), cpu < 4) for cpu in range(8))
    assert [Placement(4, "cores", Processors(cores)).cpus_of(thread) for thread in range(4)] == [
        {4}, {5}, {6}, {7},
    ]  # fmt: skip
    assert Placement(8, "cores", Processors(cores)).cpus_of(0) == {0}


@affinity
def test_a_system_without_affinity_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    assert Placement(2, None, ONE_SOCKET).cpus_of(1) is None
    with pytest.raises(InvalidRequest, match="pin='cores': threads can be bound on Linux only; leave pin out"):
        Placement(2, "cores", ONE_SOCKET)


def test_one_socket_binds_and_places_nothing_unless_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Placement(4, None, ONE_SOCKET)
    assert (usual.pin, [usual.cpus_of(thread) for thread in range(4)]) == ("none", [None] * 4)
    assert Placement(4, "cores", ONE_SOCKET).cpus_of(3) == {6, 22}
    for one in (usual, Placement(4, "none", TWO_SOCKETS), Placement(4, "cores", ONE_SOCKET)):
        asked = placed(monkeypatch, one)
        one.interleave(np.zeros(8 * PAGE, np.uint8))
        one.divide(np.zeros(8 * PAGE, np.uint8), [2 * PAGE, 4 * PAGE, 6 * PAGE, 8 * PAGE])
        assert asked == []


def test_a_matrix_is_divided_like_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    made, memory = Placement(4, "nodes", TWO_SOCKETS), aligned(10 * HUGE_PAGE)
    asked = placed(monkeypatch, made)
    made.divide(memory, [HUGE_PAGE, 3 * HUGE_PAGE + 999, 5 * HUGE_PAGE, 10 * HUGE_PAGE])
    (first, middle, one, near), (second, last, policy, far) = asked
    assert (near, far, one, policy) == ([0], [1], 1, 1)
    assert middle == second, "a page between two parts belongs to one of them"
    assert 0 <= first - address(memory) < PAGE
    assert 0 <= middle - address(memory) - 3 * HUGE_PAGE - 999 < HUGE_PAGE
    assert middle % HUGE_PAGE == 0, "huge pages are whole"
    assert 0 <= last - address(memory) - 10 * HUGE_PAGE < PAGE


def test_small_matrices_keep_their_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Placement(4, "nodes", TWO_SOCKETS)
    asked = placed(monkeypatch, made)
    made.divide(aligned(3 * HUGE_PAGE), [HUGE_PAGE, 2 * HUGE_PAGE, 2 * HUGE_PAGE, 3 * HUGE_PAGE])
    assert [(policy, nodes) for _, _, policy, nodes in asked] == [(3, [0, 1])]


def test_what_all_threads_read_is_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Placement(16, "cores", TWO_SOCKETS)
    asked = placed(monkeypatch, made)
    made.interleave(aligned(8 * PAGE))
    assert [(policy, nodes) for _, _, policy, nodes in asked] == [(3, [0, 1])]


def test_parts_smaller_than_a_page_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Placement(2, None, TWO_SOCKETS)
    asked = placed(monkeypatch, made)
    made.divide(aligned(PAGE)[64:192], [64, 128])
    made.divide(aligned(0), [0, 0])
    assert len(asked) <= 1


@pytest.mark.parametrize(
    ("pin", "threads", "message"),
    [
        ("sockets", 2, "pin='sockets': must be one of none, nodes, cores"),
        ("cores", 17, "pin='cores': 17 threads, 16 cores; use at most 16 threads"),
    ],
)
def test_impossible_wishes(pin: str, threads: int, message: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Placement(threads, pin, TWO_SOCKETS)
    assert str(error.value) == message


@affinity
def test_workers_are_bound_and_the_caller_is_not() -> None:
    here = processors()
    threads, mine = len(here.cores), os.sched_getaffinity(0)
    executor = Executor(threads, Placement(threads, "cores"))
    try:
        executor.run(Program(table([]), ()), np.zeros(16, np.int64))  # after this every worker is placed
        workers = {t.name: t.native_id for t in threading.enumerate() if t.name.startswith("pellucid-")}
        for thread in range(1, threads):
            number = workers[f"pellucid-{thread}"]
            assert number is not None
            assert os.sched_getaffinity(number) == executor.placement.cpus_of(thread)
        assert os.sched_getaffinity(0) == mine
    finally:
        executor.close()


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA")
def test_the_systems_call_places_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of an array goes to this machine's node. The other node may not exist."""
    node = processors().nodes[0]
    cores = tuple(Core(node + cpu, frozenset({cpu})) for cpu in range(2))
    monkeypatch.setattr(module, "MIN_NODE_BYTES", 0)
    monkeypatch.setattr(module, "may_place", lambda: True)
    made = Placement(2, "nodes", Processors(cores))
    assert made.nodes == (node, node + 1)
    memory = aligned(128 * PAGE)
    made.divide(memory, [64 * PAGE, 128 * PAGE])
    memory[: 64 * PAGE] = 1
    begin = -(-address(memory) // PAGE) * PAGE
    lines = Path("/proc/self/numa_maps").read_text(encoding="utf-8").splitlines()
    policies = {int(line.split()[0], 16): line.split()[1] for line in lines}
    assert policies[begin].startswith(("prefer:", "prefer=")), policies[begin]
