"""The program of a model in parts that begin at blocks: a step may begin at any of them, on given vectors.

Copies of a prompt that differ from the prompt only after a block share the values up to this block: they begin there.
The parts compute the bits of the whole program.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.traced_program import BeginStep, BoundProgram, TracedProgram
from pellucid.plan.bind import places
from pellucid.plan.passes import optimize
from pellucid.plan.pipeline_stages import Border, block_parts
from pellucid.plan.plan import At, Plan
from pellucid.plan.traced_plan import Watch
from pellucid.runtime.batch import Chunk, Probe
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import Program
from pellucid.runtime.forwarded_edits import ForwardedEdits

Borders = list[NDArray[np.float32]]
"""The rows of the buffers that a part receives, in the order of ``BlockPart.receives``."""
KEPT = 64
"""Maximum number of parts with edits that stay bound. The least recently used part is dropped."""


class PartProbe(ForwardedEdits):
    """Passes the edits of a part on to the probe of a sequence. Edits have other numbers in the watch of the part."""

    def __init__(self, probe: Probe, watch: Watch, edits: Sequence[int], patterns: Sequence[int]) -> None:
        super().__init__(probe, edits, patterns)
        self.watch = watch

    first_changed: int | None = None
    first_recorded: int | None = None

    def positions(self, start: int, stop: int) -> range:
        """No position is recorded."""
        return range(start, start)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``."""


class BlockPrograms:
    """The bound parts of a plan. ``bind`` binds a plan to the runner's memory."""

    def __init__(self, plan: Plan, bind: Callable[[Plan], Program]) -> None:
        before, self.parts = block_parts(plan)
        self._bind, self._starts = bind, [part.first for part in self.parts]
        self._before = bind(optimize(before)) if before.operations else None
        self._programs: list[BoundProgram] = []
        for part in self.parts:
            own = optimize(part.plan)
            self._programs.append(BoundProgram(bind(own), places(own, At(own.output))))
        self._traced: OrderedDict[tuple[int, tuple[Watch, ...]], TracedProgram] = OrderedDict()

    def part_of(self, operation: int) -> int:
        """The index of the part with an operation of the plan before the passes."""
        return bisect_right(self._starts, operation) - 1

    def first_part(self, watch: Watch) -> int:
        """The index of the first part with an edit; the last part without edits."""
        operations = [edit.operation for edit in watch.edits]
        operations += [edit.operation for edit in watch.pattern_edits]
        return min((self.part_of(operation) for operation in operations), default=len(self.parts) - 1)

    def run(
        self,
        chunks: Sequence[Chunk],
        first: int,
        begin: BeginStep,
        arrays: dict[str, NDArray[Any]],
        cache: KVCache,
        output: Callable[[BoundProgram], NDArray[np.float32]],
        keep: Collection[int] = (),
    ) -> tuple[NDArray[np.float32], dict[int, Borders]]:
        """Run the parts from ``first`` on, with the edits of the probes of the chunks.

        ``begin`` begins a part: always on all threads, because the parts of a step run on the same threads. ``output``
        allocates the output rows for a program. Returns them, and the received rows of the parts ``keep``.
        """

        def run(program: Program) -> None:
            begin(len(program.records)).run(program, last=True)

        kept, rows = dict[int, Borders](), sum(len(chunk.tokens) for chunk in chunks)
        if first and self._before:
            run(self._before)
        for number in range(first, len(self.parts)):
            if number in keep:
                kept[number] = [own.copy() for own in self.received(number, rows, arrays)]
            traced = self._traced_part(number, chunks)
            bound = traced[0].bound if traced else self._programs[number]
            out = output(bound) if number == len(self.parts) - 1 else np.empty((0, 0), np.float32)
            if traced:
                traced[0].run(traced[1], begin, arrays, cache)
            else:
                run(bound.program)
        return out, kept

    def received(
        self, number: int, rows: int, arrays: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Views of the first ``rows`` rows of the buffers that a part receives."""
        return [rows_of_border(border, rows, arrays) for border in self.parts[number].receives]

    def _traced_part(self, number: int, chunks: Sequence[Chunk]) -> tuple[TracedProgram, list[Chunk]] | None:
        """The program of a part with the edits of the chunks, and the chunks with their probes; None without edits."""
        probed = [_probed(chunk, self.parts[number].first, self.parts[number].stop) for chunk in chunks]
        watches = tuple(dict.fromkeys(_watch_of(chunk.probe) for chunk in probed if chunk.probe is not None))
        if not watches:
            return None
        key = (number, watches)
        if key not in self._traced:
            self._traced[key] = TracedProgram(self.parts[number].plan, watches, self._bind)
            if len(self._traced) > KEPT:
                self._traced.popitem(last=False)
        self._traced.move_to_end(key)
        return self._traced[key], probed


def rows_of_border(border: Border, rows: int, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """A view of the first ``rows`` rows of a border's buffer."""
    flat: NDArray[np.float32] = arrays[border.name].reshape(-1)
    return flat[: rows * border.width].reshape(rows, border.width)


def _probed(chunk: Chunk, first: int, stop: int) -> Chunk:
    """A chunk with the edits of the operations ``first`` to ``stop`` - 1."""
    if chunk.probe is None:
        return chunk
    watch = _watch_of(chunk.probe)
    edits = [at for at, edit in enumerate(watch.edits) if first <= edit.operation < stop]
    patterns = [at for at, edit in enumerate(watch.pattern_edits) if first <= edit.operation < stop]
    if not edits and not patterns:
        return replace(chunk, probe=None)
    own = Watch(
        edits=tuple(replace(watch.edits[at], operation=watch.edits[at].operation - first) for at in edits),
        pattern_edits=tuple(
            replace(watch.pattern_edits[at], operation=watch.pattern_edits[at].operation - first)
            for at in patterns
        ),
    )
    return replace(chunk, probe=PartProbe(chunk.probe, own, edits, patterns))


def _watch_of(probe: Probe) -> Watch:
    assert isinstance(probe.watch, Watch)
    return probe.watch
