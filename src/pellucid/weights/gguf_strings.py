"""The string arrays of GGUF files: found many strings at a time, made when they are asked for.

In: the bytes of a file and where an array's strings begin. Out: where each of them ends, as a ``StringArray``.

A vocabulary has 10^5 strings, and a loop in Python over them is most of the time to open a file. Nearly all of them
have 1 to 255 bytes, so a length is one byte that is not zero followed by seven that are, and hardly anything else looks
like this. All such places of a window are found at once; those that follow each other as the lengths say are strings.
The first that does not (an empty or long string, one that is cut off) ends the run, and the caller reads it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

WINDOW = 1 << 18  # bytes that are looked at together; they and what is made of them fit into the L2 cache
LENGTH = 8  # bytes of a length
_END = 0xFF  # marks a length; UTF-8 has no such byte
_TO_NUL = bytes(range(_END)) + b"\0"
Numbers = NDArray[np.int64]


class StringArray(Sequence[str]):
    """The strings of an array, which is equal to a list of them. Each is made when it is asked for, or all of them.

    ``encoded`` is the array as in the file: each string in UTF-8, which has been checked, after its length. ``ends``
    (n,) int64 is where each string ends in it.
    """

    def __init__(self, encoded: bytes, ends: Numbers) -> None:
        self.encoded, self._ends = encoded, ends.data
        self._strings: list[str] | None = None
        self._changed: dict[int, str] = {}
        self._left = len(ends) // 8  # strings made alone, until making all of them costs less

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if self._strings is not None or isinstance(index, slice) or self._left <= 0:
            return self._all()[index]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError("string index out of range")
        self._left -= 1
        if (changed := self._changed.get(at)) is not None:
            return changed
        start = self._ends[at - 1] if at else 0
        return self.encoded[start + LENGTH : self._ends[at]].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StringArray, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and self._all() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringArray({len(self):,} strings)"

    def tolist(self) -> list[str]:
        """All strings, as a new list."""
        return [*self._all()]

    def with_changes(self, changes: dict[int, str]) -> StringArray:
        """The array with other strings at some indices; ``encoded`` stays as in the file."""
        made = StringArray(self.encoded, np.asarray(self._ends))
        made._changed = {**self._changed, **changes}
        return made

    def before(self, mark: str) -> set[str]:
        """The characters that strings have before ``mark``, a character of three bytes, as they are in the file."""
        data, begin_at, wanted = np.frombuffer(self.encoded, np.uint8), self._starts() + LENGTH, mark.encode()
        assert len(wanted) == 3
        begins = np.zeros(len(data) + 1, bool)  # the last string may be empty
        begins[begin_at] = True
        at = np.flatnonzero(data[:-2] == wanted[0])
        at = at[(data[at + 1] == wanted[1]) & (data[at + 2] == wanted[2]) & ~begins[at]]
        at = at[
            at > begin_at[np.asarray(self._ends).searchsorted(at, "right")]
        ]  # a length may have these bytes
        tails = {self.encoded[place - 4 : place] for place in at.tolist()}
        return {tail.decode(errors="ignore")[-1] for tail in tails}

    def _starts(self) -> Numbers:
        """Where the length of each string is."""
        ends = np.asarray(self._ends)
        return np.concatenate([ends[:0], [0], ends[:-1]])[: len(ends)]

    def _all(self) -> list[str]:
        if self._strings is None:
            strings = self._split()
            for index, string in self._changed.items():
                strings[index] = string
            self._strings = strings
        return self._strings

    def _split(self) -> list[str]:
        """All strings as in the file."""
        ends, starts = np.asarray(self._ends), self._starts()
        marked = np.frombuffer(self.encoded, np.uint8).copy()
        marked[starts] = _END
        long = starts[ends - starts >= LENGTH + 256]
        marked[long[:, None] + np.arange(1, LENGTH)] = 0
        if len(marked) - np.count_nonzero(marked) != (LENGTH - 1) * len(ends):  # a string holds a NUL
            return [self.encoded[a + LENGTH : b].decode() for a, b in zip(starts.tolist(), ends.tolist())]
        # Deleting the NULs of the lengths leaves one byte before each string.
        return marked.tobytes().translate(_TO_NUL, b"\0").decode().split("\0")[1:]


def string_ends(data: bytes | bytearray, position: int, most: int) -> Numbers:
    """Where up to ``most`` strings end that begin at byte ``position`` of ``data``, counted from there.

    All of them are valid UTF-8 and lie in ``data``. There are none if the first one is not a usual one.
    """
    window = np.frombuffer(data, np.uint8, min(WINDOW, len(data) - position), position)
    lengths_at, ends = _run(window, most)
    if len(ends):
        text = window[: int(ends[-1])].copy()
        text[lengths_at] = 0
        try:
            text.tobytes().decode()
        except UnicodeDecodeError:
            return ends[:0]
    return ends


def _run(window: NDArray[np.uint8], most: int) -> tuple[Numbers, Numbers]:
    """Where the lengths of the strings at the start of a window are, and where these strings end."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    at = np.flatnonzero(seven[1:] & ~zero[: max(len(seven) - 1, 0)])[:most].astype(np.int64)
    ends = at + window[at] + LENGTH
    fits = ends <= len(window)
    fits[:1] &= at[:1] == 0
    fits[1:] &= at[1:] == ends[:-1]
    count = len(fits) if fits.all() else int(fits.argmin())
    return at[:count], ends[:count]
