"""The rows of recorders in a step, and the operations of watches on attention scores and patterns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.attention.rows import SPAN
from pellucid.kernels.core.definitions import definition
from pellucid.kernels.core.record import WORD
from pellucid.plan.passes import PatternEdit, PatternTap, Site, Watch
from pellucid.plan.plan import Plan
from pellucid.plan.points import RowKind
from pellucid.runtime.batch import PatternChange, Recorder
from pellucid.runtime.executor import Program
from pellucid.runtime.memory import address

# The rows of recorders in a step, and the records of the operations that watches add to a plan.

KERNELS = ("trace_copy", "trace_edit", "trace_pattern", "trace_disentangled", "trace_mix")


class RecorderRows(NamedTuple):
    """A recorder's rows in a step: positions ``start`` to ``stop`` - 1 of sequence ``number``, from row ``row`` on.

    In buffers that have only output rows, the last ``outputs`` positions are the rows from ``output`` on. ``source`` is
    the number of tokens of the sequence's source. ``tokens`` are the tokens at the positions.
    """

    recorder: Recorder
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
        found = self.recorder.positions(all_of.start, all_of.stop)
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


# Records and changes the attention scores and patterns of a watch, in each step.
#
# A tap copies the rows of a block of heads. An edit recomputes the rows (``remade``), and applies its change (``mix``).
# A recording after an edit has the changed rows.


class _TapBlock(Struct, frozen=True):
    """The taps that record side by side in block ``number``: ``heads`` heads in total.

    ``sites`` has the place of each tap in the plan. ``firsts`` has the index of each tap's first head among all heads.
    The patterns of ``cross`` attention are over the tokens of the source.
    """

    number: int
    taps: tuple[PatternTap, ...]
    sites: tuple[Site, ...]
    firsts: tuple[int, ...]
    heads: int
    cross: bool


class _EditRows(NamedTuple):
    """The rows of a recorder that an edit changes: ``positions``, from row ``first`` of the edit's arrays on."""

    part: RecorderRows
    positions: NDArray[np.int64]
    first: int

    @property
    def own(self) -> slice:
        return slice(self.first, self.first + len(self.positions))


class PatternPause(NamedTuple):
    """A change that a function computes while the step is paused before operation ``record``."""

    record: int
    patterns: StepPatterns
    number: int


