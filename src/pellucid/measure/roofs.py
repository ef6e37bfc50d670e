"""The machine and its measured limits, workloads and the profile of a step beside them."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from pellucid import __version__
from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.core import isa
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.host import host
from pellucid.kernels.core.library import CompileProgress, cache_folder, shared
from pellucid.kernels.core.objects import installed
from pellucid.kernels.ops import roof
from pellucid.measure.cost import Cost, Rates, operation_cost, step_cost, total
from pellucid.measure.suite import Workload, placeholder_ids, prefill, temporary_tables
from pellucid.plan.plan import Operation
from pellucid.runtime.batch import Chunk
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.memory import Placement, aligned, may_place
from pellucid.runtime.processors import Processors, core_count, machine_bytes, processors

# More than any cache holds. A larger buffer is read at the same rate.
MAX_BYTES = 2 << 30
WARM, TIMES = 3, 16  # the number of runs that fill the caches, and of the timed runs
MULTIPLY_ROUNDS = 100_000  # these rounds take a quarter of a millisecond or more
READ = KernelKey("roof.read")


class Roofs:
    """Measures the limits with its own ``threads`` threads. ``nbytes`` is the largest argument of ``read``.

    ``placement`` places the threads and the buffer that they read, and may be the placement of a model's threads. The
    default is a new placement of ``threads`` threads. Raises KernelError if a kernel did not compile.
    """

    def __init__(self, threads: int, nbytes: int, placement: Placement | None = None) -> None:
        self.threads, self._placement = threads, placement or Placement(threads)
        self._addresses = shared().load([READ, roof.multiply_key()])
        self._strips = max(min(nbytes, MAX_BYTES) // roof.STRIP, threads)
        self._data = aligned(self._strips * roof.STRIP)
        parts = [self._strips * (thread + 1) // threads * roof.STRIP for thread in range(threads)]
        self._placement.divide(self._data, parts)
        self._data[:] = 0
        self._out = np.zeros((threads, 16), np.float32)
        self._executor = Executor(threads, self._placement)

    def read(self, nbytes: int, *, fastest: bool = False) -> float:
        """Bytes read per second, from a buffer of ``nbytes`` (2 GiB at most) that is read repeatedly.

        Returns the mean rate of several runs, or the rate of the ``fastest`` run, which other load affects least.
        """
        strips = max(min(nbytes // roof.STRIP, self._strips), self.threads)
        seconds = self._seconds(READ, fastest, data=self._data.ctypes.data, strips=strips)
        return strips * roof.STRIP / seconds

    def multiply(self, *, fastest: bool = False) -> float:
        """Multiply-adds of 8-bit integers per second, of all threads together, without reading memory."""
        key = roof.multiply_key()
        seconds = self._seconds(key, fastest, rounds=MULTIPLY_ROUNDS, factor=roof.FACTOR)
        return self.threads * MULTIPLY_ROUNDS * roof.round_products(key) / seconds

    def _seconds(self, key: KernelKey, fastest: bool, **fields: int) -> float:
        record = definition(key.name).record
        assert record is not None
        words = record.pack({**fields, "out": self._out.ctypes.data}, self._addresses[key], 0)
        program, step = Program(table([words]), ()), np.zeros(1, np.int64)
        with self._placement.bound():
            for _ in range(WARM):
                self._executor.run(program, step)
            ends = [time.perf_counter()]
            for _ in range(TIMES):
                self._executor.run(program, step)
                ends.append(time.perf_counter())
        return float(np.diff(ends).min()) if fastest else (ends[-1] - ends[0]) / TIMES

    def close(self) -> None:
        self._executor.close()


# Rounds: every workload runs once per round, right after its roof, so that other load affects all figures equally.

REST = 0.02
"""Seconds between two measurements, because idle threads spin for a while before they release their core."""


@dataclass(frozen=True)
class Figure:
    """The units per second of a workload, and the machine's rates, by round."""

    workload: Workload
    cost: Cost
    per_second: tuple[float, ...]
    rates: tuple[Rates, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.per_second)

    @property
    def spread(self) -> float:
        """Half of the interquartile range, relative to the median."""
        if len(self.per_second) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.per_second, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def roof(self) -> float:
        return statistics.median(self._roofs)

    @property
    def bound(self) -> str:
        return statistics.mode(self.cost.bound(rates) for rates in self.rates)

    @property
    def share(self) -> float:
        return statistics.median(mine / roof for mine, roof in zip(self.per_second, self._roofs))

    @property
    def _roofs(self) -> list[float]:
        return [self.workload.count / self.cost.seconds(rates) for rates in self.rates]


