"""Splits the string arrays of GGUF files, many strings at a time.

In: the bytes of a file and where an array's strings begin. Out: the strings, and where the next one begins.

A vocabulary has 10^5 strings, and a loop in Python over them is most of the time to open a file. Nearly all of them
have 1 to 255 bytes, none of which is zero, so a length is one byte that is not zero followed by seven that are, and
hardly anything else looks like this. All such places of a window are found at once; those that follow each other as
the lengths say are strings. The first that does not (an empty or long string, one with a NUL, one that is cut off) ends
the run, and the caller reads it by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 1 << 18  # bytes that are looked at together; they and what is made of them fit into the L2 cache
_LENGTH = 8  # bytes of a length
_END = 0xFF  # marks a length; UTF-8 has no such byte
_TO_NUL = bytes(range(_END)) + b"\0"
Numbers = NDArray[np.intp]


def split_strings(data: bytes, position: int, most: int) -> tuple[list[str], int]:
    """Up to ``most`` strings that begin at byte ``position`` of ``data``; none if the first one is not a usual one.

    All of them are valid UTF-8 and lie in ``data``. Returns also the position after the last one.
    """
    window = np.frombuffer(data, np.uint8, min(WINDOW, len(data) - position), position)
    lengths_at, ends = _without_nul(window, *_run(window, most))
    if not len(ends):
        return [], position
    stop = int(ends[-1])
    marked = window[:stop].copy()
    marked[lengths_at] = _END
    try:
        # Deleting the NULs of the lengths leaves one byte between two strings.
        text = marked.tobytes().translate(_TO_NUL, b"\0").decode()
    except UnicodeDecodeError:
        return [], position
    strings = text.split("\0")[1:]
    if len(strings) != len(ends):  # an invalid string with the byte 0xFF
        return [], position
    return strings, position + stop


def _run(window: NDArray[np.uint8], most: int) -> tuple[Numbers, Numbers]:
    """Where the lengths of the strings at the start of a window are, and where these strings end."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    at = np.flatnonzero(seven[1:] & ~zero[: max(len(seven) - 1, 0)])[:most]
    ends = at + window[at] + _LENGTH
    fits = ends <= len(window)
    fits[:1] &= at[:1] == 0
    fits[1:] &= at[1:] == ends[:-1]
    count = len(fits) if fits.all() else int(fits.argmin())
    return at[:count], ends[:count]


def _without_nul(window: NDArray[np.uint8], at: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
    """The strings before the first one that holds a NUL."""
    stop = int(ends[-1]) if len(ends) else 0
    if stop - np.count_nonzero(window[:stop]) == (_LENGTH - 1) * len(at):
        return at, ends
    inside = window[:stop] == 0
    inside[at[:, None] + np.arange(1, _LENGTH)] = False
    count = int(ends.searchsorted(inside.argmax(), "right"))
    return at[:count], ends[:count]