class StepPatterns:
    """The recorded rows of a step, and the rows that edits change."""

    def __init__(
        self, patterns: TracedPatterns, parts: Sequence[RecorderRows], records: SiteRecords, keep: list[Any]
    ) -> None:
        self._patterns, self._parts, self._records, self._keep = patterns, parts, records, keep
        self._taps = list(self._begin_taps())
        self._edits: list[tuple[list[_EditRows], NDArray[np.float32], NDArray[np.float32]]] = []
        for number in range(len(patterns.edits)):
            self._edits.append(self._begin_edit(number))

    def pauses(self) -> Iterator[PatternPause]:
        """Yield the edits that pause the step."""
        for number, (edit, _, mix) in enumerate(self._patterns.edits):
            if edit.paused:
                yield PatternPause(mix.record, self, number)

    def _begin_taps(self) -> Iterator[NDArray[np.float32]]:
        """Set the rows of the taps. Yields an array for the copies of each block."""
        listed = list[int]()
        for part in self._parts if self._patterns.taps else ():
            found, row = part.recorded("tokens")
            listed += [word for n in range(row, row + len(found)) for word in (n, part.number)]
        rows = table(listed, 2)
        self._keep.append(rows)
        for taps in self._patterns.taps:
            block = _rows_of_patterns(rows[0], taps.heads, self._parts, cross=taps.cross)
            for site, first in zip(taps.sites, taps.firsts):
                out = address(block) + first * block.strides[1]
                self._records.set(
                    site, rows=address(rows), out=out, out_stride=block.strides[0], out_head=block.strides[1]
                )
            yield block

    def _begin_edit(self, number: int) -> tuple[list[_EditRows], NDArray[np.float32], NDArray[np.float32]]:
        """Set the rows and the changes of an edit.

        Returns the changed rows of each recorder, and the arrays of the scores or patterns, and of changed patterns.
        """
        edit, remade, mix = self._patterns.edits[number]
        cross, own, listed = self._patterns.is_cross(edit.operation), list[_EditRows](), list[int]()
        for part in self._parts:
            positions = part.recorder.pattern_positions(number, part.start, part.stop)
            own.append(_EditRows(part, positions, len(listed) // 2))
            listed += [word for at in positions for word in (part.row + int(at) - part.start, part.number)]
        rows = table(listed, 2)
        if edit.chained:
            block, again = self._edits[-1][2], table([], 2)
        else:
            block, again = _rows_of_patterns(rows[0], edit.count, self._parts, cross=cross), rows
        changed = np.zeros_like(block) if edit.raw else block
        self._keep += [rows, again, block, changed]
        self._records.set(
            remade, rows=address(again), out=address(block), out_stride=block.strides[0], out_head=block.strides[1]
        )
        self._records.set(
            mix, rows=address(rows), pattern=address(block), changed=address(changed),
            pattern_stride=block.strides[0], pattern_head=block.strides[1],
        )  # fmt: skip
        changes: list[PatternChange | None] = [
            part.recorder.pattern_change(number, positions, part.keys(cross=cross))
            if len(positions) and not edit.paused
            else None
            for part, positions, _ in own
        ]
        self._set_entries(mix, edit.count, own, changes)
        return own, block, changed

    def pause(self, number: int) -> None:
        """Get the changes of an edit from the recorders' functions, while the step is paused before the edit."""
        edit, _, mix = self._patterns.edits[number]
        own, block, _ = self._edits[number]
        cross, changes = self._patterns.is_cross(edit.operation), list[PatternChange | None]()
        for one in own:
            part, positions, _ = one
            tokens = np.asarray(part.tokens, np.int64)[positions - part.start]
            rows = block[one.own, :, : part.keys(cross=cross)]
            changes.append(part.recorder.called_pattern(number, positions, tokens, rows) if len(positions) else None)
        self._set_entries(mix, edit.count, own, changes)

    def _set_entries(
        self, mix: Site, heads: int, own: Sequence[_EditRows], changes: Sequence[PatternChange | None]
    ) -> None:
        parts = []
        for rows, change in zip(own, changes):
            words = np.empty((len(rows.positions), heads, 4), np.int64)
            words[:, :, 0] = rows.first + np.arange(len(rows.positions))[:, None]
            words[:, :, 1] = np.arange(heads)
            words[:, :, 2] = _addresses(change.factors if change else None)
            words[:, :, 3] = _addresses(change.addends if change else None)
            parts.append(words.reshape(-1))
            self._keep.append(change)
        entries = table(np.concatenate(parts) if parts else [], 4)
        self._keep.append(entries)
        self._records.set(mix, entries=address(entries))

    def hand_out(self) -> None:
        """Pass the recorded rows to the recorders."""
        for taps, block in zip(self._patterns.taps, self._taps):
            first, places = 0, {}
            for part in self._parts:
                found, _ = part.recorded("tokens")
                places[part.number] = found, first
                first += len(found)
            for number in range(len(self._edits)):
                self._write_changed(taps, block, number, places)
            for part in self._parts:
                found, first = places[part.number]
                own = block[first : first + len(found), :, : part.keys(cross=taps.cross)]
                if len(found):
                    part.recorder.take_pattern(taps.number, found, own if len(own) == len(block) else own.copy())

    def _write_changed(
        self, taps: _TapBlock, block: NDArray[np.float32], number: int, places: dict[int, tuple[range, int]]
    ) -> None:
        """Replace the recorded rows that an edit has changed."""
        edit = self._patterns.edits[number][0]
        own, rows, changed = self._edits[number]
        for tap, column in zip(taps.taps, taps.firsts):
            heads = range(max(tap.first, edit.first), min(tap.first + tap.count, edit.first + edit.count))
            if tap.operation != edit.operation or not heads or (tap.raw and not edit.raw):
                continue
            source = rows if tap.raw or not edit.raw else changed
            to = slice(column + heads.start - tap.first, column + heads.stop - tap.first)
            for one in own:
                found, first = places[one.part.number]
                within = (one.positions >= found.start) & (one.positions < found.stop)
                at = first + one.positions[within] - found.start
                block[at, to] = source[one.own][within, heads.start - edit.first : heads.stop - edit.first]


class TracedPatterns:
    """The taps and edits of scores and patterns of a ``watch``. ``sites`` are all sites of the watch."""

    def __init__(self, source: Plan, watch: Watch, sites: Sequence[Site]) -> None:
        self._source = source
        self.taps = list(self._tap_blocks(watch, sites))
        of = {(site.kind, site.number): site for site in sites}
        self.edits: list[tuple[PatternEdit, Site, Site]] = [
            (edit, of["remade", number], of["mix", number]) for number, edit in enumerate(watch.pattern_edits)
        ]

    def is_cross(self, operation: int) -> bool:
        """True if an operation of attention attends to the tokens of a source."""
        return bool(self._source.operations[operation].fields["cross"])

    def _tap_blocks(self, watch: Watch, sites: Sequence[Site]) -> Iterator[_TapBlock]:
        of = {site.number: site for site in sites if site.kind == "pattern"}
        for block in dict.fromkeys(tap.block for tap in watch.patterns):
            own = [number for number, tap in enumerate(watch.patterns) if tap.block == block]
            taps = tuple(watch.patterns[number] for number in own)
            *firsts, heads = (int(n) for n in np.cumsum([0, *(tap.count for tap in taps)]))
            cross = self.is_cross(taps[0].operation)
            yield _TapBlock(block, taps, tuple(of[number] for number in own), tuple(firsts), heads, cross)


def _addresses(values: NDArray[np.float32] | None) -> NDArray[np.int64]:
    """The address of the row of each position and head, (1 or n, 1 or heads); 0 without values."""
    if values is None:
        return np.zeros((1, 1), np.int64)
    rows, heads, _ = values.shape
    return address_of(values) + values.strides[0] * np.arange(rows)[:, None] + values.strides[1] * np.arange(heads)


def _rows_of_patterns(rows: int, heads: int, parts: Sequence[RecorderRows], *, cross: bool) -> NDArray[np.float32]:
    """Allocate patterns (rows, heads, tokens), with tokens rounded up to whole spans."""
    length = -(-max((part.keys(cross=cross) for part in parts), default=1) // SPAN) * SPAN
    return np.empty((rows, heads, length), np.float32)
