"""The forward run of a backward pass: records the values that the vector-Jacobian products read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.passes import PatternTap, Tap, Watch
from pellucid.plan.plan import At, Operation, Plan
from pellucid.plan.points import Point, RowKind
from pellucid.runtime.batch import ForwardedEdits, Probe

NOTHING = -1
"""The version of a buffer that no operation has written."""


class Version(NamedTuple):
    """The value of a ``buffer`` that operation ``writer`` has written."""

    buffer: str
    writer: int


class Versions:
    """The versions of the buffers that each operation of an unoptimized ``plan`` reads."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._read = plan, list[dict[str, Version]]()
        last = dict[str, int]()
        for number, op in enumerate(plan.operations):
            names = {*op.reads, *op.writes, *(value.buffer for value in op.fields.values() if isinstance(value, At))}
            self._read.append({name: Version(name, last.get(name, NOTHING)) for name in names})
            last |= dict.fromkeys(op.writes, number)

    def read(self, number: int, buffer: str) -> Version:
        return self._read[number][buffer]

    def index_of(self, version: Version) -> int:
        """The index of the buffer among the buffers that its writer writes."""
        return self.plan.operations[version.writer].writes.index(version.buffer)

    def rows(self, version: Version) -> RowKind:
        return self.plan.operations[version.writer].rows

    def width(self, version: Version) -> int:
        return self.plan.buffers[version.buffer].width


def version_of(point: Point, versions: Versions) -> Version:
    return Version(versions.plan.operations[point.operation].writes[point.write], point.operation)


class TapeNeeds(Struct, frozen=True):
    """The needs of a backward pass: ``values``, and the attentions whose ``patterns`` and ``scores`` it reads."""

    values: tuple[Version, ...]
    patterns: tuple[int, ...]
    scores: tuple[int, ...] = ()


class Tape(ForwardedEdits):
    """A probe that records the values of ``needs`` for a sequence of ``tokens`` tokens, whose edits ``edits`` makes.

    The outputs are computed from position ``first_output`` on.
    """

    first_recorded: int | None = 0

    def __init__(
        self, versions: Versions, needs: TapeNeeds, tokens: int, first_output: int, edits: Probe | None
    ) -> None:
        of_edits = edits.watch if edits is not None else Watch()
        assert isinstance(of_edits, Watch)
        super().__init__(edits, range(len(of_edits.edits)), range(len(of_edits.pattern_edits)))
        self.first_output = first_output
        self.rows: Mapping[RowKind, int] = {"tokens": tokens, "outputs": tokens - first_output}
        taps, self._columns, widths = (list[Tap](), dict[Version, tuple[RowKind, slice]](), dict[RowKind, int]())
        for version in needs.values:
            index, kind = versions.index_of(version), versions.rows(version)
            view = versions.plan.operations[version.writer].views[index]
            assert view is not None
            parts = view.parts if view.places else 1  # the parts of a token have rows of their own
            taps += [Tap(version.writer, 0, view.width, index, part) for part in range(parts)]
            first = widths.get(kind, 0)
            self._columns[version] = kind, slice(first, first + parts * view.width)
            widths[kind] = first + parts * view.width
        self._blocks = {kind: np.zeros((self.rows[kind], width), np.float32) for kind, width in widths.items()}
        patterns = [(number, raw) for raw, own in ((False, needs.patterns), (True, needs.scores)) for number in own]
        heads = {number: int(str(versions.plan.operations[number].fields["heads"])) for number, _ in patterns}
        self._recorded_patterns = {key: np.zeros((heads[key[0]], tokens, tokens), np.float32) for key in patterns}
        self._order = patterns
        self.watch = Watch(
            tuple(taps),
            tuple(PatternTap(number, 0, heads[number], raw, block) for block, (number, raw) in enumerate(patterns)),
            of_edits.edits,
            of_edits.pattern_edits,
        )

    @property
    def error(self) -> BaseException | None:
        return getattr(self._inner, "error", None)

    @property
    def first_changed(self) -> int | None:
        return self._inner.first_changed if self._inner is not None else None

    def value(self, version: Version) -> NDArray[np.float32]:
        kind, columns = self._columns[version]
        return self._blocks[kind][:, columns]

    def pattern(self, operation: int, *, raw: bool = False) -> NDArray[np.float32]:
        return self._recorded_patterns[operation, raw]

    def positions(self, start: int, stop: int) -> range:
        return range(start, stop)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        first = self.first_output if rows == "outputs" else 0
        self._blocks[rows][positions.start - first : positions.stop - first] = values  # type: ignore[index]

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        pattern = self._recorded_patterns[self._order[block]]
        pattern[:, positions.start : positions.stop, : rows.shape[2]] = rows.swapaxes(0, 1)


def tape_bytes(versions: Versions, needs: TapeNeeds, tokens: int, outputs: int) -> int:
    rows = {"tokens": tokens, "outputs": outputs}
    values = sum(rows[versions.rows(version)] * versions.width(version) for version in needs.values)
    heads = (int(str(versions.plan.operations[number].fields["heads"])) for number in (*needs.patterns, *needs.scores))
    return 4 * (values + sum(heads) * tokens * tokens)


def refuse_too_long(needed: int, budget: int, tokens: int) -> None:
    if needed > budget:
        raise InvalidRequest(
            f"budget={budget:,}: the backward pass of {tokens:,} tokens takes {needed:,} bytes: give a shorter prompt, "
            "or a larger budget"
        )


def fields_of(op: Operation, names: Iterable[str]) -> list[str]:
    """The buffers of some fields of an operation."""
    found = []
    for name in names:
        value = op.fields[name]
        assert isinstance(value, At)
        found.append(value.buffer)
    return found
