"""A trace that is read while the request runs, as frames of values. A slow reader loses frames.

A frame holds the values of one point that one step has recorded in one sequence. A step adds blocks of values, and a
block holds the frames of one or several points. At most ``limit`` blocks, and at most 64 MiB, wait for the reader.
Further blocks are dropped and counted, so that a slow reader delays no step and fills no memory.

In an encoder-decoder, values of the encoder have the positions of the source. The encoder runs a source once for all
sequences of a request, and their frames come once, with the number of the first sequence.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.plan.points import Point
from pellucid.trace.budget import LIMIT, MOST_LIMIT
from pellucid.trace.instrumentation import Instrumentation, RecordedPart, common, part_of, patterns_of, values_of
from pellucid.trace.selection import Selection, select
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.trace.sinks import Sink
from pellucid.util.checks import whole

# Norms of the rows of recorded values, which a stream sends in place of the values.

TOGETHER = 1 << 20
"""Values that are squared together: float64 copies of more values would not fit into a CPU's caches."""


def row_norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """The Euclidean norm of each row of values (n, ...): (n,) float32, computed in float64."""
    return _norms(values.reshape(len(values), -1))


def _norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """The norms of the last axis."""
    squares = values.astype(np.float64)
    np.multiply(squares, squares, out=squares)
    norms: NDArray[np.float32] = np.sqrt(squares.sum(-1)).astype(np.float32)
    return norms


