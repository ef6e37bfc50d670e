"""Recorded values and results of lenses as tables of pandas, arrays of xarray, Parquet files and plots of matplotlib.

    t.to_pandas("blocks.5.attention.pattern")    columns sequence, token, piece, head, key, key_piece, value
    t.to_xarray("blocks.5.attention.heads")      dims B, T, H, V, with the texts of the tokens
    logit_lens(llm, prompt).plot()

``Exportable`` has the methods. A class that inherits it names its values and their axes in ``labelled``. The libraries
are imported when a method needs them: pip install 'pellucid[notebook]'.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief, reason
from pellucid.trace.selection import Selection
from pellucid.util.display import visible

MOST_BARS, MOST_LABELS, MOST_MAPS = 24, 64, 16
"""Limits of a plot: bars, labels on an axis (of more, some are left out), and heat maps beside each other."""
POSITIVE, NEGATIVE = "#206ebe", "#c85028"
LIGHT_TEXT = 0.6  # the text of a heat map is white on cells above this share of the largest value, which are dark


class Axis(NamedTuple):
    """A dimension of values: its column in a table, its ``letter`` in an array, and a label for each index.

    ``pieces`` are the texts of tokens, if the labels are positions.
    """

    name: str
    letter: str
    labels: Sequence[Any]
    pieces: Sequence[str] | None = None

    @property
    def texts(self) -> list[str]:
        """The labels of a plot: the texts of tokens, else the labels."""
        return [visible(label) for label in (self.labels if self.pieces is None else self.pieces)]


class LabelledArray(NamedTuple):
    """Values with an axis for each dimension. ``more`` has other values of the same shape, by their column."""

    name: str
    values: NDArray[Any]
    axes: tuple[Axis, ...]
    more: Mapping[str, NDArray[Any]] = {}


class Exportable:
    """Values that can be exported. Methods take the names of values, all by default."""

    def labelled(self, *names: str) -> list[LabelledArray]:
        """The values with the given names, and their axes. Raises InvalidRequest if there is no such value."""
        return values_named(self._values(), names)

    def _values(self) -> Sequence[LabelledArray]:
        """All values. The first is the default."""
        raise NotImplementedError

    def to_pandas(self, *names: str) -> Any:
        """A pandas ``DataFrame`` in long form: a row for each number, with columns for its indices and its ``value``.

        ``point`` is the name of the values. Positions have a second column with the text of the token: ``piece`` for
        ``token``, and ``key_piece`` for ``key``.

        Raises: InvalidRequest if pandas is not installed, or if there is no such value.
        """
        return _frame(self.labelled(*names))

    def to_parquet(self, path: str | Path, *names: str) -> None:
        """Write the table of ``to_pandas`` to a Parquet file.

        Raises: as ``to_pandas``; InvalidRequest if pyarrow is not installed, or the file cannot be written.
        """
        library("pyarrow", "to_parquet")
        table = self.to_pandas(*names)
        try:
            table.to_parquet(path, engine="pyarrow", index=False)
        except OSError as error:
            raise InvalidRequest(f"path={str(path)!r}: cannot be written: {reason(error)}") from error

    def to_xarray(self, name: str = "") -> Any:
        """An xarray ``DataArray``. Its dims are the letters of the shape; positions have a coordinate with texts.

        Raises: InvalidRequest if xarray is not installed, or if there is no such value, or several and no name.
        """
        return _data_array(library("xarray", "to_xarray"), self._one("to_xarray", name))

    def plot(self, name: str = "", *, ax: Any = None) -> Any:
        """Draw values with matplotlib: one dimension as bars, two as a heat map, three as a heat map for each head.

        Dimensions of size 1 are left out. Returns the axes (an array of axes for several maps); ``ax`` draws into
        existing axes.

        Raises: InvalidRequest if matplotlib is not installed, or if the values have other dimensions.
        """
        return plotted(self._one("plot", name), ax)

    def _one(self, method: str, name: str) -> LabelledArray:
        found = self.labelled(name) if name else self.labelled()
        if len(found) != 1:
            names = ", ".join(brief(part.name) for part in found[:5])
            raise InvalidRequest(f"{method}: there are {len(found):,} values: give the name of one, such as {names}")
        return found[0]


def frames_of(sequences: Sequence[Sequence[LabelledArray]]) -> Any:
    """A table of several sequences, as ``to_pandas`` of each, with a column ``sequence``."""
    return _frame(
        [
            part._replace(axes=(Axis("sequence", "B", [number]), *part.axes), values=part.values[None])
            for number, parts in enumerate(sequences)
            for part in parts
        ]
    )


def token_axis(pieces: Sequence[str]) -> Axis:
    return Axis("token", "T", range(len(pieces)), pieces)


def numbered(name: str, letter: str, count: int) -> Axis:
    return Axis(name, letter, range(count))


def labelled_part(
    part: Selection, values: NDArray[Any], pieces: Sequence[str], source_pieces: Sequence[str]
) -> LabelledArray:
    """The ``values`` of a selected part in a sequence, whose positions ``part`` has resolved.

    ``pieces`` are the texts of the sequence's tokens, ``source_pieces`` the texts of the source's tokens.
    """
    point = part.point
    texts = source_pieces if point.of_source else pieces
    shape, tokens = list(values.shape), part.tokens.listed(len(texts))
    head = Axis("head", (point.letters or ("H",))[0], part.heads)
    if point.kind in ("pattern", "scores"):
        others = source_pieces if point.mask and point.mask.cross else texts
        keys = part.keys.listed(len(others)) if part.keys else np.arange(shape[2])
        queries = _positions("token", "T", tokens[: shape[1]], texts)
        return LabelledArray(part.name, values, (head, queries, _positions("key", "T'", keys[: shape[2]], others)))
    if point.kind == "output" or point.rows == "sequences":
        rows = numbered("number", "N", shape[0])
        return LabelledArray(part.name, values, (rows, *(numbered("dim", "C", size) for size in shape[1:])))
    axes = [_positions("token", "T", tokens[: shape[0]], texts), *([head] if point.heads else [])]
    dims = range(shape[-1]) if part.dims is None else part.dims
    return LabelledArray(part.name, values, (*axes, Axis("dim", (point.letters or ("D",))[-1], dims)))


def _positions(name: str, letter: str, positions: NDArray[np.int64], texts: Sequence[str]) -> Axis:
    listed = positions.tolist()
    return Axis(name, letter, listed, [texts[at] for at in listed])


def values_named(parts: Sequence[LabelledArray], names: Sequence[str]) -> list[LabelledArray]:
    """The values with the given names; without names the first value. Raises InvalidRequest."""
    values = {part.name: part for part in parts}
    for name in names:
        if name not in values:
            raise InvalidRequest(f"name={brief(name)}: must be one of {', '.join(values)}")
    return [values[name] for name in names or list(values)[:1]]


def json_fields(of: Any, *names: str) -> dict[str, Any]:
    """Some fields of a result as a dictionary for JSON: arrays are lists, and other results dictionaries."""
    return {name: _json(getattr(of, name)) for name in names}


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if is_dataclass(value):
        return json_fields(value, *(own.name for own in fields(value)))
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def stacked(parts: Sequence[LabelledArray], values: NDArray[Any]) -> LabelledArray:
    """The values of several sequences, (B, ...), padded to the longest."""
    longest = [
        max((part.axes[at] for part in parts), key=lambda axis: len(axis.labels)) for at in range(values.ndim - 1)
    ]
    axes = []
    for at, axis in enumerate(longest):
        same = all(part.axes[at] == axis for part in parts)
        labels = (
            axis.labels
            if _is_prefix([part.axes[at].labels for part in parts], axis.labels)
            else range(len(axis.labels))
        )
        axes.append(axis._replace(labels=labels, pieces=axis.pieces if same else None))
    return LabelledArray(parts[0].name, values, (numbered("sequence", "B", len(parts)), *axes))


def _is_prefix(parts: Sequence[Sequence[Any]], whole: Sequence[Any]) -> bool:
    return all(list(part) == list(whole[: len(part)]) for part in parts)


def library(module: str, method: str) -> Any:
    """A module that ``method`` needs. Raises InvalidRequest, with the remedy, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InvalidRequest(
            f"{method} needs {package}, which is not installed: pip install {package}, or 'pellucid[notebook]'"
        ) from error


