"""Runs plans with taps and edits: sets the rows that a step copies or changes, and passes the copies to the recorders.

A tap is an operation that copies a value, and an edit is an operation that changes a value. A `Watch` lists the taps
and edits of one sequence. A plan is bound once for each set of watches, and all requests with these watches reuse it.
Each step copies the recorded values to new memory. If only one recorder uses this memory, the recorder keeps it without
another copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.engine.traced_rows import (
    PatternPause,
    RecorderRows,
    SiteRecords,
    StepPatterns,
    TracedPatterns,
    address_of,
    table,
)
from pellucid.kernels.core.record import float_word
from pellucid.plan.bind import places
from pellucid.plan.passes import Site, Watch, traced_plan
from pellucid.plan.plan import At, Plan
from pellucid.plan.points import RowKind
from pellucid.runtime.batch import Chunk, EditEntry
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import Program, StepInParts
from pellucid.runtime.memory import address

KEPT = 16
"""Number of sets of watches whose variants of a plan are kept. The least recently used variant is evicted."""


BeginStep = Callable[[int], StepInParts]
"""Begins a step of a number of records."""


class BoundPlan:
    """A plan bound to a runner's memory. ``outputs`` are the places (record, word) of the address of its output."""

    def __init__(self, plan: Plan, bind: Callable[[Plan], Program]) -> None:
        self.plan, self.program = plan, bind(plan)
        self.outputs = places(plan, At(plan.output))

    def run(self, chunks: Sequence[Chunk], begin: BeginStep, arrays: dict[str, NDArray[Any]], cache: KVCache) -> None:
        """Run a step of the chunks. ``begin`` begins the step. ``arrays`` are the buffers by name."""
        begin(len(self.program.records)).run(self.program, last=True)


class _TapGroup(Struct, frozen=True):
    """The taps of a watch whose buffers have the same kind of rows. They copy to one array (rows, ``width``).

    ``records`` are the indices of their operations, ``columns`` their first columns in the block.
    """

    rows: RowKind
    records: NDArray[np.int64]
    columns: NDArray[np.int64]
    width: int


class _ColumnPause(NamedTuple):
    """A change that functions compute while the step is paused before operation ``record``."""

    record: int
    site: Site
    parts: Sequence[RecorderRows]


_Pause: TypeAlias = _ColumnPause | PatternPause


