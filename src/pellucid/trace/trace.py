"""A trace: the values that were recorded while requests ran, as arrays.

with llm.trace("blocks.*.residual", "blocks.5.attention.pattern[heads=0,3]") as t:
    llm.generate("The capital of France is", max_new_tokens=8)
t["blocks.5.attention.pattern"]     # (B, H, T, T') float32
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point
from pellucid.trace.budget import BUDGET, TraceBudget
from pellucid.trace.edits import Edit
from pellucid.trace.export import Exportable, LabelledArray, frames_of, labelled_part, stacked
from pellucid.trace.frames import TraceStream
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.request_trace import RequestTrace, bound_edits, stream_to
from pellucid.trace.selection import Selection, by_name, select
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.util.checks import whole

MOST_BUDGET = 1 << 50
MOST_SHOWN, MOST_ROWS = 8, 40
"""Limits of a notebook display: MOST_SHOWN patterns or sequences, and MOST_ROWS rows of a table."""


class SequenceTrace(Exportable):
    """The recorded values of one sequence: ``trace["blocks.3.residual"]`` is (T, ...).

    ``ids`` are the tokens that the sequence has read, ``pieces`` their texts. Row t of an array belongs to token t; if
    positions are selected, row 0 belongs to the first selected token. The last generated token is not read. In an
    encoder-decoder, the rows of values of the encoder (``Point.of_source``) belong to the tokens of the source.
    """

    def __init__(self, trace: Trace, recorder: SequenceRecorder) -> None:
        self._trace, self._recorder = trace, recorder

    def __repr__(self) -> str:
        return f"SequenceTrace({len(self):,} tokens, {len(self._trace.selected):,} points)"

    def _repr_html_(self) -> str:
        """The attention patterns as heat maps, and a table of the other recorded points with their shapes."""
        import html

        from pellucid.util.display import heat, table

        parts, rows = [f"<p>{html.escape(repr(self))}</p>"], []
        for part, (_, values, axes, _more) in zip(self._trace.selected, self.labelled()):
            if part.point.kind == "pattern" and len(parts) <= MOST_SHOWN:
                queries, keys = (list(axis.pieces or ()) for axis in axes[1:])
                for head, pattern in zip(part.heads, values):
                    label = f"{part.name}, head {head}"
                    parts.append(f"<h4>{label}</h4>{heat(pattern, queries, keys, label)}")
            else:
                rows.append([part.name, str(values.shape), part.point.about])
        return "".join([*parts, table(["point", "shape", "what it is"], rows[:MOST_ROWS])])

    def __len__(self) -> int:
        """The number of tokens that the sequence has read."""
        return self._recorder.count

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens that the sequence has read."""
        return list(self._recorder.tokens())

    @property
    def pieces(self) -> list[str]:
        """The text of each token."""
        return [self._trace.piece(token) for token in self.ids]

    @property
    def source_ids(self) -> list[int]:
        """The ids of the source's tokens in an encoder-decoder; empty for other models."""
        return [] if self._recorder.source is None else list(self._recorder.source.tokens())

    @property
    def source_pieces(self) -> list[str]:
        """The text of each token of the source in an encoder-decoder; empty for other models."""
        return [self._trace.piece(token) for token in self.source_ids]

    @property
    def edited(self) -> set[str]:
        """The points whose values were changed."""
        return {reach.selected.name for reach in self._recorder.reaches}

    @property
    def dropped(self) -> int:
        """The number of blocks of values that did not fit into the budget."""
        return self._recorder.dropped + (self._recorder.source.dropped if self._recorder.source else 0)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of a point, (T, ...), or of a pattern, (H, T, T').

        T' is the number of tokens of the source in patterns of cross attention.

        Raises:
            InvalidRequest: the point was not selected.
        """
        return self._recorder.array(self._trace.part(name))

    def labelled(self, *names: str) -> list[LabelledArray]:
        """As in ``Exportable``."""
        parts = [self._trace.part(name) for name in names] if names else self._trace.selected
        pieces, source = self.pieces, self.source_pieces
        return [
            labelled_part(self._recorder.selected(part), self._recorder.array(part), pieces, source) for part in parts
        ]

    def at(self, name: str, position: int) -> NDArray[Any]:
        """The value of a point at a position, or the row (H, T') of a pattern. Raises InvalidRequest.

        The position must be among the selected positions.
        """
        part = self._trace.part(name)
        tokens, values = self._recorder.selected(part).tokens, self[name]
        if part.point.kind in ("pattern", "scores"):
            values = values.swapaxes(0, 1)
        count = len(self.source_ids if part.point.of_source else self.ids)
        count = 1 if part.point.rows == "sequences" else count
        if position not in tokens or position >= count:
            raise InvalidRequest(f"position={position}: {name} was not recorded there: select this position")
        found: NDArray[Any] = values[tokens.row_of(position, count)]
        return found


class Trace(Mapping[str, NDArray[Any]], Exportable):
    """Recorded arrays by point name, (B, T, ...), with a row for each sequence, in the order of their start.

    Shorter sequences are padded with NaN (chosen experts with -1). ``sequences`` holds the ``SequenceTrace`` of each
    sequence. ``dropped`` counts the blocks of values that did not fit into the ``budget`` of bytes.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        names: Sequence[str],
        edits: Sequence[Edit] = (),
        budget: int = BUDGET,
        piece: Callable[[int], str] = str,
    ) -> None:
        self._budget = TraceBudget(whole("budget", budget, 1, MOST_BUDGET))
        self.selected = select(points, names)
        self.edits, self._points = list(edits), points
        self._lock, self.piece = threading.Lock(), piece
        self._plain = self._watching_with(self.edits)
        self._by_name = by_name(self.selected)
        self.sequences: list[SequenceTrace] = []
        self.stream: TraceStream | None = None
        """The stream that receives the values during the run, or None."""

    def __repr__(self) -> str:
        missing = f", {self.dropped:,} blocks dropped" if self.dropped else ""
        return (
            f"Trace({len(self.selected):,} points, {len(self.sequences):,} sequences, {self.nbytes / 1e6:,.1f} of "
            f"{self.budget / 1e6:,.1f} MB{missing})"
        )

    def _repr_html_(self) -> str:
        return "".join(sequence._repr_html_() for sequence in self.sequences[:MOST_SHOWN])

    def __bool__(self) -> bool:
        return True  # a trace may have edits and no points

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def get(self, name: str, default: Any = None) -> Any:
        """The values of a point, or the default if the point was not selected."""
        if name not in self._by_name:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of a point. Raises InvalidRequest if the point was not selected, or no sequence has run."""
        part = self.part(name)
        if not self.sequences:
            raise InvalidRequest(f"point={brief(name)}: no sequence ran inside the trace")
        return _stacked([sequence[name] for sequence in self.sequences], part)

    def labelled(self, *names: str) -> list[LabelledArray]:
        """As in ``Exportable``. Sequences are padded as in ``trace[name]``."""
        values = [(name, self[name]) for name in names or self]
        return [stacked([one.labelled(name)[0] for one in self.sequences], array) for name, array in values]

    def to_pandas(self, *names: str) -> Any:
        """As in ``Exportable``, without padding: only the tokens of each sequence."""
        return frames_of([sequence.labelled(*names) for sequence in self.sequences])

    @property
    def dropped(self) -> int:
        """The number of blocks of values that did not fit into the budget."""
        return sum(sequence.dropped for sequence in self.sequences)

    def part(self, name: str) -> Selection:
        """The selected part of a point. Raises InvalidRequest if the point was not selected."""
        part = self._by_name.get(name)
        if part is None and isinstance(name, str):  # the name has a bracket, or a negative block number
            selected = select(self._points, [name])
            part = self._by_name.get(selected[0].name) if len(selected) == 1 else None
            if part is not None and "[" in name and part != selected[0]:
                raise InvalidRequest(
                    f"point={brief(name)}: the trace has another part of this point: read {part.name} without a bracket"
                )
        if part is None:
            some = ", ".join(list(self._by_name)[:5])
            raise InvalidRequest(f"point={brief(name)}: it is not in this trace; the trace has {some} ...")
        return part

    @property
    def budget(self) -> int:
        """The maximum number of bytes of the trace."""
        return self._budget.most

    @property
    def nbytes(self) -> int:
        """The number of bytes that the trace uses."""
        return self._budget.taken

    def watching(self, edits: Sequence[Edit] = (), probes: Sequence[LinearProbe] = ()) -> RequestTrace:
        """Return this trace for one request, whose ``edits`` apply in addition to the trace's edits.

        ``probes`` score the tokens of the request.

        Raises:
            InvalidRequest: an edit or a probe does not fit its point.
        """
        return self._watching_with([*self.edits, *edits], probes) if edits or probes else self._plain

    def _watching_with(self, edits: Sequence[Edit], probes: Sequence[LinearProbe] = ()) -> RequestTrace:
        bound = bound_edits(self._points, edits)
        return RequestTrace(self._points, self.selected, bound, self._budget, self._keep, self.piece, probes)

    def _keep(self, recorder: SequenceRecorder) -> None:
        with self._lock:
            if self.stream is not None:
                stream_to(self.stream.put, len(self.sequences), recorder)
            self.sequences.append(SequenceTrace(self, recorder))


def _stacked(parts: Sequence[NDArray[Any]], selected: Selection) -> NDArray[Any]:
    """Stack the arrays of sequences, padded to the longest sequence."""
    shape = tuple(max(sizes) for sizes in zip(*(part.shape for part in parts)))
    filling: Any = np.nan if selected.point.dtype == "float32" else -1
    stacked = np.full((len(parts), *shape), filling, parts[0].dtype)
    for row, part in zip(stacked, parts):
        row[tuple(slice(0, size) for size in part.shape)] = part
    return stacked
