"""Where the time of a step goes: each operation's seconds, beside what it must read and multiply."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.library import Progress
from pellucid.measure.cost import Cost, Rates, operation_cost, step_cost
from pellucid.measure.roofs import Roofs
from pellucid.measure.rounds import REST, machine_rates
from pellucid.measure.suite import held, some_ids
from pellucid.plan.network import Network
from pellucid.plan.plan import Operation
from pellucid.runtime.batch import Chunk

ENOUGH = 0.05  # seconds: a round repeats a short step for so long
WHOLE = 2  # whole steps before one in pieces


@dataclass(frozen=True)
class Timed:
    """The time of one operation or of several, and what they must do."""

    seconds: float
    cost: Cost
    count: int = 1

    def __add__(self, other: Timed) -> Timed:
        return Timed(self.seconds + other.seconds, self.cost + other.cost, self.count + other.count)

    def rate(self, rates: Rates) -> str:
        """What it reaches of what bounds it: "41.2 GB/s", "310 GMAC/s" (10⁹ multiply-adds), "" if nothing does."""
        if self.cost == Cost() or not self.seconds:
            return ""
        int8 = self.cost.bound(rates) == "int8"
        value = (self.cost.multiply_adds if int8 else self.cost.nbytes) / self.seconds / 1e9
        return f"{value:,.{0 if value >= 100 else 1}f} {'GMAC/s' if int8 else 'GB/s'}"

    def share(self, rates: Rates) -> float | None:
        """How much of its roof it reaches; None if it has none."""
        if self.cost == Cost() or not self.seconds:
            return None
        return self.cost.seconds(rates) / self.seconds


@dataclass(frozen=True)
class Profile:
    """A step: what it was, each operation's time in the plan's order, and the machine's rates meanwhile."""

    what: str
    operations: tuple[Operation, ...]
    timed: tuple[Timed, ...]
    rates: Rates

    @property
    def total(self) -> Timed:
        """Of the whole step."""
        return together(self.timed)

    def kinds(self) -> dict[tuple[str, str], Timed]:
        """By stage, without the number of its block, and kernel."""
        found: dict[tuple[str, str], list[Timed]] = {}
        for op, timed in zip(self.operations, self.timed):
            stage = re.sub(r"^blocks\.\d+\.", "", op.stage)
            found.setdefault((stage, str(op.kernel)), []).append(timed)
        return {kind: together(all_of_it) for kind, all_of_it in found.items()}


def together(timed: Iterable[Timed]) -> Timed:
    """The sum."""
    return sum(timed, Timed(0.0, Cost(), 0))


def profile_step(
    network: Network, tokens: int, depth: int = 0, rounds: int = 5, progress: Progress | None = None
) -> Profile:
    """A step of ``tokens`` tokens of one sequence that has ``depth`` already: medians of ``rounds`` rounds.

    A round runs the step as often as some milliseconds allow. The cache is left as it was.
    """
    what = f"a step of {tokens:,} token{'s' if tokens > 1 else ''}" + (f" after {depth:,}" if depth else "")
    with held(network, 1) as (sequence,):
        if depth:
            network.prefill(sequence, some_ids(network, depth))
        chunks = [Chunk(sequence, some_ids(network, tokens), int(network.spec.causal))]
        return _profile(network, what, chunks, rounds, progress)


def _profile(
    network: Network, what: str, chunks: list[Chunk], rounds: int, progress: Progress | None
) -> Profile:
    nbytes = step_cost(network, chunks).nbytes
    rates: list[Rates] = []
    seconds = []
    roofs = Roofs(network.threads, nbytes)
    try:
        for number in range(rounds):
            if progress:
                progress(number, rounds, what)
            rates.append(machine_rates(roofs, nbytes))
            time.sleep(REST)
            end = time.perf_counter() + ENOUGH
            seconds.append(_seconds(network, chunks))
            while time.perf_counter() < end:
                seconds.append(_seconds(network, chunks))
    finally:
        roofs.close()
    operations = network.plan.operations
    costs = [operation_cost(network, op, chunks) for op in operations]
    timed = [Timed(float(s), cost) for s, cost in zip(np.median(seconds, axis=0), costs)]
    return Profile(
        what,
        operations,
        tuple(timed),
        Rates(statistics.median(r.read for r in rates), statistics.median(r.multiply for r in rates)),
    )


def _seconds(network: Network, chunks: list[Chunk]) -> NDArray[np.float64]:
    """Each operation's time in one step. Whole steps go before it: a machine whose caches are shared forgets weights
    that are not asked for, and a step in pieces leaves it time to."""
    lengths = [chunk.sequence.length for chunk in chunks]
    for _ in range(WHOLE):
        network.forward(chunks)
        for chunk, length in zip(chunks, lengths):
            network.truncate(chunk.sequence, length)
    return network.profile(chunks)