def measure(
    runner: ModelRunner, workloads: Sequence[Workload], rounds: int, progress: CompileProgress | None = None
) -> list[Figure]:
    """Measure each workload ``rounds`` times. ``progress`` is called before each measurement."""
    steps = [[step_cost(runner, step) for step in workload.steps(runner)] for workload in workloads]
    costs = [total(each) for each in steps]
    sizes = [cost.nbytes // len(each) for cost, each in zip(costs, steps)]
    speeds: list[list[float]] = [[] for _ in workloads]
    rates: list[list[Rates]] = [[] for _ in workloads]
    placement = runner.executor.placement
    with closing(Roofs(runner.threads, max(sizes), placement=placement)) as roofs, placement.bound():
        for number in range(rounds):
            for i, workload in enumerate(workloads):
                if progress:
                    progress(number * len(workloads) + i, rounds * len(workloads), workload.what)
                rates[i].append(machine_rates(roofs, sizes[i]))
                wake_threads(runner)
                speeds[i].append(workload.count / workload.seconds(runner))
    return [
        Figure(workload, cost, tuple(speed), tuple(rate))
        for workload, cost, speed, rate in zip(workloads, costs, speeds, rates)
    ]


def machine_rates(roofs: Roofs, nbytes: int, *, fastest: bool = False) -> Rates:
    """Measure the machine's current rates, with a buffer of ``nbytes``: means, or with ``fastest`` maxima."""
    time.sleep(REST)
    return Rates(roofs.read(nbytes, fastest=fastest), roofs.multiply(fastest=fastest))


def wake_threads(runner: ModelRunner) -> None:
    """Let other threads become idle, and wake the runner's threads, so that they run when the next step begins."""
    time.sleep(REST)
    with temporary_tables(runner, 1) as (sequence,):
        runner.forward([Chunk(sequence, placeholder_ids(runner, 1), 0)])


# The machine that the kernels run on: processor, memory, instruction set, folder of compiled kernels, versions.

VECTORS = ("sse4", "avx", "f16c", "fma", "amx", "neon", "dotprod", "i8mm", "bf16", "fp16", "sve")


def facts() -> dict[str, Any]:
    """Facts about the machine, in display order: name → text, integer or list of words. Raises InvalidRequest if
    ``PELLUCID_ISA`` names an instruction set that is unknown or not available.
    """
    usable = processors()
    chosen, folder = isa.choose(), cache_folder()
    features = sorted(name for name in host().features if name.startswith(VECTORS))
    return {
        "cpu": cpu_name(),
        "cores": _cores(usable),
        "processors": os.cpu_count() or 1,
        "usable processors": usable.usable,
        "memory nodes": _nodes(usable),
        "threads": usable.threads,
        "memory": f"{size / 1e9:.1f} GB" if (size := machine_bytes()) else "unknown",
        "instructions": f"{chosen.name} ({chosen.description})",
        "kernels for": isa.target().name,
        "possible": [known.name for known in isa.possible()],
        "features": features,
        "kernels": str(folder),
        "kernels installed": len(installed()),
        "kernels compiled": len(list(folder.glob("*.o"))),
        "pellucid": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("numpy", "numba", "llvmlite")},
        "system": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    return host().name or host().machine


def _cores(usable: Processors) -> int | str:
    slow = sum(core.efficiency for core in usable.cores)
    count = core_count() or len(usable.cores)
    return f"{count} (with {slow} efficiency cores)" if slow else count


def _nodes(usable: Processors) -> int | str:
    """The number of memory (NUMA) nodes, with a remark if this process cannot place weights on a node."""
    count = len(usable.nodes)
    return f"{count} (this process may not place memory on them)" if count > 1 and not may_place() else count


# Profile of a step: the seconds of each operation, and the bytes and multiply-adds that it needs.

ROUND_SECONDS = 0.05  # a round repeats a short step until these seconds have passed
WARM_STEPS = 2  # the number of whole steps before each profiled step


@dataclass(frozen=True)
class Timed:
    seconds: float
    cost: Cost
    count: int = 1

    def __add__(self, other: Timed) -> Timed:
        return Timed(self.seconds + other.seconds, self.cost + other.cost, self.count + other.count)

    def rate(self, rates: Rates) -> str:
        """The reached rate of the limiting resource: "41.2 GB/s", "310 GMAC/s" (10⁹ multiply-adds); "" without a roof.

        A rate above the memory's rate is followed by "from caches".
        """
        if self.cost == Cost() or not self.seconds:
            return ""
        int8 = self.cost.bound(rates) == "int8"
        value = (self.cost.multiply_adds if int8 else self.cost.nbytes) / self.seconds / 1e9
        cached = " from caches" if self.cost.seconds(rates) > self.seconds else ""
        return f"{value:,.{0 if value >= 100 else 1}f} {'GMAC/s' if int8 else 'GB/s'}{cached}"

    def share(self, rates: Rates) -> float | None:
        """The reached share of the roof; None if the operation has no roof, or reads from caches."""
        if self.cost == Cost() or not self.seconds:
            return None
        reached = self.cost.seconds(rates) / self.seconds
        return reached if reached <= 1 else None


@dataclass(frozen=True)
class Profile:
    """The profile of a step: a description, each operation's time in plan order, and the machine's limits.

    Each time is the median of ``repetitions`` measurements.
    ``rates`` are the highest measured rates. No operation multiplies faster. An operation that reads faster reads from
    caches.
    """

    what: str
    operations: tuple[Operation, ...]
    timed: tuple[Timed, ...]
    rates: Rates
    repetitions: int

    @property
    def total(self) -> Timed:
        return combined(self.timed)

    def kinds(self) -> dict[tuple[str, str], Timed]:
        by_kind: dict[tuple[str, str], list[Timed]] = {}
        for op, timed in zip(self.operations, self.timed):
            stage = re.sub(r"^blocks\.\d+\.", "", op.label)
            by_kind.setdefault((stage, str(op.kernel)), []).append(timed)
        return {kind: combined(timed) for kind, timed in by_kind.items()}


def combined(timed: Iterable[Timed]) -> Timed:
    return sum(timed, Timed(0.0, Cost(), 0))


def profile_step(
    runner: ModelRunner,
    tokens: int,
    depth: int = 0,
    rounds: int = 5,
    progress: CompileProgress | None = None,
    roof_bytes: int | None = None,
) -> Profile:
    """Profile a step of ``tokens`` tokens of a sequence with ``depth`` tokens of context: medians of ``rounds`` rounds.

    A round repeats the step for some milliseconds. The cache does not change. The memory's rate is measured with a
    buffer of ``roof_bytes``, by default the bytes that the step reads.
    """
    *_, profile = profile_turns(runner, tokens, depth, rounds, progress, roof_bytes)
    assert profile is not None
    return profile


def profile_turns(
    runner: ModelRunner,
    tokens: int,
    depth: int = 0,
    rounds: int = 5,
    progress: CompileProgress | None = None,
    roof_bytes: int | None = None,
) -> Generator[Profile | None, None, None]:
    """Like ``profile_step``, but a generator for a `ReadingTask`: other steps may run at each yield.

    The last value is the profile. The values before are None.
    """
    what = f"a step of {tokens:,} token{'s' if tokens > 1 else ''}" + (f" after {depth:,}" if depth else "")
    with temporary_tables(runner, 1) as (sequence,):
        ids, most = placeholder_ids(runner, depth), runner.limits.tokens
        for first in range(0, depth, most):
            prefill(runner, sequence, ids[first : first + most])
            yield None
        chunks = [Chunk(sequence, placeholder_ids(runner, tokens), int(runner.spec.output_rows == "outputs"))]
        nbytes = roof_bytes or step_cost(runner, chunks).nbytes
        rates: list[Rates] = []
        seconds = list[NDArray[np.float64]]()
        placement = runner.executor.placement
        with closing(Roofs(runner.threads, nbytes, placement=placement)) as roofs, placement.bound():
            for number in range(rounds):
                if progress:
                    progress(number, rounds, what)
                rates.append(machine_rates(roofs, nbytes, fastest=True))
                yield None
                time.sleep(REST)
                spent = 0.0
                while spent < ROUND_SECONDS:
                    start = time.perf_counter()
                    seconds.append(_seconds(runner, chunks))
                    spent += time.perf_counter() - start
                    yield None
        yield _profile(runner, what, chunks, seconds, rates)


def _profile(
    runner: ModelRunner, what: str, chunks: list[Chunk], seconds: list[NDArray[np.float64]], rates: list[Rates]
) -> Profile:
    operations = runner.plan.operations
    costs = [operation_cost(runner, op, chunks) for op in operations]
    timed = tuple(Timed(float(s), cost) for s, cost in zip(np.median(seconds, axis=0), costs))
    limits = Rates(max(r.read for r in rates), max(r.multiply for r in rates))
    profile = Profile(what, operations, timed, limits, len(seconds))
    reached = (kind.cost.multiply_adds / kind.seconds for kind in profile.kinds().values() if kind.seconds)
    return replace(profile, rates=Rates(limits.read, max(limits.multiply, *reached)))


def _seconds(runner: ModelRunner, chunks: list[Chunk]) -> NDArray[np.float64]:
    """The time of each operation in one step, (operations,) float64, in seconds.

    Whole steps run before the profiled step, because a profiled step runs in pieces, and between the pieces shared
    caches have time to evict weights that are not read.
    """
    for _ in range(WARM_STEPS):
        forks = [msgspec.structs.replace(chunk, table=runner.cache.fork(chunk.table)) for chunk in chunks]
        try:
            runner.forward(forks)
        finally:
            runner.cache.release(*(fork.table for fork in forks))
    return runner.profile(chunks)
