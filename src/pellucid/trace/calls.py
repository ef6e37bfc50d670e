"""Functions of edits: their context, their calls, and their results, which a recomputed token gets again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.errors.messages import brief, shown
from pellucid.trace.edits import Edit, edit_error
from pellucid.trace.selection import Selection


class CallContext:
    """The place of a call of an edit's function: the values of ``point`` at ``positions`` of a sequence.

    ``tokens`` are the ids of the tokens at the positions. ``phase`` is "prefill" for tokens of the prompt and "decode"
    for generated tokens. ``layer`` is the number of the block (None outside of blocks). ``sequence`` is the number of
    the sequence in its request. ``state`` is a dictionary for the functions' own use. It lives as long as the request,
    and all functions of the request share it. ``context[point]`` has the values of a point of ``reads``.
    """

    def __init__(
        self,
        selected: Selection,
        sequence: int,
        positions: NDArray[np.int64],
        tokens: Sequence[int],
        prompt: int,
        state: dict[Any, Any],
        piece: Callable[[int], str],
        values: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.point, self.heads, self.sequence = selected.name, selected.heads, sequence
        self.positions, self.tokens, self.state = positions, list(tokens), state
        self.phase = "prefill" if positions[0] < prompt else "decode"
        name = self.point.split("blocks.", 1)[-1].split(".")[0]
        self.layer = int(name) if "blocks." in self.point and name.isdecimal() else None
        self._piece, self._values = piece, values

    def __repr__(self) -> str:
        return (
            f"CallContext({self.point}, {self.phase}, positions {self.positions[0]} to {self.positions[-1]})"
        )

    @property
    def pieces(self) -> list[str]:
        """The text of each token."""
        return [self._piece(token) for token in self.tokens]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The values (n, ...) of a point of ``reads`` at the positions. Raises KeyError for another name."""
        return self._values[name]


class CalledRows:
    """The results of a function by position. A sequence that loses its pages computes its tokens again; they get them.

    None: the values of the position stay unchanged.
    """

    def __init__(self) -> None:
        self._rows: dict[int, NDArray[np.float32] | None] = {}

    def copy(self) -> CalledRows:
        """A copy for a sequence that continues this sequence."""
        copied = CalledRows()
        copied._rows = dict(self._rows)
        return copied

    def new(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the positions the function has not seen."""
        return np.array([int(at) not in self._rows for at in positions], bool)

    def keep(self, positions: NDArray[np.int64], rows: NDArray[np.float32] | None) -> None:
        """Keep the rows (n or 1, ...) of new positions."""
        for number, at in enumerate(positions):
            self._rows[int(at)] = None if rows is None else rows[number if len(rows) > 1 else 0]

    def of(self, position: int) -> NDArray[np.float32] | None:
        """The row of a position."""
        return self._rows[position]


def run_function(
    edit: Edit,
    values: NDArray[np.float32],
    context: CallContext,
    checked: Callable[[Any], NDArray[np.float32]],
) -> NDArray[np.float32] | None:
    """Call the function of an edit. ``checked`` turns its result into rows, one for each position or one for all.

    Returns None if the function returns None.

    Raises:
        InvalidRequest: the function fails, or its result does not fit.
    """
    assert edit.function is not None
    values.flags.writeable = False  # only the function's return value may change the values
    try:
        result = edit.function(values, context) if edit.with_context else edit.function(values)
        if result is None:
            return None
        rows = checked(result)
        if len(rows) not in (1, len(values)):
            raise edit_error(edit.where, f"the function returns {len(rows)} rows for {len(values)} positions")
        return rows
    except PellucidError:
        raise
    except KeyError as error:
        if error.args and isinstance(error.args[0], str) and error.args[0] not in edit.reads:
            reason = f"the function reads {brief(error.args[0])}, which is not in reads={list(edit.reads)}"
            raise edit_error(edit.where, reason) from error
        raise _failed(edit, error) from error
    except BaseException as error:  # any exception ends only this request
        raise _failed(edit, error) from error


def _failed(edit: Edit, error: BaseException) -> PellucidError:
    return edit_error(edit.where, f"the function fails: {type(error).__name__}: {shown(str(error))}")
