"""Streams the values of hook points from a replica. If the request moves, its next replica continues the stream.

    replica: engine → TraceStream → RequestWatch ── frames ──► ingress: RemoteTraceStream → reader
                                              ◄─ "more" ──

The replica sends frames, then waits for the message "more". The ingress sends this message once the reader has read the
frames. Meanwhile new frames wait in the replica's ``TraceStream``, which has a size limit. If the reader is slow, the
``TraceStream`` drops frames.

A client's stream of its ``own`` request is a part of the request: recorded positions are always computed, and the
request may have edits. The replica sends the frames of a step, then its tokens, without waiting for "more". The ingress
drops frames if the reader is slow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from pellucid.cluster import wire
from pellucid.engine.local_request import LocalRequest
from pellucid.engine.recorder import RequestTracer
from pellucid.llm import LLM
from pellucid.plan.points import Point
from pellucid.trace.edits import Edit
from pellucid.trace.frames import MOST_BYTES, TraceFrame, TraceStream
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.request_trace import request_trace, streamed_trace
from pellucid.trace.selection import Selection

TOGETHER = 4 << 20  # bytes of frames in one message; a single frame may be larger
NEVER = 1 << 31  # a position after the end of any sequence
NUMBERS = count(1)


class NumberedRequest(NamedTuple):
    """A local request of a replica. ``numbers`` are the indices of its sequences in the ingress's request.

    Each sequence already has ``resumed`` tokens, which another replica generated.
    """

    numbers: list[int]
    resumed: int
    request: LocalRequest


def _selections(stream: TraceStream) -> list[Selection]:
    """Return the distinct selections of a stream. In messages a selection is an index of this list."""
    return list(dict.fromkeys(stream.selected))


class RemoteTraceStream(TraceStream):
    """The ingress's end of a trace stream. ``tell`` sends a message about the request to its replica.

    If another replica takes over the request, that replica prefills all tokens again. The stream then drops the rows
    that have arrived before.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        names: Sequence[str],
        limit: int,
        notify: Callable[[], object],
        tell: Callable[..., object],
        norms: Sequence[str] = (),
        own: bool = False,
    ) -> None:
        super().__init__(points, names, limit, notify, norms)
        self.number = next(NUMBERS)
        self._names, self._norm_names, self._own = list(names), list(norms), own
        self._tell, self._selections = tell, _selections(self)
        self._here: deque[TraceFrame] = deque()
        self._bytes_here = self._dropped_here = 0
        self._pieces = bytearray()
        self._all_read = True
        self._dropped_before = 0
        self._known: list[int] = []
        self._next: list[list[int]] = []

    def begin(self, prompt: int, generated: Sequence[int]) -> list[Any]:
        """Prepare the stream for a new replica. Return the fields of the ``watch`` message to the replica.

        ``prompt`` is the number of tokens that the first generated token follows. Sequence i has generated
        ``generated[i]`` tokens so far.
        """
        if not self._next:  # only the first sequence prefills the prompt
            firsts = [prompt * (number > 0) for number in range(len(generated))]
            self._next = [[max(first, selected.tokens.start) for selected in self._selections] for first in firsts]
        self._known = [prompt + tokens for tokens in generated]
        self._dropped_before, self._dropped_here, self._all_read = self.dropped, 0, True
        self._pieces.clear()
        return [
            self.number,
            self._names,
            self.limit,
            [self._first_missing(positions) for positions in self._next],
            self._norm_names,
            self._own,
        ]

    def _first_missing(self, positions: Sequence[int]) -> int:
        """Return the first position of a sequence whose rows have not arrived; ``NEVER`` if all rows have arrived."""
        missing = (
            at
            for at, selected in zip(positions, self._selections)
            if at < selected.tokens.stop and not selected.point.of_source
        )
        return min(missing, default=NEVER)

    def take(self, number: int, piece: bytes, more: bool) -> None:
        """Handle a piece of a message with frames. Raises WireError if the message is too large or malformed."""
        if number != self.number or self.closed:
            return
        self._pieces += piece
        if len(self._pieces) > wire.MAX_PIECES:
            raise wire.WireError(f"more than {wire.MAX_PIECES:,} bytes of frames")
        if more:
            return
        ((_, dropped, frames),) = wire.unpack(bytes(self._pieces))
        self._pieces.clear()
        for sequence, at, first, values in frames:
            self._add(sequence, at, first, wire.array_of(values))
        self._all_read = False
        self.dropped = self._dropped_before + int(dropped) + self._dropped_here
        self.notify()

    def _add(self, sequence: int, at: int, first: int, values: Any) -> None:
        """Add the rows ``values``, which begin at position ``first``. Drop the rows that have arrived before."""
        selected, stop = self._selections[at], first + len(values)
        # All sequences have the same source, whose rows are all final.
        known, counted = (stop, 0) if selected.point.of_source else (self._known[sequence], sequence)
        seen = self._next[counted][at]
        # The row of a step's first token is final. The other rows belong to draft tokens. If the drafts are
        # rejected, rows for these positions arrive again.
        stays = min(stop, known) if first < known else first + (first > selected.tokens.start)
        self._next[counted][at] = max(seen, stays)
        if (old := max(seen - first, 0)) >= len(values):
            return
        if self._bytes_here + values.nbytes > MOST_BYTES:
            self._dropped_here += 1
            return
        self._here.append(TraceFrame(sequence, selected, range(first + old, stop), values[old:]))
        self._bytes_here += values[old:].nbytes

    def blocks(self) -> Iterator[TraceFrame]:
        """Yield the frames that have arrived. After the last frame, ask the replica for more."""
        while self._here:
            frame = self._here.popleft()
            self._bytes_here -= frame.values.nbytes
            yield frame
        if not self._all_read and not self._own:
            self._all_read = True
            self._tell("more", self.number)

    def close(self) -> None:
        """Drop the unread frames, and accept no further frames."""
        self._here.clear()
        super().close()