class BlockNorms:
    """Reduces a step's blocks of values of one kind of rows to the values of some parts, and the norms of ``parts``.

    The columns of the norms' ``parts`` follow all other columns, which begin at column ``first``.
    """

    def __init__(self, parts: Sequence[RecordedPart]) -> None:
        self.parts = list(parts)
        self.selected = tuple(part.selected for part in parts)
        starts, ends = zip(*((part.tokens.start, part.tokens.stop) for part in self.selected))
        self.tokens = range(max(starts), min(ends))
        """The positions that all parts have."""
        self.first = min(place for part in self.parts for place in part.places)
        self._runs: list[tuple[int, int, int]] = []  # of neighbouring parts: first column, number of parts, width
        self._others: list[tuple[int, RecordedPart]] = []
        for number, part in enumerate(self.parts):
            column, width = part.places[0], _width(part)
            if not width:
                self._others.append((number, part))
            elif self._runs and self._follows(number, column, width):
                first, count, _ = self._runs[-1]
                self._runs[-1] = (first, count + 1, width)
            else:
                self._runs.append((column, 1, width))
        self._order = np.argsort([*_numbers(self.parts), *(number for number, _ in self._others)])

    def _follows(self, number: int, column: int, width: int) -> bool:
        first, count, last = self._runs[-1]
        return bool(_width(self.parts[number - 1])) and (first + count * last, last) == (column, width)

    def of(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The norms (n, parts) of a block of values (n, columns)."""
        norms = np.empty((len(block), len(self.parts)), np.float32)
        step = max(1, TOGETHER // block.shape[1])
        for first in range(0, len(block), step):
            rows = block[first : first + step]
            found = [
                _norms(rows[:, column : column + count * width].reshape(len(rows), count, width))
                for column, count, width in self._runs
            ]
            found += [
                row_norms(part_of(part, rows).view(part.selected.point.dtype))[:, None] for _, part in self._others
            ]
            norms[first : first + step] = np.concatenate(found, 1)[:, self._order]
        return norms


def _numbers(parts: Sequence[RecordedPart]) -> list[int]:
    return [number for number, part in enumerate(parts) if _width(part)]


def _width(part: RecordedPart) -> int:
    """The number of columns of a part if they are neighbours and all its values; otherwise 0."""
    selected, view = part.selected, part.selected.point.view
    whole = selected.dims is None and len(part.places) == 1 and view.stride == view.count
    plain = selected.point.kind == "value" and selected.point.dtype == "float32"
    return len(selected.heads) * view.count if whole and plain else 0


def by_rows(parts: Sequence[RecordedPart]) -> dict[str | int, BlockNorms]:
    """The norms of parts by the kind of their rows."""
    kinds: dict[str | int, list[RecordedPart]] = {}
    for part in parts:
        kinds.setdefault(part.selected.point.rows, []).append(part)
    return {rows: BlockNorms(own) for rows, own in kinds.items()}


MOST_BYTES = 64 << 20


@dataclass(frozen=True, repr=False)
class TraceFrame:
    """Values of a point at ``positions`` of sequence number ``sequence``: (n, ...), or a pattern (n, heads, tokens).

    If the stream reduces the point to norms, the values are (n,).
    """

    sequence: int
    selected: Selection
    positions: range
    values: NDArray[Any]

    def __repr__(self) -> str:
        last = self.positions.stop - 1
        where = f"{self.positions.start}" if len(self.positions) == 1 else f"{self.positions.start} to {last}"
        return f"TraceFrame({self.selected.name}, sequence {self.sequence}, position {where}, {self.values.shape})"


class NormFrame(NamedTuple):
    """Norms (n, points) of the rows of several points at ``positions`` of sequence number ``sequence``.

    ``whole``: all of the points have all of the positions.
    """

    sequence: int
    selected: tuple[Selection, ...]
    positions: range
    norms: NDArray[np.float32]
    whole: bool

    def frames(self) -> Iterator[TraceFrame]:
        """Yield the norms of each point."""
        for number, selected in enumerate(self.selected):
            for shared in selected.tokens.runs(self.positions.start, self.positions.stop):
                first = shared.start - self.positions.start
                own = self.norms[first : first + len(shared), number]
                yield TraceFrame(self.sequence, selected, shared, own)


class FrameReader:
    """Calls a function with every frame of a stream, in a thread of its own, until the reader is closed.

    ``close`` waits until all waiting frames have been read. It raises the exception of the function, if there is one.
    """

    def __init__(self, stream: TraceStream, function: Callable[[TraceFrame], object]) -> None:
        self._stream, self._function = stream, function
        self._ready, self._over = threading.Event(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="pellucid-frames", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Signal that frames are waiting."""
        self._ready.set()

    def _work(self) -> None:
        while True:
            self._ready.wait()
            self._ready.clear()
            over = self._over
            try:
                for frame in self._stream.frames():
                    self._function(frame)
            except BaseException as error:
                self._error = error
                self._stream.close()
                return
            if over:
                return

    def stop(self) -> None:
        """Stop without reading the waiting frames."""
        self._stream.close()
        self._over = True
        self._ready.set()
        self._thread.join()

    def close(self) -> None:
        """Read the waiting frames, and stop. Raises the exception of the function, if there is one."""
        self._over = True
        self._ready.set()
        self._thread.join()
        self._stream.close()
        if self._error is not None:
            raise self._error


class _RecordedSide:
    """The parts of a stream whose rows are tokens of the sequences, or tokens of their source."""

    def __init__(self, points: Mapping[str, Point], plain: Sequence[Selection], norms: Sequence[Selection]) -> None:
        self.instrumentation = Instrumentation([*plain, *norms], [], points)
        recorded = self.instrumentation.recorded
        self.plain = [recorded[part] for part in dict.fromkeys(plain)]
        self.norms = by_rows([recorded[part] for part in norms])


class TraceStream:
    """The recorded values of a running request. ``frames`` yields the values. ``close`` ends the recording as well.

    The stream reduces the points ``norms`` to the norms of their rows. ``notify`` is called in the engine's thread when
    frames are waiting or the stream has ended. ``ended`` is called when the stream is closed.

    Raises:
        InvalidRequest: a name matches no point, or matches a point that is not a value of a step.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        names: Sequence[str],
        limit: int = LIMIT,
        notify: Callable[[], object] = lambda: None,
        norms: Sequence[str] = (),
    ) -> None:
        self.limit = whole("limit", limit, 1, MOST_LIMIT)
        plain = select(points, names)
        self.norms = [part for part in dict.fromkeys(select(points, norms)) if part not in plain]
        self.selected = [*plain, *self.norms]
        for part in self.selected:
            if part.point.kind in ("output", "state"):
                raise InvalidRequest(
                    f"point={brief(part.name)}: it is not a value of a step, so it cannot be streamed while the "
                    "request runs"
                )
            if part.tokens.is_relative or len(part.tokens.ranges) > 1 or part.keys is not None:
                raise InvalidRequest(
                    f"point={brief(part.name)}: a stream takes one range of positions, such as tokens=5:9, and all "
                    "keys: select the rest of the trace afterwards"
                )
        self._sides = {
            of_source: _RecordedSide(
                points,
                [part for part in plain if part.point.of_source is of_source],
                [part for part in self.norms if part.point.of_source is of_source],
            )
            for of_source in (False, True)
        }
        self._sources = set[tuple[int, str | int]]()
        """The blocks of sources that have come: a source that loses its pages is encoded again."""
        self.notify, self._lock = notify, threading.Lock()
        self.ended: Callable[[], object] = lambda: None
        self._waiting: deque[_Block] = deque()
        self.dropped = self._bytes = 0
        """The number of blocks of frames that were dropped, because the reader was too slow."""
        self.closed = False

    def recorders(self, count: int, first: Sequence[int] = ()) -> list[SequenceRecorder]:
        """Return recorders for ``count`` sequences. ``first`` lists the first recorded position of each (default 0)."""
        starts = [*first[:count], *[0] * (count - len(first))]
        own = self._sides[False].instrumentation
        return [_StreamRecorder(own, self, partial(self.put, n), start) for n, start in enumerate(starts)]

    @property
    def reads_source(self) -> bool:
        """True if values of an encoder-decoder's encoder were selected."""
        return any(part.point.of_source for part in self.selected)

    def source_recorder(self) -> SequenceRecorder | None:
        """Return the recorder of the sequences' source; None if no values of the source were selected."""
        own = self._sides[True].instrumentation
        return _StreamRecorder(own, self, partial(self.put, 0, of_source=True)) if self.reads_source else None

    def put(
        self, sequence: int, what: str | int, positions: range, values: NDArray[np.float32], of_source: bool = False
    ) -> None:
        """Add a block that a step has recorded. ``what`` is its kind of rows, or the index of its pattern block.

        ``of_source``: the block belongs to the source that the sequence is the first to read.
        """
        if self.closed or (of_source and (sequence, what) in self._sources):
            return
        norms, side = None, self._sides[of_source]
        if (reduced := side.norms.get(what)) is not None:
            norms = reduced.of(values)
            values = values[:, : reduced.first].copy()
        block = _Block(sequence, what, positions, values, norms, side)
        with self._lock:
            full = len(self._waiting) >= self.limit or self._bytes + block.nbytes > MOST_BYTES
            if self.closed or full:
                self.dropped += not self.closed
                return
            if of_source:
                self._sources.add((sequence, what))
            self._waiting.append(block)
            self._bytes += block.nbytes
        self.notify()

    def frames(self) -> Iterator[TraceFrame]:
        """Yield the waiting frames."""
        for frame in self.blocks():
            if isinstance(frame, NormFrame):
                yield from frame.frames()
            else:
                yield frame

    def blocks(self) -> Iterator[TraceFrame | NormFrame]:
        """Yield the waiting frames, with the norms of a step together, at all of its positions."""
        while self._waiting:
            with self._lock:
                block = self._waiting.popleft()
                self._bytes -= block.nbytes
            sequence, what, positions, values, norms, side = block
            parts: Iterator[tuple[Selection, range, NDArray[Any]]]
            if isinstance(what, int):
                parts = patterns_of(side.plain, what, positions, values)
            else:
                parts = values_of(side.plain, what, positions, values)
            for selected, shared, part in parts:
                yield TraceFrame(sequence, selected, shared, part)
            if norms is not None:
                own = side.norms[what]
                whole = common(positions, own.tokens) == positions
                yield NormFrame(sequence, own.selected, positions, norms, whole)

    def close(self) -> None:
        """End the stream, and drop the waiting frames."""
        with self._lock:
            was_closed, self.closed = self.closed, True
            self._waiting.clear()
            self._bytes = 0
        if not was_closed:
            self.ended()


class _Block(NamedTuple):
    """Values that a step has recorded at ``positions``: as ``TraceStream.put`` takes them, and norms (n, parts)."""

    sequence: int
    what: str | int
    positions: range
    values: NDArray[np.float32]
    norms: NDArray[np.float32] | None
    side: _RecordedSide

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.norms is None else self.norms.nbytes)


class _StreamRecorder(SequenceRecorder):
    """Records one sequence into a stream, or the source of a request's sequences.

    Positions from the prefix cache are not computed, and thus not recorded.
    """

    def __init__(self, instrumentation: Instrumentation, stream: TraceStream, sink: Sink, first: int = 0) -> None:
        super().__init__(instrumentation)
        self._stream, self._first = stream, first
        self.stream_to(sink)

    @property
    def closed(self) -> bool:
        return self._stream.closed

    @property
    def first_recorded(self) -> int | None:
        """As in ``Recorder``: None, because a stream must not add computation to its request."""
        return None

    def positions(self, start: int, stop: int) -> range:
        """As in ``Recorder``; empty once the stream is closed."""
        if self._stream.closed:
            return range(start, start)
        return super().positions(min(max(start, self._first), stop), stop)
