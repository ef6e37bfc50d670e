"""Edits (interventions): changes of values during a run. An edit changes a part of a point at some positions.

    ablate("blocks.3.attention.heads[heads=2]")                     zeros, or ``values`` such as a mean
    scale("blocks.3.feedforward.hidden[dims=17]", 2.0)              x * factor
    add("blocks.10.residual[tokens=5:]", vector, factor=4.0)        x + factor * vector
    replace("blocks.3.residual", values)                            the values of another run
    call("blocks.3.residual", function)                             function(values) in place of the values
    mask("blocks.3.attention.scores[heads=0; tokens=-1; keys=2:5]") attention that does not see some keys
    replace("blocks.3.attention.pattern[heads=0]", pattern)         a pattern: (keys,), (H, keys) or (H, T, keys)
    forbid_expert(3, 17), force_expert(3, 17)                       the experts that the router of block 3 chooses
    forbid_token(42), force_token(42, tokens="5")                   the next token, here after position 5

Values have a row for each selected position, (T, ...), in the written order. A single row (...) applies to all
positions. If there are fewer rows, they belong to the lowest positions, and the other positions stay unchanged. A row
without a position is refused.

How an edit gets to the numbers: `Instrumentation` finds its columns (``trace/instrumentation.py``), and the operation
``trace_edit`` changes them after the operation that computes the value (``kernels/ops/copies.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import InvalidRequest, PellucidError, brief, shown
from pellucid.trace.selection import Selection, runs_of
from pellucid.util.checks import real, whole

LARGEST = 1e30

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of the part of a point that ``where`` selects: ``factor`` * x + ``values``, or ``function``(x).

    ``values`` have a row for each selected position, or a single row for all positions. The function also gets the
    values of the points ``reads``.
    """

    where: str
    factor: float = 1.0
    values: ArrayLike | None = None
    function: Function | None = None
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", real("factor", self.factor, -LARGEST, LARGEST))
        if self.function is not None and not callable(self.function):
            raise InvalidRequest(f"function={brief(self.function)}: must be a function of an array")

    @property
    def with_context(self) -> bool:
        """True if the function takes a second argument, the ``CallContext``."""
        assert self.function is not None
        return takes_context(self.function) or bool(self.reads)

    def __repr__(self) -> str:
        if self.function is not None:
            return f"call({self.where!r}, {brief(self.function)})"
        added = "" if self.values is None else f" + values {np.shape(self.values)}"
        return f"Edit({self.where!r}: {self.factor:g} x{added})"


def ablate(where: str, values: ArrayLike = 0.0) -> Edit:
    """Replace a part of a point by zeros, or by ``values``, such as its mean over other texts."""
    return Edit(where, 0.0, None if np.ndim(values) == 0 and not np.any(values) else values)


def scale(where: str, factor: float) -> Edit:
    """Multiply a part of a point by ``factor``."""
    return Edit(where, factor)


def add(where: str, vector: ArrayLike, factor: float = 1.0) -> Edit:
    """Add ``factor`` times a vector to a part of a point (steering)."""
    number = np.float32(real("factor", factor, -LARGEST, LARGEST))
    with np.errstate(over="ignore"):
        return Edit(where, 1.0, _numbers(where, np.multiply(_numbers(where, vector), number)))


def replace(where: str, values: ArrayLike) -> Edit:
    """Replace a part of a point by ``values``, such as the values of another run (activation patching)."""
    return Edit(where, 0.0, values)


def mask(where: str) -> Edit:
    """Hide some ``keys`` from some ``tokens``: "blocks.3.attention.scores[heads=0; tokens=-1; keys=2:5]".

    The scores of the keys become minus infinity before the softmax, so that the other weights sum to 1 (attention
    knock-out). If a token sees no key any more, its weights are 0.
    """
    return Edit(where, 0.0, -np.inf)


