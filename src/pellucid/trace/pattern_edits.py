"""Edits of attention scores and patterns, grouped by the heads that they change together.

Several edits of a head compose: the change x → factors * x + addends of each edit applies to the result of the edits
before it. A function must be the only edit of its heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.traced_plan import PatternEdit
from pellucid.runtime.batch import PatternChange
from pellucid.trace.edits import Edit, edit_error, pattern_rows
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
    """The edits that change the ``count`` heads from head ``first`` on, of an attention operation, in their order."""

    operation: int
    first: int
    count: int
    edits: tuple[BoundPatternEdit, ...]

    @property
    def function(self) -> Edit | None:
        """The edit if a function changes the heads, else None."""
        return self.edits[0].edit if self.edits[0].edit.function else None

    @property
    def watched(self) -> PatternEdit:
        """The edit of a watch."""
        paused = self.function is not None
        return PatternEdit(self.operation, self.first, self.count, self.edits[0].is_raw, paused)

    def positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` to ``stop`` - 1 that an edit changes."""
        found = [edit.positions(start, stop) for edit in self.edits]
        return found[0] if len(found) == 1 else np.unique(np.concatenate(found))

    def change(self, positions: NDArray[np.int64], keys: int) -> PatternChange:
        """The change at ``positions``, for rows of ``keys`` weights."""
        padded = -(-keys // SPAN) * SPAN
        factors: NDArray[np.float32] = np.ones((1, 1, padded), np.float32)
        addends: NDArray[np.float32] | None = None
        for edit in self.edits:
            own = edit.positions(int(positions[0]), int(positions[-1]) + 1)
            scale, added = edit.change(own, range(self.first, self.first + self.count), keys)
            scale, added = _padded(scale, padded), None if added is None else _padded(added, padded)
            if len(own) < len(positions):
                at = np.isin(positions, own)
                scale, added = _spread(at, scale, 1), None if added is None else _spread(at, added, 0)
            factors = factors * scale
            if addends is not None:
                with np.errstate(invalid="ignore"):
                    addends = np.where(scale == 0, 0, addends * scale)
            if added is not None:
                addends = added if addends is None else addends + added
        return PatternChange(
            positions,
            np.ascontiguousarray(factors),
            None if addends is None else np.ascontiguousarray(addends),
        )


def bind_pattern(selected: Selection, edit: Edit) -> BoundPatternEdit:
    """Bind an edit of a part of scores or patterns.

    Raises:
        InvalidRequest: the values do not fit the part, or a function changes heads that are not adjacent.
    """
    if edit.function is not None:
        if len(runs_of(selected.heads)) > 1:
            raise edit_error(
                edit.where, "a function can change only adjacent heads; select all heads, or one head"
            )
        if selected.keys is not None:
            raise edit_error(edit.where, "a function gets all keys: leave keys out")
    values = None if edit.values is None else pattern_rows(selected, edit, edit.values)
    return BoundPatternEdit(selected, edit, values)


def grouped(edits: Iterable[BoundPatternEdit]) -> Iterator[HeadEdits]:
    """Group edits by the heads that they change.

    Raises:
        InvalidRequest: the scores and the pattern of a head are both changed, or a function changes a head that another
            edit changes, too.
    """
    of: dict[int, list[BoundPatternEdit]] = {}
    for edit in edits:
        of.setdefault(edit.selected.point.operation, []).append(edit)
    for operation, own in of.items():
        by_head: dict[int, tuple[int, ...]] = {}
        for number, edit in enumerate(own):
            for head in edit.selected.heads:
                by_head[head] = (*by_head.get(head, ()), number)
        for head, numbers in by_head.items():
            together = [own[number] for number in numbers]
            calls = any(edit.edit.function is not None for edit in together)
            if len({edit.is_raw for edit in together}) > 1 or (calls and len(together) > 1):
                raise InvalidRequest(
                    f"edits of head {head} of {own[0].selected.name}: a function, or both its scores and its pattern, "
                    "cannot be combined with another edit: use one edit"
                )
        for first, count, numbers in _runs(by_head):
            yield HeadEdits(operation, first, count, tuple(own[number] for number in numbers))


def _runs(by_head: dict[int, tuple[int, ...]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield runs of consecutive heads with the same edits: (first head, number of heads, edits)."""
    for numbers in dict.fromkeys(by_head.values()):
        for first, count in runs_of(sorted(head for head, own in by_head.items() if own == numbers)):
            yield first, count, numbers


def _padded(values: NDArray[np.float32], keys: int) -> NDArray[np.float32]:
    return np.pad(values, ((0, 0), (0, 0), (0, keys - values.shape[-1])))


def _spread(at: NDArray[np.bool_], values: NDArray[np.float32], missing: int) -> NDArray[np.float32]:
    """Values of the rows ``at`` as values of all rows, with ``missing`` in the other rows."""
    spread = np.full((len(at), *values.shape[1:]), missing, np.float32)
    spread[at] = values
    return spread
