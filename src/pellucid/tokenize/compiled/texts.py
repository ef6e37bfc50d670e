"""The texts that compiled stages work on, and their rooms: buffers, and caches of the ids of pre-tokens.

A thread borrows a room for a call. A tokenizer keeps at most one room for each core, and frees a room that nobody has
used for a while. The caches of a room grow with the text that it encodes within a second: a server's stay small.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.text import pieces as text_pieces
from pellucid.runtime.memory import address, aligned

ENTRIES = (1 << 12, 1 << 15, 1 << 19)  # of a room's cache of short pre-tokens, as it grows: up to 32 MB
LONG_PART = 32  # short entries for each entry of the cache of longer pre-tokens: up to 4 MB
BYTES_EACH = 16  # of text for each entry within a second, before the cache grows
MAX_BYTES = 1 << 28  # of the texts in a call; positions are 31 bits, also after the texts have grown
ROOM_BYTES = 1 << 22  # a room keeps its buffers between calls up to this many bytes of text
UNUSED = 10.0  # seconds until a room without use is freed, if the tokenizer has another room


class Room:
    """Texts, their spans and their ends, each twice, as a stage reads one and writes one; and two caches.

    ``memory`` caches the ids of short pre-tokens, ``long_memory`` the ids of longer pre-tokens
    (``kernels/text/pieces.py``).
    """

    def __init__(self) -> None:
        self.made = np.zeros(1, np.int64)
        self.made_place = address(self.made)
        self.used = 0.0
        self._arrays: dict[tuple[str, int], tuple[NDArray[Any], int]] = {}
        self._size = self._seen = 0
        self._since = 0.0  # the time at which the count of bytes began
        self._empty_caches()

    def _empty_caches(self) -> None:
        self.entries = ENTRIES[self._size]
        self.long_entries = self.entries // LONG_PART
        self.memory, self.memory_place = zeros(self.entries * text_pieces.ENTRY + text_pieces.PADDING)
        self.long_memory, self.long_place = zeros(self.long_entries * text_pieces.LONG_ENTRY)

    def grow(self, nbytes: int) -> None:
        """Count ``nbytes`` of text, and enlarge the caches if they are too small for the text of the last second."""
        now = time.monotonic()
        if now - self._since > 1.0:  # a server's prompts need no large cache, however long it runs
            self._seen, self._since = 0, now
        self._seen += nbytes
        if self._seen > self.entries * BYTES_EACH and self._size < len(ENTRIES) - 1:
            self._size += 1
            self._empty_caches()

    def array(self, name: str, side: int, size: int, kind: Any) -> tuple[NDArray[Any], int]:
        """An array of at least ``size`` numbers, which keeps its contents between calls, and its address."""
        found = self._arrays.get((name, side))
        if found is None or len(found[0]) < size:
            array = np.empty(max(size, 4096) * 5 // 4, kind)
            found = self._arrays[name, side] = array, address(array)
        return found

    def trim(self) -> None:
        """Release the arrays that a large text has enlarged."""
        small = {key: found for key, found in self._arrays.items() if found[0].nbytes <= 8 * ROOM_BYTES}
        self._arrays = small


class Rooms:
    """The rooms of a tokenizer. Thread-safe."""

    def __init__(self) -> None:
        self._free: deque[Room] = deque()

    def take(self) -> Room:
        """The room that was used last, or a new one if all are in use."""
        try:
            return self._free.pop()
        except IndexError:
            return Room()

    def give_back(self, room: Room) -> None:
        """A call has ended. Rooms beyond one for each core, and those that are no longer used, are dropped."""
        room.used = now = time.monotonic()
        self._free.append(room)
        if len(self._free) == 1:
            return
        from pellucid.runtime.processors import processors  # takes a while, and most programs use one room

        try:
            while len(self._free) > 1 and (
                len(self._free) > processors().usable or now - self._free[0].used > UNUSED
            ):
                self._free.popleft()
        except IndexError:  # other threads have taken them
            pass


def zeros(nbytes: int) -> tuple[NDArray[np.uint8], int]:
    """Zeroed memory and its address."""
    array = aligned(nbytes)
    array[:] = 0
    return array, address(array)


class Texts(Struct):
    """Texts in UTF-8 in a room, cut into spans (``pieces``). Each array comes with its address."""

    room: Room
    text: tuple[NDArray[np.uint8], int]
    length: int
    pieces: tuple[NDArray[np.int32], int]  # (n, 2), flat
    count: int
    ends: tuple[NDArray[np.int32], int]
    texts: int
    side: int = 0  # which of the room's two buffers has the spans
    text_side: int = 0  # which one has the text and its ends

    @classmethod
    def of(cls, room: Room, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None = None) -> Texts:
        """From texts in UTF-8; ``pieces`` if they are already cut, else each text is one span."""
        joined = data[0] if len(data) == 1 else b"".join(data)
        length = len(joined)
        if length > MAX_BYTES:
            raise InvalidRequest(
                f"a text of {length:,} bytes; the limit is {MAX_BYTES:,}: encode it in parts"
            )
        count = len(data) if pieces is None else len(pieces)
        text = room.array("text", 0, length + text_pieces.PADDING, np.uint8)
        ends = room.array("ends", 0, len(data), np.int32)
        spans = room.array("pieces", 0, 2 * count, np.int32)
        ctypes.memmove(text[1], joined, length)
        ends[0][: len(data)] = [length] if len(data) == 1 else list(accumulate(map(len, data)))
        if pieces is not None:
            spans[0][: 2 * count] = np.array(pieces, np.int32).reshape(-1)
        else:
            spans[0][0] = 0
            spans[0][2 : 2 * count : 2] = ends[0][: count - 1]
            spans[0][1 : 2 * count : 2] = ends[0][:count]
        return cls(room, text, length, spans, count, ends, len(data))

    def spans(self) -> NDArray[np.int32]:
        """The spans, (n, 2): the first byte and the one after the last."""
        return self.pieces[0][: 2 * self.count].reshape(-1, 2)

    def sizes(self) -> NDArray[np.int32]:
        """The number of bytes of each span, (n,); 0 for an added token."""
        spans = self.spans()
        sizes: NDArray[np.int32] = np.maximum(spans[:, 1] - spans[:, 0], 0)
        return sizes
