"""Runs plans with taps and edits: sets the rows that a step copies or changes, and passes the copies to the probes.

A tap is an operation that copies a value, and an edit is an operation that changes a value. A `Watch` lists the taps
and edits of one sequence. A program is bound once for each set of watches, and all requests with these watches reuse
it. Each step copies the recorded values to new memory. If only one probe uses this memory, the probe keeps it without
another copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.attention.tiles import SPAN
from pellucid.kernels.core.definitions import definition
from pellucid.kernels.core.record import WORD, float_word
from pellucid.plan.bind import places
from pellucid.plan.plan import At, Plan
from pellucid.plan.points import RowKind
from pellucid.plan.traced_plan import Site, Watch, traced_plan
from pellucid.runtime.batch import Chunk, EditEntry, Probe
from pellucid.runtime.cache import KVCache
from pellucid.runtime.executor import Program
from pellucid.runtime.memory import address

KEPT = 16
"""Maximum number of cached programs, one for each set of watches. The least recently used program is evicted."""

RunProgram = Callable[[Program], None]


class BoundProgram(NamedTuple):
    """A program, and the places (record, word) that hold the address of its output."""

    program: Program
    outputs: list[tuple[int, int]]


class _ProbeRows(NamedTuple):
    """A probe's rows in a step: positions ``start`` to ``stop`` - 1 of sequence ``number``, from row ``row`` on.

    In buffers that have only output rows, the last ``outputs`` positions are the rows from ``output`` on. ``source`` is
    the number of tokens of the sequence's source.
    """

    probe: Probe
    number: int
    row: int
    start: int
    stop: int
    output: int
    outputs: int
    source: int

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


class _TapGroup(Struct, frozen=True):
    """The taps of a watch whose buffers have the same kind of rows. They copy to one array (rows, ``width``).

    ``records`` are the indices of their operations, ``columns`` their first columns in the block.
    """

    rows: RowKind
    records: NDArray[np.int64]
    columns: NDArray[np.int64]
    width: int


class _PatternBlock(Struct, frozen=True):
    """The taps on the attention patterns of transformer block ``number``. They record ``heads`` heads in total.

    ``sites`` has the place of each tap in the plan. ``firsts`` has the index of each tap's first head among all heads.
    The patterns of ``cross`` attention are over the tokens of the source.
    """

    number: int
    sites: tuple[Site, ...]
    firsts: tuple[int, ...]
    heads: int
    cross: bool


class TracedProgram:
    """The program of a set of watches. The watches refer to operations of ``source``, the plan before optimization."""

    def __init__(self, source: Plan, watches: Sequence[Watch], bind: Callable[[Plan], Program]) -> None:
        self.plan, sites = traced_plan(source, watches)
        self.bound = BoundProgram(bind(self.plan), places(self.plan, At(self.plan.output)))
        self._source, self._watches = source, list(watches)
        of = [[site for site in sites if site.watch == number] for number in range(len(watches))]
        self._taps = [list(self._tap_groups(watch, own)) for watch, own in zip(watches, of)]
        self._patterns = [list(_pattern_blocks(watch, own, source)) for watch, own in zip(watches, of)]
        self._edits = [[site for site in own if site.kind == "edit"] for own in of]
        self._remade = [
            list(zip(*([site for site in own if site.kind == kind] for kind in ("remade", "mix"))))
            for own in of
        ]
        self._words = {
            kernel: {name: offset // WORD for name, offset in record.at._asdict().items()}
            for kernel in ("trace_copy", "trace_edit", "trace_pattern", "trace_disentangled", "trace_mix")
            if (record := definition(kernel).record) is not None
        }

    def _tap_groups(self, watch: Watch, sites: Sequence[Site]) -> Iterator[_TapGroup]:
        for rows in ("tokens", "outputs", "sequences"):
            own = [
                site
                for site in sites
                if site.kind == "tap"
                and self._source.operations[watch.taps[site.number].operation].rows == rows
            ]
            own.sort(key=lambda site: site.number)
            widths = [watch.taps[site.number].count for site in own]
            if own:
                records = np.array([site.record for site in own])
                yield _TapGroup(rows, records, np.cumsum([0, *widths])[:-1], sum(widths))

    def run(
        self, chunks: Sequence[Chunk], run: RunProgram, arrays: dict[str, NDArray[Any]], cache: KVCache
    ) -> None:
        """Run a step with the probes' edits, and pass the recorded values to the probes.

        ``arrays`` are the buffers by name.
        """
        keep: list[Any] = []
        parts = list(self._parts(chunks))
        blocks = [self._begin_taps(number, own, keep) for number, own in enumerate(parts)]
        rows = [self._begin_patterns(number, own, keep) for number, own in enumerate(parts)]
        for number, probes in enumerate(parts):
            self._begin_mixes(number, probes, keep)
        pauses = [pause for number, own in enumerate(parts) for pause in self._begin_edits(number, own, keep)]
        records, done = self.bound.program.records, 0
        for site, own in sorted(pauses, key=lambda pause: pause[0].record):
            run(Program(records[done : site.record], ()))
            done = site.record
            self._pause(site, own, arrays, keep)
        run(Program(records[done:], ()))
        for own, groups in zip(parts, blocks):
            _hand_out(own, groups)
        for own, patterns in zip(parts, rows):
            _hand_out_patterns(own, patterns)
        for own, watch in zip(parts, self._watches):
            for part in own:
                last = part.probe.positions(part.stop - 1, part.stop)
                for number, tap in enumerate(watch.states if len(last) else ()):
                    table = chunks[part.number].table
                    state = cache.next_state(table, tap.layer, tap.part, tap.size)
                    part.probe.take_state(number, last.start, state)

    def _parts(self, chunks: Sequence[Chunk]) -> list[list[_ProbeRows]]:
        """The probes' rows, grouped by watch."""
        parts: list[list[_ProbeRows]] = [[] for _ in self._watches]
        row = output = 0
        for number, chunk in enumerate(chunks):
            start, count = chunk.table.length, len(chunk.tokens)
            if chunk.probe is not None:
                own = parts[self._watches.index(chunk.probe.watch)]  # type: ignore[arg-type]
                encoder = chunk.encoder.length if chunk.encoder else 0
                rows = (number, row, start, start + count, output, chunk.outputs, encoder)
                own.append(_ProbeRows(chunk.probe, *rows))
            row, output = row + count, output + chunk.outputs
        return parts

    def _set(self, site: Site, **fields: int) -> None:
        """Set fields of a site's record."""
        words = self._words[self.plan.operations[site.record].kernel.name]
        for name, value in fields.items():
            self.bound.program.records[site.record, words[name]] = value

    def _begin_taps(
        self, number: int, parts: Sequence[_ProbeRows], keep: list[Any]
    ) -> list[tuple[RowKind, NDArray[np.float32]]]:
        """Set the rows that the taps of a watch copy, and allocate arrays for the copies.

        Returns pairs of a kind of rows and its array.
        """
        made = []
        for group in self._taps[number]:
            places = [part.recorded(group.rows) for part in parts]
            rows = _table([n for found, row in places for n in range(row, row + len(found))])
            block = np.empty((rows[0], group.width), np.float32)
            keep.append(rows)
            made.append((group.rows, block))
            # A watch may have a hundred taps: their fields are set together.
            records, words = self.bound.program.records, self._words["trace_copy"]
            records[group.records, words["rows"]] = address(rows)
            records[group.records, words["out"]] = address(block) + 4 * group.columns
            records[group.records, words["out_stride"]] = 4 * group.width
        return made

    def _begin_patterns(
        self, number: int, parts: Sequence[_ProbeRows], keep: list[Any]
    ) -> list[tuple[_PatternBlock, NDArray[np.float32]]]:
        """Set the rows of a watch's pattern taps, and allocate arrays for the copies.

        Returns the taps of each block with their array.
        """
        if not self._patterns[number]:
            return []
        listed = list[int]()
        for part in parts:
            found, row = part.recorded("tokens")
            listed += [word for n in range(row, row + len(found)) for word in (n, part.number)]
        rows, made = _table(listed, 2), []
        keep.append(rows)
        for one in self._patterns[number]:
            block, stride, head = _rows_of_patterns(rows[0], one.heads, parts, cross=one.cross)
            for site, first in zip(one.sites, one.firsts):
                out = address(block) + first * head
                self._set(site, rows=address(rows), out=out, out_stride=stride, out_head=head)
            made.append((one, block))
        return made

    def _begin_mixes(self, number: int, parts: Sequence[_ProbeRows], keep: list[Any]) -> None:
        """Set the rows and the changes of a watch's pattern edits, and allocate arrays for the patterns."""
        for remade, mix in self._remade[number]:
            listed, words = list[int](), list[int]()
            edit = self._watches[number].pattern_edits[remade.number]
            cross = _is_cross(self._source, edit.operation)
            for part in parts:
                keys = part.keys(cross=cross)
                for one in part.probe.pattern_entries(remade.number, part.start, part.stop, keys):
                    row = part.row + one.position - part.start
                    if [row, part.number] != listed[-2:]:
                        listed += [row, part.number]
                    keep.append(one.values)
                    words += [len(listed) // 2 - 1, one.head, float_word(one.factor), _address_of(one.values)]
            rows, entries = _table(listed, 2), _table(words, 4)
            block, stride, head = _rows_of_patterns(rows[0], edit.count, parts, cross=cross)
            keep += [rows, entries, block]
            self._set(remade, rows=address(rows), out=address(block), out_stride=stride, out_head=head)
            self._set(
                mix, rows=address(rows), entries=address(entries), pattern=address(block), pattern_stride=stride,
                pattern_head=head,
            )  # fmt: skip

    def _begin_edits(
        self, number: int, parts: Sequence[_ProbeRows], keep: list[Any]
    ) -> Iterator[tuple[Site, Sequence[_ProbeRows]]]:
        """Set the entries of a watch's edits. Yields the edits that pause the step."""
        for site in self._edits[number]:
            if self._watches[number].edits[site.number].paused:
                self._set_entries(site, [], keep)
                yield site, parts
                continue
            kind = self._source.operations[self._watches[number].edits[site.number].operation].rows
            entries = []
            for part in parts:
                found, row = part.extent(kind)
                made = part.probe.entries(site.number, found.start, found.stop)
                entries += [(row + one.position - found.start, one) for one in made]
            self._set_entries(site, entries, keep)

    def _set_entries(self, site: Site, entries: Sequence[tuple[int, EditEntry]], keep: list[Any]) -> None:
        words = list[int]()
        for row, one in entries:
            keep.append(one.values)
            words += [row, float_word(one.factor), _address_of(one.values)]
        table = _table(words, 3)
        keep.append(table)
        self._set(site, entries=address(table))

    def _pause(
        self, site: Site, parts: Sequence[_ProbeRows], arrays: dict[str, NDArray[Any]], keep: list[Any]
    ) -> None:
        """Get the changes of a value from the probes, while the step is paused before the edit."""
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
            made = part.probe.changed(site.number, found.start, own)
            entries += [(row + one.position - found.start, one) for one in made]
        self._set_entries(site, entries, keep)


def _pattern_blocks(watch: Watch, sites: Sequence[Site], source: Plan) -> Iterator[_PatternBlock]:
    """Yield the blocks of a watch's pattern taps. ``sites`` are all sites of the watch, in the plan ``source``."""
    of = {site.number: site for site in sites if site.kind == "pattern"}
    for block in dict.fromkeys(tap.block for tap in watch.patterns):
        own = [number for number, tap in enumerate(watch.patterns) if tap.block == block]
        *firsts, heads = (int(n) for n in np.cumsum([0, *(watch.patterns[number].count for number in own)]))
        cross = _is_cross(source, watch.patterns[own[0]].operation)
        yield _PatternBlock(block, tuple(of[number] for number in own), tuple(firsts), heads, cross)


def _is_cross(source: Plan, operation: int) -> bool:
    """True if an operation of attention attends to the tokens of a source."""
    return bool(source.operations[operation].fields["cross"])


def _rows_of(buffer: NDArray[Any], width: int) -> NDArray[Any]:
    """A view of a buffer as rows of ``width`` columns, which may be narrower than the buffer's own rows."""
    flat = buffer.reshape(-1)
    return flat[: len(flat) // width * width].reshape(-1, width)


def _table(words: Sequence[int], each: int = 1) -> NDArray[np.int64]:
    """A kernel's table: the number of entries, then the words of all entries. An entry has ``each`` words."""
    return np.array([len(words) // each, *words], np.int64)


def _address_of(values: NDArray[np.float32] | None) -> int:
    return 0 if values is None else address(values)


def _rows_of_patterns(
    rows: int, heads: int, parts: Sequence[_ProbeRows], *, cross: bool = False
) -> tuple[NDArray[np.float32], int, int]:
    """Allocate patterns (rows, heads, tokens). Returns the array, its stride between rows and its stride between heads.

    Strides are in bytes.
    """
    length = -(-max((part.keys(cross=cross) for part in parts), default=1) // SPAN) * SPAN
    return np.empty((rows, heads, length), np.float32), 4 * heads * length, 4 * length


def _hand_out(parts: Sequence[_ProbeRows], groups: Sequence[tuple[RowKind, NDArray[np.float32]]]) -> None:
    for kind, block in groups:
        first = 0
        for part in parts:
            found, _ = part.recorded(kind)
            own = block[first : first + len(found)]
            first += len(found)
            if len(found):
                # Copied if probes share the array, so that no probe keeps the values of other probes in memory.
                part.probe.take(kind, found, own if len(own) == len(block) else own.copy())


def _hand_out_patterns(
    parts: Sequence[_ProbeRows], patterns: Sequence[tuple[_PatternBlock, NDArray[np.float32]]]
) -> None:
    for taps, block in patterns:
        first = 0
        for part in parts:
            found, _ = part.recorded("tokens")
            own = block[first : first + len(found), :, : part.keys(cross=taps.cross)]
            first += len(found)
            if len(found):
                part.probe.take_pattern(taps.number, found, own if len(own) == len(block) else own.copy())


class TracedPrograms:
    """An LRU cache of programs, one for each set of watches."""

    def __init__(self, source: Plan, bind: Callable[[Plan], Program]) -> None:
        self._source, self._bind = source, bind
        self._programs: OrderedDict[tuple[Watch, ...], TracedProgram] = OrderedDict()

    def of(self, chunks: Sequence[Chunk]) -> TracedProgram:
        """Return the program for the watches of a step's chunks, and bind it if it is not cached.

        Raises:
            KernelError: a kernel did not compile.
        """
        watches: tuple[Any, ...] = tuple(dict.fromkeys(c.probe.watch for c in chunks if c.probe is not None))
        if watches not in self._programs:
            self._programs[watches] = TracedProgram(self._source, watches, self._bind)
            if len(self._programs) > KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(watches)
        return self._programs[watches]
