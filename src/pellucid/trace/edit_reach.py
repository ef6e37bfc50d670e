"""The positions that an edit reaches, and edits of attention patterns by the heads that they change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.kernels.attention.rows import SPAN
from pellucid.plan.passes import PatternEdit
from pellucid.runtime.batch import PatternChange
from pellucid.trace.edits import Edit, edit_error, pattern_rows, rows_of
from pellucid.trace.positions import ENDLESS, EVERY, Positions
from pellucid.trace.selection import Selection, runs_of

# The positions that an edit reaches. An edit without effect is refused before the run, or reported after it.
#
# Before a run the engine knows the maximum number of tokens that a sequence reads, and the first position whose logits
# are computed. If the sequence ends earlier, an edit may stay unused. ``unused`` reports this edit after the run.


class EditReach(Struct, frozen=True):
    """The positions that an edit of a selected part changes.

    ``rows`` is the number of rows of values, one row for each position (None: a single row for all positions). For a
    pattern, ``keys`` is the number of keys up to the last key with a weight, or the last selected key.
    """

    where: str
    selected: Selection
    rows: int | None
    keys: int = 0

    @property
    def positions(self) -> Positions:
        """The selected positions that have values."""
        tokens = self.selected.tokens
        return tokens if self.rows is None else tokens.first(self.rows)

    def refuse(self, tokens: int, most: int, first_output: int, source: int | None = None) -> None:
        """Refuse the edit if a sequence cannot reach all of it.

        The prompt has ``tokens`` tokens, and the sequence reads at most ``most`` tokens. Logits are computed from
        position ``first_output`` on. Cross attention attends to ``source`` tokens.

        Raises:
            InvalidRequest: the edit begins after the sequence's last position, or has values for positions or keys that
                the sequence cannot have.
        """
        first = self.selected.tokens.start
        starts = [own.start for own in self.selected.tokens.ranges]
        text = f"a {'source' if self.selected.point.of_source else 'prompt'} of {tokens:,} tokens"
        if most > tokens:
            text += f" (read up to position {most - 1:,} with its generated tokens)"
        if first >= most or (self.rows is None and max(starts) >= most):
            found = f"begins at position {first:,}" if first >= most else f"selects position {max(starts):,}"
            raise edit_error(self.where, f"it {found}, and {text} has no such position: select one below {most:,}")
        if self.rows is not None and self.positions.stop > most:
            raise edit_error(
                self.where,
                f"{self.rows:,} rows of values from position {first:,} on are too many for {text}: "
                f"give {self.selected.tokens.rows_before(most):,} at most",
            )
        if self.selected.point.rows == "outputs" and self.positions.stop <= first_output:
            raise edit_error(
                self.where,
                f"{self.selected.name} is computed from position {first_output:,} on, and the edit ends at "
                f"{self.positions.stop - 1:,}: select a later position",
            )
        if self.selected.point.mask and self.selected.point.mask.cross:
            text, most = f"a source of {source or 0:,} tokens", source or 0
        if self.keys > most:
            verb = "selects" if self.selected.keys is not None else "attends to"
            raise edit_error(
                self.where,
                f"it {verb} token {self.keys - 1:,}, and {text} has no such token: give {most:,} keys at most",
            )
        if self.selected.keys is not None and not self._sees(self.selected.keys, most):
            raise edit_error(
                self.where, "no selected position sees a selected key: select later tokens, or earlier keys"
            )

    def _sees(self, keys: Positions, most: int) -> bool:
        """True if a selected position below ``most`` sees a selected key."""
        mask, tokens = self.selected.point.mask, self.positions
        assert mask is not None
        if mask.cross or not (mask.causal or mask.window):
            return True
        for position in tokens.within(0, most).tolist():
            seen = mask.seen(position)
            if keys.rows_before(min(seen.stop, most)) > keys.rows_before(seen.start):
                return True
        return False

    def unused(self, count: int) -> str:
        """A sentence about the unused part of the edit, after ``count`` read tokens; "" if the whole edit was used."""
        first, ended = self.selected.tokens.start, f"the text ended after {count:,} tokens"
        if first >= count:
            reason = f"it changed nothing: it begins at position {first:,}, and {ended}"
        elif self.rows is not None and self.positions.stop > count:
            unused = self.rows - self.positions.rows_before(count)
            reason = f"{unused:,} of its {self.rows:,} rows changed nothing: {ended}"
        else:
            return ""
        return str(edit_error(self.where, reason))


def refuse_empty(part: Selection, tokens: int, most: int, source: int | None = None) -> None:
    """Refuse a recording of positions or keys that a sequence cannot have. Numbers are as in ``EditReach.refuse``.

    Raises:
        InvalidRequest: a selected position, or range of positions, is not in the sequence.
    """
    point = part.point
    text = f"a {'source' if point.of_source else 'prompt'} of {tokens:,} tokens"
    if most > tokens:
        text += f" (read up to position {most - 1:,} with its generated tokens)"
    cross = point.mask is not None and point.mask.cross
    of_keys = (f"a source of {source or 0:,} tokens", source or 0) if cross else (text, most)
    for key, own, (of, count) in (("tokens", part.tokens, (text, most)), ("keys", part.keys, of_keys)):
        if own is None or point.kind == "output":
            continue
        for found in own.ranges:
            if found.start >= count:
                raise InvalidRequest(
                    f"point={brief(part.name)}: {key}={own.text} selects position {found.start:,}, and {of} has no "
                    f"such position: select positions below {count:,}"
                )


def never_recorded(part: Selection, count: int) -> str:
    """A sentence about a recording that begins after the ``count`` tokens that were read; "" if it does not."""
    if part.point.kind == "output" or part.tokens.start < count:
        return ""
    return (
        f"point={brief(part.name)}: nothing was recorded: tokens={part.tokens.text} begins at position "
        f"{part.tokens.start:,}, and the text ended after {count:,} tokens"
    )


def reach_of(selected: Selection, edit: Edit) -> EditReach:
    """The reach of an edit of a part.

    Raises:
        InvalidRequest: the values do not fit the part, there are more rows of values than selected positions, or a
            position has a weight on a key that the position does not see.
    """
    where, point, own = edit.where, selected.point, selected.keys
    # A range of keys may end after the text, but each range has a key in it.
    own_keys = 0 if own is None else max(part.start for part in own.ranges) + 1
    if edit.values is None:
        return EditReach(edit.where, selected, None, own_keys)
    if point.kind in ("pattern", "scores"):
        values = pattern_rows(selected, edit, edit.values)
        rows, keys = None if values.shape[1] == 1 else values.shape[1], own_keys
        if values.shape[2] > 1:
            columns, seen = (own or EVERY).first(values.shape[2]).listed(ENDLESS), (values != 0).any(0)
            if point.kind == "pattern" and not selected.is_relative:
                _refuse_unseen(selected, where, seen, columns)
            keys = int(columns[seen.any(0) if own is None else ...].max(initial=-1)) + 1
    else:
        values, broadcast = rows_of(selected, edit, edit.values)
        rows, keys = None if broadcast else len(values), 0
    if rows is not None and rows > len(selected.tokens):
        raise edit_error(
            where, f"{rows:,} rows of values for {len(selected.tokens):,} selected positions: give as many"
        )
    return EditReach(edit.where, selected, rows, keys)


def _refuse_unseen(selected: Selection, where: str, weights: NDArray[np.bool_], keys: NDArray[np.int64]) -> None:
    """Refuse ``weights`` (rows, keys) of a pattern edit on ``keys`` that a position does not see.

    A single row applies to all positions. It is checked at the first position, which sees the fewest keys.
    """
    mask = selected.point.mask
    assert mask is not None
    for position, weighted in zip(selected.tokens.first(len(weights)).listed(ENDLESS).tolist(), weights):
        seen = mask.seen(position)
        wrong = keys[weighted & ((keys < seen.start) | (keys >= seen.stop))]
        if len(wrong):
            key = int(wrong.max())
            why = "comes after it" if key > position else f"is outside its window of {mask.window:,}"
            remedy = "give 0 there"
            if len(weights) == 1 and key > position:
                remedy += f", or select the positions from {key:,} on (tokens={key}:)"
            raise edit_error(where, f"position {position:,} attends to token {key:,}, which {why}: {remedy}")


# Edits of attention scores and patterns, grouped by the heads that they change together.
#
# Several edits of a head compose: the change x → factors * x + addends of each edit applies to the result of the edits
# before it. A function pauses the step, and then the edits of all heads are computed in their order. Edits of patterns
# apply after edits of scores.


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
        return tokens if self.values is None or self.values.shape[1] == 1 else tokens.first(self.values.shape[1])

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
    return PatternChange(positions, np.pad(factors, padding), None if addends is None else np.pad(addends, padding))


def _spread(at: NDArray[np.bool_], values: NDArray[np.float32], missing: int, axis: int) -> NDArray[np.float32]:
    """Values of the rows or heads ``at`` as values of all of them, with ``missing`` for the others."""
    shape = list(values.shape)
    shape[axis] = len(at)
    spread = np.full(shape, missing, np.float32)
    spread[(slice(None),) * axis + (at,)] = values
    return spread
