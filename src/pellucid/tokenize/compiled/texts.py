"""The texts that compiled stages read and write, and rooms: the memory for one call at a time.

A room has buffers, and caches of the ids of pre-tokens. A thread borrows a room for a call. A tokenizer keeps at most
one room per core, and frees rooms that have been idle for a while. The caches of a room grow with the text that it
encodes within one second, so the caches of a server stay small.
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

ENTRIES = (1 << 12, 1 << 15, 1 << 19)  # sizes of the cache of short pre-tokens as it grows: up to 32 MB
LONG_PART = 32  # entries for short pre-tokens per entry for longer pre-tokens: up to 4 MB
BYTES_EACH = 16  # the cache grows after this many bytes of text per entry within a second
MAX_BYTES = 1 << 28  # maximum of all texts of a call; positions have 31 bits, also after texts have grown
ROOM_BYTES = 1 << 22  # a room keeps its buffers between calls up to this many bytes of text
UNUSED = 10.0  # seconds until an idle room is freed, if the tokenizer has another room


class Room:
    """Two buffers each for texts, spans and ends of texts (a stage reads one and writes the other), and two caches.

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
        """An array of at least ``size`` numbers and its address. The array keeps its contents between calls."""
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
        """Return the most recently used free room, or a new room if there is none."""
        try:
            return self._free.pop()
        except IndexError:
            return Room()

    def give_back(self, room: Room) -> None:
        """Take a room back after a call. Drop idle rooms and rooms beyond one per core."""
        room.used = now = time.monotonic()
        self._free.append(room)
        if len(self._free) == 1:
            return
        from pellucid.runtime.processors import processors  # slow to import, and most programs use one room

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
    """Texts in UTF-8 in a room, cut into spans (``pieces``). Each array is paired with its address."""

    room: Room
    text: tuple[NDArray[np.uint8], int]
    length: int
    pieces: tuple[NDArray[np.int32], int]  # (n, 2), flat
    count: int
    ends: tuple[NDArray[np.int32], int]
    texts: int
    side: int = 0  # the room's buffer that has the spans, 0 or 1
    text_side: int = 0  # the room's buffer that has the text and the ends of texts, 0 or 1

    @classmethod
    def of(cls, room: Room, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None = None) -> Texts:
        """Build from texts in UTF-8. ``pieces`` are their spans, by default one span per text."""
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
        """The spans of bytes, (n, 2): start and end, the end excluded."""
        return self.pieces[0][: 2 * self.count].reshape(-1, 2)

    def sizes(self) -> NDArray[np.int32]:
        """The number of bytes of each span, (n,); 0 for an added token."""
        spans = self.spans()
        sizes: NDArray[np.int32] = np.maximum(spans[:, 1] - spans[:, 0], 0)
        return sizes