class TracedPlan(BoundPlan):
    """A plan with the taps and edits of some watches, which refer to operations of ``source``, before the passes."""

    def __init__(self, source: Plan, watches: Sequence[Watch], bind: Callable[[Plan], Program]) -> None:
        plan, sites = traced_plan(source, watches)
        super().__init__(plan, bind)
        self._source, self._watches = source, list(watches)
        of = [[site for site in sites if site.watch == number] for number in range(len(watches))]
        self._taps = [list(self._tap_groups(watch, own)) for watch, own in zip(watches, of)]
        self._patterns = [TracedPatterns(source, watch, own) for watch, own in zip(watches, of)]
        self._edits = [[site for site in own if site.kind == "edit"] for own in of]
        self._records = SiteRecords(self.plan, self.program)

    def _tap_groups(self, watch: Watch, sites: Sequence[Site]) -> Iterator[_TapGroup]:
        for rows in ("tokens", "outputs", "sequences"):
            own = [
                site
                for site in sites
                if site.kind == "tap" and self._source.operations[watch.taps[site.number].operation].rows == rows
            ]
            own.sort(key=lambda site: site.number)
            widths = [watch.taps[site.number].count for site in own]
            if own:
                records = np.array([site.record for site in own])
                yield _TapGroup(rows, records, np.cumsum([0, *widths])[:-1], sum(widths))

    def run(self, chunks: Sequence[Chunk], begin: BeginStep, arrays: dict[str, NDArray[Any]], cache: KVCache) -> None:
        """Run a step with the recorders' edits, and pass the recorded values to the recorders."""
        keep: list[Any] = []
        parts = list(self._parts(chunks))
        blocks = [self._begin_taps(number, own, keep) for number, own in enumerate(parts)]
        steps = [StepPatterns(patterns, own, self._records, keep) for patterns, own in zip(self._patterns, parts)]
        pauses: list[_Pause] = [
            *(pause for number, own in enumerate(parts) for pause in self._begin_edits(number, own, keep)),
            *(pause for step in steps for pause in step.pauses()),
        ]
        records, done = self.program.records, 0
        run = begin(len(records)).run
        for pause in sorted(pauses, key=lambda pause: pause.record):
            run(Program(records[done : pause.record], ()))
            done = pause.record
            if isinstance(pause, PatternPause):
                pause.patterns.pause(pause.number)
            else:
                self._pause(pause.site, pause.parts, arrays, keep)
        run(Program(records[done:], ()), last=True)
        for own, groups in zip(parts, blocks):
            _hand_out(own, groups)
        for step in steps:
            step.hand_out()
        for own, watch in zip(parts, self._watches):
            for part in own:
                for number, tap in enumerate(watch.state_edits):
                    state = cache.next_state(chunks[part.number].table, tap.layer, tap.part, tap.size)
                    found = part.recorder.changed_state(number, part.stop - 1, part.tokens[-1], state)
                    if found is not None:
                        state[:] = found
                last = part.recorder.positions(part.stop - 1, part.stop)
                for number, tap in enumerate(watch.states if len(last) else ()):
                    table = chunks[part.number].table
                    state = cache.next_state(table, tap.layer, tap.part, tap.size)
                    part.recorder.take_state(number, last.start, state)

    def _parts(self, chunks: Sequence[Chunk]) -> list[list[RecorderRows]]:
        """The recorders' rows, grouped by watch."""
        parts: list[list[RecorderRows]] = [[] for _ in self._watches]
        row = output = 0
        for number, chunk in enumerate(chunks):
            start, count = chunk.table.length, len(chunk.tokens)
            if chunk.recorder is not None:
                own = parts[self._watches.index(chunk.recorder.watch)]  # type: ignore[arg-type]
                encoder = chunk.encoder.length if chunk.encoder else 0
                rows = (number, row, start, start + count, output, chunk.outputs, encoder, chunk.tokens)
                own.append(RecorderRows(chunk.recorder, *rows))
            row, output = row + count, output + chunk.outputs
        return parts

    def _begin_taps(
        self, number: int, parts: Sequence[RecorderRows], keep: list[Any]
    ) -> list[tuple[RowKind, NDArray[np.float32]]]:
        """Set the rows that the taps of a watch copy, and allocate arrays for the copies.

        Returns pairs of a kind of rows and its array.
        """
        made = []
        for group in self._taps[number]:
            places = [part.recorded(group.rows) for part in parts]
            rows = table([n for found, row in places for n in range(row, row + len(found))])
            block = np.empty((rows[0], group.width), np.float32)
            keep.append(rows)
            made.append((group.rows, block))
            # A watch may have a hundred taps: their fields are set together.
            records, words = self.program.records, self._records.words["trace_copy"]
            records[group.records, words["rows"]] = address(rows)
            records[group.records, words["out"]] = address(block) + 4 * group.columns
            records[group.records, words["out_stride"]] = 4 * group.width
        return made

    def _begin_edits(self, number: int, parts: Sequence[RecorderRows], keep: list[Any]) -> Iterator[_ColumnPause]:
        """Set the entries of a watch's edits. Yields the edits that pause the step."""
        for site in self._edits[number]:
            if self._watches[number].edits[site.number].paused:
                self._set_entries(site, [], keep)
                yield _ColumnPause(site.record, site, parts)
                continue
            kind = self._source.operations[self._watches[number].edits[site.number].operation].rows
            entries = []
            for part in parts:
                found, row = part.extent(kind)
                made = part.recorder.entries(site.number, found.start, found.stop)
                entries += [(row + one.position - found.start, one) for one in made]
            self._set_entries(site, entries, keep)

    def _set_entries(self, site: Site, entries: Sequence[tuple[int, EditEntry]], keep: list[Any]) -> None:
        words = list[int]()
        for row, one in entries:
            keep.append(one.values)
            words += [row, float_word(one.factor), address_of(one.values)]
        entries_of = table(words, 3)
        keep.append(entries_of)
        self._records.set(site, entries=address(entries_of))

    def _pause(
        self, site: Site, parts: Sequence[RecorderRows], arrays: dict[str, NDArray[Any]], keep: list[Any]
    ) -> None:
        """Get the changes of a value from the recorders, while the step is paused before the edit."""
        edit = self._watches[site.watch].edits[site.number]
        op = self._source.operations[edit.operation]
        view = op.views[edit.write]
        assert view is not None
        buffer, entries = arrays[op.writes[edit.write]], list[tuple[int, EditEntry]]()
        for part in parts:
            found, row = part.extent(op.rows)
            rows = np.arange(row, row + len(found))
            if view.places:
                rows = _rows_of(arrays[view.places], view.place_width)[rows, edit.part]
            own = _rows_of(buffer, view.width)[rows, edit.first : edit.first + edit.count]
            tokens = part.tokens[found.start - part.start : found.stop - part.start]
            made = part.recorder.called(site.number, found.start, tokens, own)
            entries += [(row + one.position - found.start, one) for one in made]
        self._set_entries(site, entries, keep)


def _rows_of(buffer: NDArray[Any], width: int) -> NDArray[Any]:
    """A view of a buffer as rows of ``width`` columns, which may be narrower than the buffer's own rows."""
    flat = buffer.reshape(-1)
    return flat[: len(flat) // width * width].reshape(-1, width)


def _hand_out(parts: Sequence[RecorderRows], groups: Sequence[tuple[RowKind, NDArray[np.float32]]]) -> None:
    for kind, block in groups:
        first = 0
        for part in parts:
            found, _ = part.recorded(kind)
            own = block[first : first + len(found)]
            first += len(found)
            if len(found):
                # Copied if recorders share the array, so that none keeps the values of others in memory.
                part.recorder.take(kind, found, own if len(own) == len(block) else own.copy())


class PlanVariants:
    """The variants of a plan: the ``plain`` plan, and the plan with taps and edits for the last sets of watches.

    ``source`` is the plan before the passes.
    """

    def __init__(self, plan: Plan, source: Plan, bind: Callable[[Plan], Program], kept: int = KEPT) -> None:
        self.plain = BoundPlan(plan, bind)
        self._source, self._bind, self._kept = source, bind, kept
        self._traced: OrderedDict[tuple[Watch, ...], TracedPlan] = OrderedDict()

    def of(self, chunks: Sequence[Chunk]) -> BoundPlan:
        """The variant for the watches of a step's chunks. It is bound if it is not kept.

        Raises:
            KernelError: a kernel did not compile.
        """
        watches: tuple[Any, ...] = tuple(dict.fromkeys(c.recorder.watch for c in chunks if c.recorder is not None))
        if not watches:
            return self.plain
        if watches not in self._traced:
            self._traced[watches] = TracedPlan(self._source, watches, self._bind)
            if len(self._traced) > self._kept:
                self._traced.popitem(last=False)
        self._traced.move_to_end(watches)
        return self._traced[watches]
