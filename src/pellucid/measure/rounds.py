"""Rounds: each workload once in turn, each with its roof beside it, so that a busy moment hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.core.library import CompileProgress
from pellucid.measure.cost import Cost, Rates, step_cost, total
from pellucid.measure.roofs import Roofs
from pellucid.measure.suite import Workload, held, some_ids
from pellucid.runtime.batch import Chunk

REST = 0.02
"""Seconds between two measurements: threads that have nothing to do spin a while before they give up their core."""


@dataclass(frozen=True)
class Figure:
    """A workload's units per second and the machine's rates, by round."""

    workload: Workload
    cost: Cost
    per_second: tuple[float, ...]
    rates: tuple[Rates, ...]

    @property
    def median(self) -> float:
        """Units per second."""
        return statistics.median(self.per_second)

    @property
    def spread(self) -> float:
        """Half of the interquartile range, as a share of the median."""
        if len(self.per_second) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.per_second, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def roof(self) -> float:
        """Units per second at most."""
        return statistics.median(self._roofs)

    @property
    def bound(self) -> str:
        """What the roof is: "memory" or "int8"."""
        return statistics.mode(self.cost.bound(rates) for rates in self.rates)

    @property
    def share(self) -> float:
        """How much of the roof is reached: the median of the rounds' shares."""
        return statistics.median(mine / roof for mine, roof in zip(self.per_second, self._roofs))

    @property
    def _roofs(self) -> list[float]:
        return [self.workload.count / self.cost.seconds(rates) for rates in self.rates]


def measure(
    runner: ModelRunner, workloads: Sequence[Workload], rounds: int, progress: CompileProgress | None = None
) -> list[Figure]:
    """Measure each workload ``rounds`` times. ``progress`` is told before each."""
    steps = [[step_cost(runner, step) for step in workload.steps(runner)] for workload in workloads]
    costs = [total(each) for each in steps]
    sizes = [cost.nbytes // len(each) for cost, each in zip(costs, steps)]
    speeds: list[list[float]] = [[] for _ in workloads]
    rates: list[list[Rates]] = [[] for _ in workloads]
    roofs = Roofs(runner.threads, max(sizes))
    try:
        for number in range(rounds):
            for i, workload in enumerate(workloads):
                if progress:
                    progress(number * len(workloads) + i, rounds * len(workloads), workload.what)
                rates[i].append(machine_rates(roofs, sizes[i]))
                wake(runner)
                speeds[i].append(workload.count / workload.seconds(runner))
    finally:
        roofs.close()
    return [
        Figure(workload, cost, tuple(speed), tuple(rate))
        for workload, cost, speed, rate in zip(workloads, costs, speeds, rates)
    ]


def machine_rates(roofs: Roofs, nbytes: int) -> Rates:
    """What the machine does in a second right now, reading a buffer of ``nbytes``."""
    time.sleep(REST)
    return Rates(roofs.read(nbytes), roofs.multiply())


def wake(runner: ModelRunner) -> None:
    """Let other threads come to rest and start the runner's: the step that comes next finds it running."""
    time.sleep(REST)
    with held(runner, 1) as (sequence,):
        runner.forward([Chunk(sequence, some_ids(runner, 1), 0)])