def call(where: str, function: Function, reads: str | Sequence[str] = ()) -> Edit:
    """Replace the values of a step, float32 (n, ...) for n positions, by ``function(values)``.

    A function with two arguments is called as ``function(values, context)`` with a `CallContext`: the positions, their
    tokens, and a dictionary that the request keeps. ``context[point]`` has the values of a point of ``reads`` at the
    same positions; the step computes this point before. Patterns and scores are (n, heads, keys), with the selected
    keys up to the last token of the step. Heads, dims and keys have the written order.

    A function sees each token of a sequence once, in order, however the prompt is divided into steps. It is called in
    the thread that runs the steps of all requests, so all requests wait for it. If it returns None, the values stay
    unchanged.
    """
    if not callable(function):
        raise InvalidRequest(f"function={brief(function)}: must be a function of an array")
    return Edit(where, function=function, reads=(reads,) if isinstance(reads, str) else tuple(reads))


def takes_context(function: Function) -> bool:
    """True if a function must be called with two arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C without a signature
        return False
    needed = [one for one in parameters if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD]
    return len(needed) >= 2


def forbid_expert(block: int, expert: int, tokens: str = ":") -> Edit:
    """Prevent a mixture's router from choosing an expert at the positions ``tokens``, such as "3:9"."""
    return ablate(f"blocks.{block}.feedforward.router[dims={expert}; tokens={tokens}]", -LARGEST)