def _frame(parts: Sequence[LabelledArray]) -> Any:
    pandas = library("pandas", "to_pandas")
    frames = [pandas.DataFrame(_columns(part)) for part in parts]
    return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)


def _columns(part: LabelledArray) -> dict[str, Any]:
    shape, columns = part.values.shape, dict[str, Any](point=part.name)
    for at, axis in enumerate(part.axes):
        within = [-1 if other == at else 1 for other in range(len(shape))]
        for name, labels in ((axis.name, axis.labels), (_piece(axis), axis.pieces)):
            if labels is not None:
                columns[name] = np.broadcast_to(_objects(labels).reshape(within), shape).reshape(-1)
    return {
        **columns,
        **{name: values.reshape(-1) for name, values in part.more.items()},
        "value": part.values.reshape(-1),
    }


def _piece(axis: Axis) -> str:
    return "piece" if axis.name == "token" else f"{axis.name}_piece"


def _objects(labels: Sequence[Any]) -> NDArray[Any]:
    """Labels as an array: integers, or texts as objects, so that no text is cut."""
    array = np.asarray(labels)
    return array if array.dtype.kind in "iu" else np.array(list(labels), object)


def _data_array(xarray: Any, part: LabelledArray) -> Any:
    coordinates: dict[str, Any] = {axis.letter: _objects(axis.labels) for axis in part.axes}
    for axis in part.axes:
        if axis.pieces is not None:
            coordinates[_piece(axis)] = (axis.letter, _objects(axis.pieces))
    dims = [axis.letter for axis in part.axes]
    for name, values in part.more.items():
        coordinates[name] = (dims, values)
    return xarray.DataArray(part.values, coordinates, dims, name=part.name)


