"""Edits of attention scores and patterns, grouped by the heads that they change together.

Several edits of a head compose: the change x → factors * x + addends of each edit applies to the result of the edits
before it. A function pauses the step, and then the edits of all heads are computed in their order. Edits of patterns
apply after edits of scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.traced_plan import PatternEdit
from pellucid.runtime.batch import PatternChange
from pellucid.trace.edits import Edit, pattern_rows
from pellucid.trace.positions import ENDLESS, EVERY, Positions
from pellucid.trace.selection import Selection, runs_of


class BoundPatternEdit(Struct, frozen=True):
    """An edit of the part ``selected`` of scores or patterns. Its values are (1 or heads, 1 or rows, 1 or keys)."""

    selected: Selection
    edit: Edit
    values: NDArray[np.float32] | None

    @property
    def is_raw(self) -> bool:
        """True if the edit changes scores."""
        return self.selected.point.kind == "scores"

    def positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` to ``stop`` - 1 that are selected and have values."""
        return self._tokens.within(start, stop)

    @property
    def _tokens(self) -> Positions:
        tokens = self.selected.tokens
        return (
            tokens if self.values is None or self.values.shape[1] == 1 else tokens.first(self.values.shape[1])
        )

    def change(
        self, positions: NDArray[np.int64], heads: Sequence[int], keys: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The factors (1, 1, keys) and addends (1 or n, 1 or heads, keys) at selected ``positions`` and ``heads``."""
        values, own = self.values, self.selected.keys or EVERY
        changed, addends = own.within(0, keys), None
        factors = np.ones((1, 1, keys), np.float32)
        if values is not None:
            part = values if len(values) == 1 else values[[self.selected.heads.index(head) for head in heads]]
            if part.shape[1] > 1:
                tokens = self._tokens
                part = part[:, [tokens.row_of(int(at)) for at in positions]]
            filled = changed
            if part.shape[2] > 1:
                listed = own.first(part.shape[2]).listed(ENDLESS)
                filled, part = listed[listed < keys], part[:, :, listed < keys]
            if self.is_raw:  # the scores of further tokens stay unchanged
                changed = filled
            addends = np.zeros((part.shape[1], len(part), keys), np.float32)
            addends[:, :, filled] = part.swapaxes(0, 1)
        factors[:, :, changed] = self.edit.factor
        return factors, addends


class HeadEdits(Struct, frozen=True):
    """The edits that change the ``count`` heads from head ``first`` on, of an attention operation, in their order.

    Rows exist at the positions of the edits ``positions_of``. If ``chained``, the edits apply to the patterns after the
    edits of the scores of the same heads.
    """

    operation: int
    first: int
    count: int
    edits: tuple[BoundPatternEdit, ...]
    positions_of: tuple[BoundPatternEdit, ...]
    chained: bool = False

    @property
    def watched(self) -> PatternEdit:
        """The edit of a watch."""
        paused = any(edit.edit.function is not None for edit in self.edits)
        return PatternEdit(self.operation, self.first, self.count, self.edits[0].is_raw, paused, self.chained)

    def positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` to ``stop`` - 1 that an edit changes."""
        found = [edit.positions(start, stop) for edit in self.positions_of]
        return found[0] if len(found) == 1 else np.unique(np.concatenate(found))

    def change(self, positions: NDArray[np.int64], keys: int) -> PatternChange:
        """The change at ``positions``, for rows of ``keys`` weights."""
        factors: NDArray[np.float32] = np.ones((1, 1, keys), np.float32)
        addends: NDArray[np.float32] | None = None
        for edit in self.edits:
            scale, added = self.change_of(edit, positions, keys)
            factors = factors * scale
            if addends is not None:
                with np.errstate(invalid="ignore"):
                    addends = np.where(scale == 0, 0, addends * scale)
            if added is not None:
                addends = added if addends is None else addends + added
        return padded_change(positions, factors, addends)

    def change_of(
        self, edit: BoundPatternEdit, positions: NDArray[np.int64], keys: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The factors (1 or n, 1 or heads, keys) and addends of one edit at ``positions``."""
        own = edit.positions(int(positions[0]), int(positions[-1]) + 1)
        heads = range(self.first, self.first + self.count)
        changed = [head for head in heads if head in edit.selected.heads]
        scale, added = edit.change(own, changed, keys)
        for axis, at in enumerate((np.isin(positions, own), np.isin(heads, changed))):
            if not at.all():
                scale = _spread(at, scale, 1, axis)
                added = None if added is None else _spread(at, added, 0, axis)
        return scale, added


def bind_pattern(selected: Selection, edit: Edit) -> BoundPatternEdit:
    """Bind an edit of a part of scores or patterns.

    Raises:
        InvalidRequest: the values do not fit the part.
    """
    values = None if edit.values is None else pattern_rows(selected, edit, edit.values)
    return BoundPatternEdit(selected, edit, values)


def grouped(edits: Iterable[BoundPatternEdit]) -> Iterator[HeadEdits]:
    """Group edits by the heads that they change.

    If a function changes an operation, or edits change both the scores and the pattern of a head, then all edits of the
    scores are a group, and all edits of the patterns follow.
    """
    of: dict[int, list[BoundPatternEdit]] = {}
    for edit in edits:
        of.setdefault(edit.selected.point.operation, []).append(edit)
    for operation, own in of.items():
        by_head: dict[int, tuple[int, ...]] = {}
        for number, edit in enumerate(own):
            for head in edit.selected.heads:
                by_head[head] = (*by_head.get(head, ()), number)
        mixed = any(len({own[number].is_raw for number in numbers}) > 1 for numbers in by_head.values())
        if not mixed and not any(edit.edit.function is not None for edit in own):
            for first, count, numbers in _runs(by_head):
                together = tuple(own[number] for number in numbers)
                yield HeadEdits(operation, first, count, together, together)
            continue
        first, count = min(by_head), max(by_head) + 1 - min(by_head)
        kinds = [tuple(edit for edit in own if edit.is_raw is raw) for raw in (True, False)]
        for number, together in enumerate(kinds):
            if together:
                yield HeadEdits(operation, first, count, together, tuple(own), number > 0 and bool(kinds[0]))


def _runs(by_head: dict[int, tuple[int, ...]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield runs of consecutive heads with the same edits: (first head, number of heads, edits)."""
    for numbers in dict.fromkeys(by_head.values()):
        for first, count in runs_of(sorted(head for head, own in by_head.items() if own == numbers)):
            yield first, count, numbers


def padded_change(
    positions: NDArray[np.int64], factors: NDArray[np.float32], addends: NDArray[np.float32] | None
) -> PatternChange:
    """The change with rows of whole spans."""
    padding = ((0, 0), (0, 0), (0, -factors.shape[-1] % SPAN))
    return PatternChange(
        positions, np.pad(factors, padding), None if addends is None else np.pad(addends, padding)
    )


def _spread(
    at: NDArray[np.bool_], values: NDArray[np.float32], missing: int, axis: int
) -> NDArray[np.float32]:
    """Values of the rows or heads ``at`` as values of all of them, with ``missing`` for the others."""
    shape = list(values.shape)
    shape[axis] = len(at)
    spread = np.full(shape, missing, np.float32)
    spread[(slice(None),) * axis + (at,)] = values
    return spread
