"""A request on a replica is watched: frames travel when those before them have been read, and follow where it goes.

    replica: engine → TraceStream → PartWatch ── frames ──► ingress: RemoteStream → reader
                                              ◄─ "more" ──

What waits for a reader waits in the replica's ``TraceStream``, with its limits: a slow reader loses frames there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, TypeAlias

from pellucid.cluster import wire
from pellucid.engine.request import RequestGroup
from pellucid.llm import LLM
from pellucid.trace.points import Point
from pellucid.trace.selection import Selected
from pellucid.trace.stream import TraceFrame, TraceStream

Group: TypeAlias = tuple[list[int], int, RequestGroup]
"""The numbers of a request's chains, how many tokens each has had before, and the request."""
TOGETHER = 4 << 20  # bytes of frames that are sent together; one frame may have more
NEVER = 1 << 31  # a position that no text has
NUMBERS = count(1)


def _parts(stream: TraceStream) -> list[Selected]:
    """What a stream has frames of, each once; both sides know them by their numbers."""
    return list(dict.fromkeys(stream.selected))


class RemoteStream(TraceStream):
    """The frames of a request on a replica, which sends more when those that are here have been read.

    A replica that goes on with the request reads all its tokens again; no row comes twice because of that. ``tell``
    sends a message about the request to its replica.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        names: Sequence[str],
        limit: int,
        notify: Callable[[], object],
        tell: Callable[..., object],
    ) -> None:
        super().__init__(points, names, limit, notify)
        self.number = next(NUMBERS)
        self._names, self._tell, self._parts = list(names), tell, _parts(self)
        self._here: deque[TraceFrame] = deque()
        self._pieces = bytearray()
        self._all_read = True
        self._dropped_before = 0
        self._known: list[int] = []
        self._next: list[list[int]] = []

    def begin(self, prompt: int, made: Sequence[int]) -> list[Any]:
        """A replica gets the request, with a prompt of so many tokens, after which each sequence has ``made`` some.

        Returns what it must know.
        """
        if not self._next:  # the prompt is read for the first sequence alone
            firsts = [prompt * (number > 0) for number in range(len(made))]
            self._next = [[max(first, one.tokens.start) for one in self._parts] for first in firsts]
        self._known = [prompt + tokens for tokens in made]
        self._dropped_before, self._all_read = self.dropped, True
        self._pieces.clear()
        return [self.number, self._names, self.limit, [self._wanted(of) for of in self._next]]

    def _wanted(self, positions: Sequence[int]) -> int:
        """The first position that a sequence has rows to come for, if there are any."""
        found = (at for at, one in zip(positions, self._parts) if at < one.tokens.stop)
        return min(found, default=NEVER)

    def take(self, number: int, piece: bytes, more: bool) -> None:
        """A piece of what the replica sends. Raises WireError if it fits nothing."""
        if number != self.number or self.closed:
            return
        self._pieces += piece
        if len(self._pieces) > wire.MOST_WHOLE:
            raise wire.WireError(f"more than {wire.MOST_WHOLE:,} bytes of frames")
        if more:
            return
        ((_, dropped, frames),) = wire.unpack(bytes(self._pieces))
        self._pieces.clear()
        for sequence, at, first, values in frames:
            self._add(sequence, at, first, wire.array_of(values))
        self.dropped, self._all_read = self._dropped_before + int(dropped), False
        self.notify()

    def _add(self, sequence: int, at: int, first: int, values: Any) -> None:
        """Rows from position ``first`` on: what has not come before is a frame."""
        part, stop, seen = self._parts[at], first + len(values), self._next[sequence][at]
        known = self._known[sequence]
        # The first token of a step stays; what was read ahead of it is read again if it was wrong.
        stays = min(stop, known) if first < known else first + (first > part.tokens.start)
        self._next[sequence][at] = max(seen, stays)
        if (old := max(seen - first, 0)) < len(values):
            self._here.append(TraceFrame(sequence, part, range(first + old, stop), values[old:]))

    def frames(self) -> Iterator[TraceFrame]:
        """The frames that are here. When they have been read, the replica may send more."""
        while self._here:
            yield self._here.popleft()
        if not self._all_read:
            self._all_read = True
            self._tell("more", self.number)

    def close(self) -> None:
        """Nobody reads it any more."""
        self._here.clear()
        super().close()


class PartWatch:
    """Whoever watches a request on this replica. ``send`` sends a message about it. It belongs to the event loop."""

    def __init__(self, llm: LLM, send: Callable[..., object]) -> None:
        self._llm, self._send, self._loop = llm, send, asyncio.get_running_loop()
        self._groups: Sequence[Group] = ()
        self._stream: TraceStream | None = None
        self._number, self._first = 0, list[int]()
        self._frames: Iterator[TraceFrame] = iter(())
        self._places: dict[Selected, int] = {}
        self._wanted = self._called = False

    def begin(self, groups: Sequence[Group]) -> None:
        """The requests are made, and will start."""
        self._groups = groups
        self._attach()

    def hear(self, kind: str, number: int, *fields: Any) -> None:
        """What an ingress says: "watch" with names, limit and first positions, "more", "unwatch".

        Raises:
            InvalidRequest: a name stands for no point, or a number is out of range.
        """
        if kind == "watch":
            self.end()
            names, limit, first = fields
            self._number, self._first, self._wanted = number, [int(one) for one in first], True
            self._stream = stream = TraceStream(self._llm.points, names, limit, self._notify)
            self._places = {one: at for at, one in enumerate(_parts(stream))}
            self._attach()
        elif number == self._number and kind == "more":
            self._wanted = True
            self._push()
        elif number == self._number:
            self.end()

    def _attach(self) -> None:
        if self._stream is None or not self._groups:
            return
        most = max(number for numbers, _, _ in self._groups for number in numbers)
        probes = self._stream.probes(most + 1, self._first)
        for numbers, _, group in self._groups:
            group.attach([probes[number] for number in numbers])

    def first_output(self, number: int, prompt: int) -> int | None:
        """Of a sequence that goes on after a ``prompt`` of so many tokens: whence its logits are wanted again."""
        stream = self._stream
        if stream is None or all(one.point.rows != "outputs" for one in stream.selected):
            return None
        return max(self._first[number], prompt - 1)

    def end(self) -> None:
        """Nobody watches any more."""
        if self._stream is not None:
            self._stream.close()
            self._stream, self._frames = None, iter(())
            for _, _, group in self._groups:
                group.attach([])

    async def flush(self) -> None:
        """The requests end here: send all that waits, which is bounded, whether it was asked for or not."""
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
        """Frames wait: called in the engine's thread."""
        if self._wanted and not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._push)

    def _push(self) -> None:
        self._called = False
        if self._wanted and self._stream is not None and (frames := self._next_frames()):
            self._wanted = False
            self._send_frames(self._stream, frames)

    def _next_frames(self) -> list[Any]:
        """Some of the frames that wait, as plain values; not more than may wait, though the engine makes more."""
        assert self._stream is not None
        made, size = list[Any](), 0
        most = self._stream.limit * len(self._places)
        while size < TOGETHER and len(made) < most:
            frame = next(self._frames, None)
            if frame is None:
                self._frames = self._stream.frames()
                if (frame := next(self._frames, None)) is None:
                    break
            at, size = self._places[frame.selected], size + frame.values.nbytes
            made.append([frame.sequence, at, frame.positions.start, wire.array_fields(frame.values)])
        return made

    def _send_frames(self, stream: TraceStream, frames: list[Any]) -> None:
        whole = wire.pack([["frames", stream.dropped, frames]])
        for piece, more in wire.pieces(whole):
            self._send("values", self._number, piece, more)