def _squeezed(part: LabelledArray) -> LabelledArray:
    axes = tuple(axis for axis in part.axes if len(axis.labels) != 1)
    shape = [len(axis.labels) for axis in axes]
    more = {name: values.reshape(shape) for name, values in part.more.items()}
    return LabelledArray(part.name, part.values.reshape(shape), axes, more)


def plotted(part: LabelledArray, ax: Any) -> Any:
    """Draw values as ``Exportable.plot``."""
    pyplot, part = library("matplotlib.pyplot", "plot"), _squeezed(part)
    names = [axis.name for axis in part.axes]
    if len(names) == 3 and names[0] == "head" and len(part.axes[0].labels) <= MOST_MAPS and ax is None:
        count = len(part.axes[0].labels)
        _, grid = pyplot.subplots(1, count, figsize=(4 * count, 4), squeeze=False, layout="constrained")
        for own, head, values in zip(grid[0], part.axes[0].labels, part.values):
            _heat(LabelledArray(f"{part.name}, head {head}", values, part.axes[1:]), own)
        return grid[0]
    if len(names) not in (1, 2):
        raise InvalidRequest(
            f"plot: {part.name} has the dimensions {', '.join(names) or 'of a number'}: select one index, such as "
            "[heads=3], until two dimensions are left"
        )
    if ax is None:
        ax = pyplot.figure(layout="constrained").add_subplot()
    return (_bars if len(names) == 1 else _heat)(part, ax)


def _bars(part: LabelledArray, ax: Any) -> Any:
    """Draw bars from left to right for tokens, and the largest values from top to bottom for parts."""
    axis, values = part.axes[0], np.asarray(part.values, np.float64)
    order, texts = np.arange(len(values)), axis.texts
    if axis.pieces is None:
        order = np.argsort(-np.abs(values), kind="stable")[:MOST_BARS]
    colours = [POSITIVE if value >= 0 else NEGATIVE for value in values[order]]
    places = np.arange(len(order))
    if axis.pieces is None:
        ax.barh(places, values[order], color=colours)
        ax.set_yticks(places, [texts[at] for at in order], parse_math=False)
        ax.invert_yaxis()
    else:
        ax.bar(places, values[order], color=colours)
        ax.set_xticks(places, texts, rotation=90, parse_math=False)
    ax.set_title(part.name)
    return ax


def _heat(part: LabelledArray, ax: Any) -> Any:
    """Draw a heat map: blue for positive and red for negative values, on one scale around 0."""
    values = np.asarray(part.values, np.float64)
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max(initial=0.0)) or 1.0
    signed = bool((values[np.isfinite(values)] < 0).any())
    drawn = np.where(np.isfinite(values), values, np.nan)
    image = ax.imshow(
        drawn, cmap="RdBu" if signed else "Blues", vmin=-largest if signed else 0.0, vmax=largest, aspect="auto"
    )
    for axis, ticks, label, rotation in (
        (part.axes[0], ax.set_yticks, ax.set_ylabel, 0),
        (part.axes[1], ax.set_xticks, ax.set_xlabel, 90),
    ):
        step = -(-len(axis.labels) // MOST_LABELS)
        ticks(np.arange(0, len(axis.labels), step), axis.texts[::step], rotation=rotation, parse_math=False)
        label(axis.name)
    for (row, column), text in np.ndenumerate(part.more.get("text", np.empty((0, 0)))):
        colour = "white" if abs(drawn[row, column]) > LIGHT_TEXT * largest else "black"
        ax.text(column, row, visible(text), color=colour, ha="center", va="center", fontsize=7, parse_math=False)
    ax.figure.colorbar(image, ax=ax)
    ax.set_title(part.name)
    return ax
