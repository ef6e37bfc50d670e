"""Texts on their way through compiled stages, and what a thread works in."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.text import pieces as text_pieces
from pellucid.runtime.memory import Arena, address

ENTRIES, LONG_ENTRIES = 1 << 19, 1 << 14  # of a thread's memories: 32 MB, and 4 MB, as far as they are used
MOST_BYTES = 1 << 28  # of the texts of a call, whose places are 31 bits, also when they have grown
ROOM_BYTES = 1 << 22  # bytes of text that a thread's room is kept for


class Room:
    """What one thread works in: texts, their pieces and ends, each twice: a stage reads one and writes the other."""

    def __init__(self) -> None:
        self.memory, self.memory_place = zeros(ENTRIES * text_pieces.ENTRY + text_pieces.PADDING)
        self.long_memory, self.long_place = zeros(LONG_ENTRIES * text_pieces.LONG_ENTRY)
        self.made = np.zeros(1, np.int64)
        self.made_place = address(self.made)
        self._arrays: dict[tuple[str, int], tuple[NDArray[Any], int]] = {}

    def array(self, name: str, side: int, size: int, kind: Any) -> tuple[NDArray[Any], int]:
        """An array of at least so many numbers, with what was written to it last, and its address."""
        found = self._arrays.get((name, side))
        if found is None or len(found[0]) < size:
            array = np.empty(max(size, 4096) * 5 // 4, kind)
            found = self._arrays[name, side] = array, address(array)
        return found

    def trim(self) -> None:
        """Forget arrays that one great text made great."""
        small = {key: found for key, found in self._arrays.items() if found[0].nbytes <= 8 * ROOM_BYTES}
        self._arrays = small


def zeros(nbytes: int) -> tuple[NDArray[np.uint8], int]:
    """Fresh memory, in large pages where the system has them: what is looked up in it lies far apart."""
    array = Arena().take(nbytes)
    array[:] = 0
    return array, address(array)


@dataclass
class Texts:
    """Texts on their way: UTF-8 in a room, cut into pieces. Arrays are told by their addresses, too."""

    room: Room
    text: tuple[NDArray[np.uint8], int]
    length: int
    pieces: tuple[NDArray[np.int32], int]  # (n, 2), flat
    count: int
    ends: tuple[NDArray[np.int32], int]
    texts: int
    side: int = 0  # of the room, where the pieces are
    text_side: int = 0  # where the text and its ends are

    @classmethod
    def of(cls, room: Room, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None = None) -> Texts:
        """Encoded texts; ``pieces`` if they are cut already."""
        joined = data[0] if len(data) == 1 else b"".join(data)
        length = len(joined)
        if length > MOST_BYTES:
            raise InvalidRequest(
                f"a text of {length:,} bytes; the limit is {MOST_BYTES:,}: encode it in parts"
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
        """The pieces, (n, 2): first byte, and the one behind the last."""
        return self.pieces[0][: 2 * self.count].reshape(-1, 2)

    def sizes(self) -> NDArray[np.int32]:
        """How many bytes each piece has, (n,); none for an id."""
        spans = self.spans()
        sizes: NDArray[np.int32] = np.maximum(spans[:, 1] - spans[:, 0], 0)
        return sizes