def force_expert(block: int, expert: int, tokens: str = ":") -> Edit:
    """Make a mixture's router choose an expert: its score becomes slightly higher than the highest score."""

    def best(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        whole("expert", expert, -scores.shape[-1], scores.shape[-1] - 1)
        changed = scores.copy()
        highest = changed.max(-1)
        changed[:, expert] = highest + np.maximum(np.abs(highest), 1) * np.float32(1e-3)
        return changed

    whole("expert", expert, -(1 << 20), 1 << 20)
    return call(f"blocks.{block}.feedforward.router[tokens={tokens}]", best)


def forbid_token(token: int, tokens: str = ":") -> Edit:
    """Forbid a token as the next token after the positions ``tokens``."""
    whole("token", token, 0, 1 << 31)
    return ablate(f"project.logits[dims={token}; tokens={tokens}]", -LARGEST)


def force_token(token: int, tokens: str) -> Edit:
    """Force a token as the next token after each of the positions ``tokens``."""

    def only(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = np.full_like(logits, -LARGEST)
        changed[:, token] = 0.0
        return changed

    whole("token", token, 0, 1 << 31)
    return call(f"project.logits[tokens={tokens}]", only)


def listed(edits: Any) -> list[Edit]:
    """Return a request's edits as a list. Raises InvalidRequest if ``edits`` is not a list or tuple."""
    if not isinstance(edits, (list, tuple)):
        raise InvalidRequest(f"edits={brief(edits)}: must be a list of edits")
    return list(edits)


def edit_error(where: str, reason: str) -> InvalidRequest:
    """An error about the edit of the part ``where``."""
    return InvalidRequest(f"edit of {brief(where)}: {reason}")


def _numbers(where: str, values: Any, *, masks: bool = False) -> NDArray[np.float32]:
    """Values as float32. Raises InvalidRequest unless they are finite, or minus infinity where it ``masks`` a score."""
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise TypeError
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise edit_error(where, "its values are not numbers") from None
    if np.isneginf(numbers).any() and not masks:
        raise edit_error(
            where, "minus infinity hides keys in attention scores: name a point such as blocks.3.attention.scores"
        )
    if not (np.isfinite(numbers) | (masks & np.isneginf(numbers))).all():
        raise edit_error(where, "a value is not finite (NaN, or too large for float32)")
    if not numbers.size:
        raise edit_error(where, "there are no values")
    return numbers


def rows_of(selected: Selection, edit: Edit, values: Any) -> tuple[NDArray[np.float32], bool]:
    """Return values as rows of the selected columns, (n, heads * dims) float32.

    Also returns True if a single row applies to all positions.

    Raises:
        InvalidRequest: the values have another shape than the selected part.
    """
    rows = _numbers(edit.where, values)
    shape = shape_of(selected)
    if rows.ndim == 0:
        return np.full((1, int(np.prod(shape))), rows, np.float32), True
    if rows.shape == shape or rows.shape == (int(np.prod(shape)),):
        return np.ascontiguousarray(rows.reshape(1, -1)), True
    if rows.ndim == len(shape) + 2 and len(rows) == 1:  # the shape of a trace's arrays: (B, T, ...)
        rows = rows[0]
    if rows.ndim == len(shape) + 1 and rows.shape[1:] == shape:
        return np.ascontiguousarray(rows.reshape(len(rows), -1)), False
    shapes = f"{shape} or {('T', *shape)}".replace("'", "")
    raise edit_error(edit.where, f"values of shape {rows.shape}; the selected part takes {shapes}")


def pattern_rows(selected: Selection, edit: Edit, values: Any) -> NDArray[np.float32]:
    """Return values of patterns or scores as (heads, rows, keys) float32.

    One head, row or key applies to all heads, positions or selected keys. Scores may be minus infinity.

    Raises:
        InvalidRequest: the shape is none of (), (keys,), (heads, keys) and (heads, rows, keys).
    """
    rows = _numbers(edit.where, values, masks=selected.point.kind == "scores")
    heads, keys = len(selected.heads), selected.keys
    if rows.ndim == 4 and len(rows) == 1:  # the shape of a trace's arrays: (B, H, T, T')
        rows = rows[0]
    if rows.ndim == 0:
        return rows.reshape(1, 1, 1)
    own = rows[None, None] if rows.ndim == 1 else rows[:, None] if rows.ndim == 2 else rows
    count = own.shape[-1] if keys is None or keys.is_open else len(keys)
    if own.ndim != 3 or (rows.ndim > 1 and len(own) != heads) or own.shape[-1] != count:
        size = "keys" if keys is None else f"{count:,}"
        noun = "a pattern takes" if selected.point.kind == "pattern" else "scores take"
        shapes = f"({size},), ({heads}, {size}) or ({heads}, T, {size})"
        raise edit_error(edit.where, f"values of shape {rows.shape}; {noun} {shapes}")
    return np.ascontiguousarray(own)


def shape_of(selected: Selection) -> tuple[int, ...]:
    """The shape of a selected part at one position."""
    dims = selected.point.view.count if selected.dims is None else len(selected.dims)
    return (len(selected.heads), dims) if selected.point.heads else (dims,)


class ColumnRun(Struct, frozen=True):
    """Consecutive columns of a buffer. If each part of a view has its own rows, they are columns of ``part``'s rows."""

    part: int
    first: int
    count: int


def spans_of(selected: Selection) -> list[tuple[ColumnRun, NDArray[np.int64]]]:
    """The columns of a selected part as one run for each part that has its own rows, otherwise as one run.

    Each run comes with the selected columns in the order of the values, counted from the run's first column.
    """
    columns = dict[int, list[int]]()
    for run in columns_of(selected):
        columns.setdefault(run.part, []).extend(range(run.first, run.first + run.count))
    return [
        (ColumnRun(part, min(own), max(own) + 1 - min(own)), np.array(own) - min(own)) for part, own in columns.items()
    ]


def columns_of(selected: Selection) -> list[ColumnRun]:
    """The columns of a selected part, without padding, in the order of its values."""
    view = selected.point.view
    dims: Sequence[int] = range(view.count) if selected.dims is None else selected.dims
    if view.places:
        return [ColumnRun(part, *run) for part in selected.heads for run in runs_of(dims)]
    return [ColumnRun(0, *run) for run in runs_of(h * view.stride + d for h in selected.heads for d in dims)]


# Functions of edits: their context, their calls, and their results, which a recomputed token gets again.


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
        return f"CallContext({self.point}, {self.phase}, positions {self.positions[0]} to {self.positions[-1]})"

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
    edit: Edit, values: NDArray[np.float32], context: CallContext, checked: Callable[[Any], NDArray[np.float32]]
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
