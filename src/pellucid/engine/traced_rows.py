"""The rows of probes in a step, and the records of the operations that watches add to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import definition
from pellucid.kernels.core.record import WORD
from pellucid.plan.plan import Plan
from pellucid.plan.points import RowKind
from pellucid.plan.traced_plan import Site
from pellucid.runtime.batch import Probe
from pellucid.runtime.executor import Program
from pellucid.runtime.memory import address

KERNELS = ("trace_copy", "trace_edit", "trace_pattern", "trace_disentangled", "trace_mix")


class ProbeRows(NamedTuple):
    """A probe's rows in a step: positions ``start`` to ``stop`` - 1 of sequence ``number``, from row ``row`` on.

    In buffers that have only output rows, the last ``outputs`` positions are the rows from ``output`` on. ``source`` is
    the number of tokens of the sequence's source. ``tokens`` are the tokens at the positions.
    """

    probe: Probe
    number: int
    row: int
    start: int
    stop: int
    output: int
    outputs: int
    source: int
    tokens: Sequence[int]

    def keys(self, *, cross: bool) -> int:
        """The number of tokens that rows of an attention pattern have."""
        return self.source if cross else self.stop

    def extent(self, kind: RowKind) -> tuple[range, int]:
        """The positions of the rows of a kind, and the row of the first position."""
        if kind == "tokens":
            return range(self.start, self.stop), self.row
        if kind == "outputs":
            return range(self.stop - self.outputs, self.stop), self.output
        return range(1), self.number

    def recorded(self, kind: RowKind) -> tuple[range, int]:
        """As ``extent``, but only for the recorded positions."""
        all_of, row = self.extent(kind)
        if kind == "sequences":
            return all_of, row
        found = self.probe.positions(all_of.start, all_of.stop)
        return found, row + found.start - all_of.start


class SiteRecords:
    """The records of a bound ``plan``. ``set`` writes the fields of an operation that a watch added."""

    def __init__(self, plan: Plan, program: Program) -> None:
        self.program = program
        self._kernels = [op.kernel.name for op in plan.operations]
        self.words = {
            kernel: {name: offset // WORD for name, offset in record.at._asdict().items()}
            for kernel in KERNELS
            if (record := definition(kernel).record) is not None
        }

    def set(self, site: Site, **fields: int) -> None:
        """Set fields of a site's record."""
        words = self.words[self._kernels[site.record]]
        for name, value in fields.items():
            self.program.records[site.record, words[name]] = value


def table(words: Sequence[int] | NDArray[np.int64], each: int = 1) -> NDArray[np.int64]:
    """A kernel's table: the number of entries, then the words of all entries. An entry has ``each`` words."""
    return np.array([len(words) // each, *words], np.int64)


def address_of(values: NDArray[np.float32] | None) -> int:
    """The address of an array; 0 without an array."""
    return 0 if values is None else address(values)