class RequestWatch:
    """The replica's end of a trace stream. ``send`` sends a message about the request to the ingress.

    Use a watch in the replica's event loop.
    """

    def __init__(self, llm: LLM, send: Callable[..., object]) -> None:
        self._llm, self._send, self._loop = llm, send, asyncio.get_running_loop()
        self._requests: Sequence[NumberedRequest] = ()
        self._stream: TraceStream | None = None
        self._number, self._first = 0, list[int]()
        self._frames: Iterator[TraceFrame] = iter(())
        self._places: dict[Selection, int] = {}
        self._reader_waits = self._push_is_scheduled = self._own = False

    def begin(self, requests: Sequence[NumberedRequest]) -> None:
        """Watch these requests. They must not have started."""
        self._requests = requests
        self._attach()

    def hear(self, kind: str, number: int, *fields: Any) -> None:
        """Handle a message of the ingress: "watch" with the fields of ``RemoteTraceStream.begin``, "more" or "unwatch".

        Raises:
            InvalidRequest: a name is not the name of a hook point, or a number is out of range.
        """
        if kind == "watch":
            self.end()
            names, limit, first, norms, own = fields
            self._own |= bool(own)  # tokens that were sent in order stay in order
            self._number, self._first, self._reader_waits = (number, [int(position) for position in first], True)
            self._stream = stream = TraceStream(self._llm.points, names, limit, self._notify, norms)
            self._places = {selected: at for at, selected in enumerate(_selections(stream))}
            self._attach()
        elif number == self._number and kind == "more":
            self._reader_waits = True
            self._push()
        elif number == self._number:
            self.end()

    def _attach(self) -> None:
        if self._stream is None or not self._requests or self._own:
            return
        most = max(number for numbers, _, _ in self._requests for number in numbers)
        recorders = self._stream.recorders(most + 1, self._first)
        for numbers, _, request in self._requests:
            request.attach([recorders[number] for number in numbers], self._stream.source_recorder())

    def watching(
        self, numbers: Sequence[int], edits: Sequence[Edit], probes: Sequence[LinearProbe] = ()
    ) -> RequestTracer | None:
        """Return the recordings, edits and probes of a request for the sequences ``numbers``."""
        if self._own and self._stream is not None:
            put, piece = partial(self._put, numbers), self._llm.tokenizer.piece
            return streamed_trace(self._llm.points, self._stream.selected, edits, put, piece)
        return request_trace(lambda: self._llm.points, edits, probes, self._llm.tokenizer.piece)

    def _put(self, numbers: Sequence[int], sequence: int, *block: Any, **side: Any) -> None:
        if (stream := self._stream) is not None:
            stream.put(numbers[sequence], *block, **side)

    def first_output(self, number: int, prompt: int) -> int | None:
        """Return the first position whose output rows a continued sequence must compute again for the watch.

        None if no watched hook point has output rows. ``prompt`` is as in ``RemoteTraceStream.begin``.
        """
        stream = self._stream
        if stream is None or all(selected.point.rows != "outputs" for selected in stream.selected):
            return None
        return max(self._first[number], prompt - 1)

    def end(self) -> None:
        """End the watch."""
        if self._stream is not None:
            self._stream.close()
            self._stream, self._frames = None, iter(())
            for _, _, request in self._requests:
                request.attach([])

    async def flush(self) -> None:
        """Send all waiting frames after the end of the requests, without waiting for a "more".

        The limit of the ``TraceStream`` bounds the size of the waiting frames.
        """
        if self._stream is None:
            return
        settled = asyncio.Event()
        if self._llm.engine.between_steps(partial(self._loop.call_soon_threadsafe, settled.set)):
            await settled.wait()
        if self._stream is not None:
            while frames := self._next_frames():
                self._send_frames(self._stream, frames)
            self._send_frames(self._stream, [])
            self.end()

    def _notify(self) -> None:
        """Schedule a push of new frames. The engine's thread calls this."""
        if self._reader_waits and not self._push_is_scheduled:
            self._push_is_scheduled = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._push)

    def after_frames(self, tell: Callable[[], object]) -> None:
        """Call ``tell``, which sends a token, once the waiting frames are sent. The engine's thread calls this."""
        if not self._own:
            tell()
            return
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(tell)

    def _push(self) -> None:
        self._push_is_scheduled = False
        if self._own:
            while self._stream is not None and (frames := self._next_frames()):
                self._send_frames(self._stream, frames)
        elif self._reader_waits and self._stream is not None and (frames := self._next_frames()):
            self._reader_waits = False
            self._send_frames(self._stream, frames)

    def _next_frames(self) -> list[Any]:
        """Return some of the waiting frames as plain values.

        The number of frames is bounded. Otherwise this loop might not end, because the engine may add frames faster
        than the loop takes them.
        """
        assert self._stream is not None
        frames, size = list[Any](), 0
        limit = self._stream.limit * len(self._places)
        while size < TOGETHER and len(frames) < limit:
            frame = next(self._frames, None)
            if frame is None:
                self._frames = self._stream.frames()
                if (frame := next(self._frames, None)) is None:
                    break
            at, size = self._places[frame.selected], size + frame.values.nbytes
            frames.append([frame.sequence, at, frame.positions.start, wire.array_fields(frame.values)])
        return frames

    def _send_frames(self, stream: TraceStream, frames: list[Any]) -> None:
        for piece, more in wire.pieces(wire.pack([["frames", stream.dropped, frames]])):
            self._send("values", self._number, piece, more)
