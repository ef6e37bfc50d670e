"""The memory that a call of compiled code uses, and the texts in this memory that stages read and write.

A :class:`Workspace` has buffers, and caches of the ids of pre-tokens. A thread borrows a workspace for a call. A
tokenizer keeps at most one workspace per core, and frees workspaces that have been idle for a while. The caches of a
workspace grow with the amount of text that it encodes within one second. A server encodes little text per second, so
its caches stay small.
"""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.text import pieces as text_pieces
from pellucid.runtime.memory import address, aligned

# The numbers of entries that the cache of short pre-tokens grows to. The largest cache takes 32 MB.
CACHE_SIZES = (1 << 12, 1 << 15, 1 << 19)
# Entries for short pre-tokens per entry for longer pre-tokens. The largest cache of longer pre-tokens takes 4 MB.
SHORT_PER_LONG = 32
# The cache grows if a second brings more than this number of bytes of text per entry.
BYTES_PER_ENTRY = 16
# Maximum bytes of all texts of a call. Positions have 31 bits, which must suffice after the stages lengthen the texts.
MAX_BYTES = 1 << 28
# Between calls a workspace keeps buffers for at most this number of bytes of text.
MAX_KEPT_BYTES = 1 << 22
# An idle workspace is freed after this time if the tokenizer has another workspace.
IDLE_SECONDS = 10.0


class WorkArray(NamedTuple):
    """An array, and its address for a kernel."""

    array: NDArray[Any]
    address: int


class Workspace:
    """Two buffers each for texts, spans and ends of texts (a stage reads one and writes the other), and two caches.

    ``short_cache`` has the ids of short pre-tokens, ``long_cache`` the ids of longer pre-tokens
    (``kernels/text/pieces.py``). ``result`` receives a number from a kernel.
    """

    def __init__(self) -> None:
        self.result = WorkArray(result := np.zeros(1, np.int64), address(result))
        self.last_used = 0.0
        self._arrays: dict[tuple[str, int], WorkArray] = {}
        self._level = self._recent_bytes = 0
        self._second_began = 0.0  # the time at which the count of bytes began
        self._empty_caches()

    def _empty_caches(self) -> None:
        self.short_entries = CACHE_SIZES[self._level]
        self.long_entries = self.short_entries // SHORT_PER_LONG
        self.short_cache = _zeros(self.short_entries * text_pieces.ENTRY + text_pieces.PADDING)
        self.long_cache = _zeros(self.long_entries * text_pieces.LONG_ENTRY)

    def count_text(self, nbytes: int) -> None:
        """Count ``nbytes`` of text, and enlarge the caches if they are too small for the text of the last second."""
        now = time.monotonic()
        if now - self._second_began > 1.0:  # a server's prompts need no large cache, however long it runs
            self._recent_bytes, self._second_began = 0, now
        self._recent_bytes += nbytes
        if self._recent_bytes > self.short_entries * BYTES_PER_ENTRY and self._level < len(CACHE_SIZES) - 1:
            self._level += 1
            self._empty_caches()

    def array(self, name: str, side: int, size: int, dtype: Any) -> WorkArray:
        """An array of at least ``size`` numbers. It keeps its contents between calls."""
        kept = self._arrays.get((name, side))
        if kept is None or len(kept.array) < size:
            array = np.empty(max(size, 4096) * 5 // 4, dtype)
            kept = self._arrays[name, side] = WorkArray(array, address(array))
        return kept

    def trim(self) -> None:
        """Release the arrays that a large text has enlarged."""
        limit = 8 * MAX_KEPT_BYTES
        self._arrays = {key: kept for key, kept in self._arrays.items() if kept.array.nbytes <= limit}


class WorkspacePool:
    """The workspaces of a tokenizer. Thread-safe."""

    def __init__(self) -> None:
        self._free: deque[Workspace] = deque()

    def acquire(self) -> Workspace:
        """Return the most recently used free workspace, or a new one if none is free."""
        try:
            return self._free.pop()
        except IndexError:
            return Workspace()

    def release(self, workspace: Workspace) -> None:
        """Take a workspace back after a call. Drop idle workspaces, and workspaces beyond one per core."""
        workspace.last_used = now = time.monotonic()
        self._free.append(workspace)
        if len(self._free) == 1:
            return
        from pellucid.runtime.processors import processors  # slow to import, and most programs use one workspace

        try:
            while len(self._free) > 1 and (
                len(self._free) > processors().usable or now - self._free[0].last_used > IDLE_SECONDS
            ):
                self._free.popleft()
        except IndexError:  # other threads have taken them
            pass


def _zeros(nbytes: int) -> WorkArray:
    array = aligned(nbytes)
    array[:] = 0
    return WorkArray(array, address(array))


class TextBatch(Struct):
    """Texts in UTF-8 in a workspace, cut into spans (``pieces``).

    ``length`` is the number of bytes of all texts, ``piece_count`` the number of spans, ``text_count`` the number of
    texts.
    """

    workspace: Workspace
    text: WorkArray  # (length,) uint8
    length: int
    pieces: WorkArray  # (n, 2) int32, flat
    piece_count: int
    ends: WorkArray  # (text_count,) int32
    text_count: int
    side: int = 0  # the workspace's buffer that has the spans, 0 or 1
    text_side: int = 0  # the workspace's buffer that has the text and the ends of texts, 0 or 1

    @classmethod
    def of(
        cls, workspace: Workspace, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None = None
    ) -> TextBatch:
        """Build from texts in UTF-8. ``pieces`` are their spans, by default one span per text."""
        joined = data[0] if len(data) == 1 else b"".join(data)
        length = len(joined)
        if length > MAX_BYTES:
            raise InvalidRequest(f"a text of {length:,} bytes; the limit is {MAX_BYTES:,}: encode it in parts")
        count = len(data) if pieces is None else len(pieces)
        text = workspace.array("text", 0, length + text_pieces.PADDING, np.uint8)
        ends = workspace.array("ends", 0, len(data), np.int32)
        spans = workspace.array("pieces", 0, 2 * count, np.int32)
        ctypes.memmove(text.address, joined, length)
        ends.array[: len(data)] = [length] if len(data) == 1 else list(accumulate(map(len, data)))
        if pieces is not None:
            spans.array[: 2 * count] = np.array(pieces, np.int32).reshape(-1)
        else:
            spans.array[0] = 0
            spans.array[2 : 2 * count : 2] = ends.array[: count - 1]
            spans.array[1 : 2 * count : 2] = ends.array[:count]
        return cls(workspace, text, length, spans, count, ends, len(data))

    def spans(self) -> NDArray[np.int32]:
        """The spans of bytes, (n, 2): start and end, the end excluded."""
        return self.pieces.array[: 2 * self.piece_count].reshape(-1, 2)

    def sizes(self) -> NDArray[np.int32]:
        """The number of bytes of each span, (n,); 0 for an added token."""
        spans = self.spans()
        sizes: NDArray[np.int32] = np.maximum(spans[:, 1] - spans[:, 0], 0)
        return sizes
