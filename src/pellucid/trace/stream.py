"""A trace that is read while the request runs: frames of values, of which a slow reader loses some.

A frame is what a step has recorded of a point in one sequence. At most ``limit`` blocks of frames wait, and 64 MiB;
further ones are dropped and counted, so that a reader never holds up a step or fills memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.points import Point
from pellucid.trace.recorder import SequenceProbe
from pellucid.trace.recording import Recording, patterns_of, values_of
from pellucid.trace.selection import Selected, select
from pellucid.util.checks import whole

LIMIT, MOST_LIMIT, MOST_BYTES = 256, 1 << 16, 64 << 20


@dataclass(frozen=True, repr=False)
class TraceFrame:
    """Values of a point at ``positions`` of sequence number ``sequence``: (n, ...); of a pattern (n, heads, tokens)."""

    sequence: int
    selected: Selected
    positions: range
    values: NDArray[Any]

    def __repr__(self) -> str:
        last = self.positions.stop - 1
        where = f"{self.positions.start}" if len(self.positions) == 1 else f"{self.positions.start} to {last}"
        return f"TraceFrame({self.selected.name}, sequence {self.sequence}, position {where}, {self.values.shape})"


class FrameReader:
    """Calls a function with every frame of a stream, in a thread of its own, until it is closed.

    ``close`` waits until all frames that are there have been read, and raises what the function has raised.
    """

    def __init__(self, stream: TraceStream, function: Callable[[TraceFrame], object]) -> None:
        self._stream, self._function = stream, function
        self._ready, self._over = threading.Event(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="pellucid-frames", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Frames are there."""
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
        """End without reading what is left."""
        self._stream.close()
        self._over = True
        self._ready.set()
        self._thread.join()

    def close(self) -> None:
        """No frame comes any more."""
        self._over = True
        self._ready.set()
        self._thread.join()
        self._stream.close()
        if self._error is not None:
            raise self._error


class TraceStream:
    """What is recorded of a request while it runs. Iterate over ``frames``; ``close`` ends it for both sides.

    ``notify`` is called, in the engine's thread, when frames are there or the stream has ended; ``ended`` when it is
    closed.

    Raises:
        InvalidRequest: a name stands for no point.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        wanted: Sequence[str],
        limit: int = LIMIT,
        notify: Callable[[], object] = lambda: None,
    ) -> None:
        self.limit = whole("limit", limit, 1, MOST_LIMIT)
        self.selected = select(points, wanted)
        for one in self.selected:
            if one.point.kind in ("output", "state"):
                raise InvalidRequest(
                    f"point={brief(one.name)}: it is no value of a step, and cannot be heard of while the request runs"
                )
        self._recording = Recording(self.selected, [])
        self.notify, self._lock = notify, threading.Lock()
        self.ended: Callable[[], object] = lambda: None
        self._waiting: deque[tuple[int, str | int, range, NDArray[np.float32]]] = deque()
        self.dropped = self._bytes = 0
        """Frames that nobody has read in time."""
        self.closed = False

    def probes(self, count: int, first: Sequence[int] = ()) -> list[SequenceProbe]:
        """Probes for the sequences of a request; of each the ``first`` position that is wanted, if it is not 0."""
        starts = [*first[:count], *[0] * (count - len(first))]
        return [_StreamedProbe(self._recording, self, number, start) for number, start in enumerate(starts)]

    def put(self, sequence: int, what: str | int, positions: range, block: NDArray[np.float32]) -> None:
        """A step has recorded a block: of a kind of rows, or of pattern taps by its number."""
        with self._lock:
            full = len(self._waiting) >= self.limit or self._bytes + block.nbytes > MOST_BYTES
            if self.closed or full:
                self.dropped += not self.closed
                return
            self._waiting.append((sequence, what, positions, block))
            self._bytes += block.nbytes
        self.notify()

    def frames(self) -> Iterator[TraceFrame]:
        """The frames that wait."""
        while self._waiting:
            with self._lock:
                sequence, what, positions, block = self._waiting.popleft()
                self._bytes -= block.nbytes
            parts: Iterator[tuple[Selected, range, NDArray[Any]]]
            if isinstance(what, int):
                parts = patterns_of(self._recording, what, positions, block)
            else:
                parts = values_of(self._recording, what, positions, block)
            for selected, own, values in parts:
                yield TraceFrame(sequence, selected, own, values)

    def close(self) -> None:
        """Nobody reads it any more."""
        with self._lock:
            was_closed, self.closed = self.closed, True
            self._waiting.clear()
            self._bytes = 0
        if not was_closed:
            self.ended()


class _StreamedProbe(SequenceProbe):
    """Records one sequence into a stream. What the prefix cache has is not computed for it, and not recorded."""

    def __init__(self, recording: Recording, stream: TraceStream, number: int, first: int) -> None:
        super().__init__(recording, None)
        self._stream, self._number, self._first = stream, number, first

    @property
    def closed(self) -> bool:
        """As in ``SequenceWatch``."""
        return self._stream.closed

    @property
    def first_recorded(self) -> int | None:
        """As in ``Probe``: a request that somebody looks at costs no more than it would."""
        return None

    def positions(self, start: int, stop: int) -> range:
        """As in ``Probe``: none when nobody reads any more."""
        if self._stream.closed:
            return range(start, start)
        return super().positions(min(max(start, self._first), stop), stop)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        self._stream.put(self._number, rows, positions, values)

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        self._stream.put(self._number, block, positions, rows)
