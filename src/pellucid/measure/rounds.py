"""Rounds: every workload runs once per round, right after its roof, so that other load affects all figures equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pellucid.engine.model_runner import ModelRunner
from pellucid.kernels.core.library import CompileProgress
from pellucid.measure.cost import Cost, Rates, step_cost, total
from pellucid.measure.roofs import Roofs
from pellucid.measure.suite import Workload, placeholder_ids, temporary_tables
from pellucid.runtime.batch import Chunk

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
        """The median of the units per second."""
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
        """The median over the rounds of the maximum units per second at the machine's rates."""
        return statistics.median(self._roofs)

    @property
    def bound(self) -> str:
        """The resource that sets the roof: "memory" or "int8"."""
        return statistics.mode(self.cost.bound(rates) for rates in self.rates)

    @property
    def share(self) -> float:
        """The median over the rounds of the reached share of the roof."""
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
