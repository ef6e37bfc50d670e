"""Profile of a step: the seconds of each operation, and the bytes and multiply-adds that it needs."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import msgspec.structs
import numpy as np
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.core.library import CompileProgress
from pellucid.measure.cost import Cost, Rates, operation_cost, step_cost
from pellucid.measure.roofs import REST, Roofs, machine_rates
from pellucid.measure.suite import placeholder_ids, prefill, temporary_tables
from pellucid.plan.plan import Operation
from pellucid.runtime.batch import Chunk

# A round repeats a short step until these seconds have passed.
ROUND_SECONDS = 0.05
# The number of whole steps before each profiled step.
WARM_STEPS = 2


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
