"""The positions that an edit reaches. An edit without effect is refused before the run, or reported after it.

Before a run the engine knows the maximum number of tokens that a sequence reads, and the first position whose logits
are computed. If the sequence ends earlier, an edit may stay unused. ``unused`` reports this edit after the run.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.edits import Edit, edit_error, pattern_rows, rows_of
from pellucid.trace.positions import ENDLESS, EVERY, Positions
from pellucid.trace.selection import Selection


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
            raise edit_error(
                self.where, f"it {found}, and {text} has no such position: select one below {most:,}"
            )
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


def _refuse_unseen(
    selected: Selection, where: str, weights: NDArray[np.bool_], keys: NDArray[np.int64]
) -> None:
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
