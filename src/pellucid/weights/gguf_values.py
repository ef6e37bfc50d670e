"""The values of GGUF files: the numbers of the specification, and string arrays that are decoded on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

# The numbers of the GGUF specification: tensor types with their block sizes, and metadata value types. Source:
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ``enum ggml_type`` of ggml.h. All types are listed,
# including types without a file in ``weights/quant/format``, so that the reader can check the size of any tensor and
# name its format in errors.


class BlockType(NamedTuple):
    """A tensor type: rows are divided into blocks of ``values`` numbers; a block takes ``nbytes`` bytes."""

    name: str
    values: int
    nbytes: int


TENSOR_TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    9: BlockType("Q8_1", 32, 40),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18),
    42: BlockType("Q2_0", 64, 18),
}

# Types that ggml has dropped, by their former numbers. Their block sizes are no longer defined.
REMOVED_TENSOR_TYPES: dict[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip

BOOL, STRING, ARRAY = 7, 8, 9

# Value type → NumPy dtype of the number as stored. Bool is one byte that must be 0 or 1.
NUMBER_TYPES: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


# The string arrays of GGUF files: located many strings at a time, decoded on demand.
#
# In: the bytes of a file and the start of an array's strings. Out: the end of each string, as a ``StringArray``.
#
# A vocabulary has 10^5 strings, and a Python loop over them would take most of the time to open a file. Nearly all
# strings have 1 to 255 bytes. The length of such a string (u64) is one nonzero byte and seven zero bytes, a sequence
# that hardly occurs elsewhere. NumPy finds all these sequences in a window at once. Strings form a run if each string
# ends where the next length begins. The first string that is empty, long or cut off ends the run, and the caller reads
# this string separately.

WINDOW = 1 << 18  # bytes searched at once; the window and the arrays computed from it fit into the L2 cache
LENGTH = 8  # bytes of a length
_END = 0xFF  # marks a length; UTF-8 has no such byte
_TO_NUL = bytes(range(_END)) + b"\0"
Numbers = NDArray[np.int64]


class StringArray(Sequence[str]):
    """The strings of an array, decoded on demand, one by one or all at once. Compares equal to a list of the strings.

    ``encoded`` is the array as in the file: the length of each string, then the string in valid UTF-8. ``ends`` (n,)
    int64 is the end of each string in ``encoded``.
    """

    def __init__(self, encoded: bytes, ends: Numbers) -> None:
        self.encoded, self._ends = encoded, ends.data
        self._strings: list[str] | None = None
        self._changed: dict[int, str] = {}
        # Number of strings that may still be decoded one by one. Beyond it, decoding all strings at once is faster.
        self._left = len(ends) // 8

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
        """A copy with other strings at some indices. ``encoded`` stays as in the file."""
        changed = StringArray(self.encoded, np.asarray(self._ends))
        changed._changed = {**self._changed, **changes}
        return changed

    def before(self, mark: str) -> set[str]:
        """The characters that precede ``mark`` (a character of three bytes) in the strings of the file."""
        data, begin_at, encoded_mark = (np.frombuffer(self.encoded, np.uint8), self._starts() + LENGTH, mark.encode())
        assert len(encoded_mark) == 3
        begins = np.zeros(len(data) + 1, bool)  # the last string may be empty
        begins[begin_at] = True
        at = np.flatnonzero(data[:-2] == encoded_mark[0])
        at = at[(data[at + 1] == encoded_mark[1]) & (data[at + 2] == encoded_mark[2]) & ~begins[at]]
        # Drop matches in the lengths, which may have the same bytes.
        at = at[at > begin_at[np.asarray(self._ends).searchsorted(at, "right")]]
        tails = {self.encoded[place - 4 : place] for place in at.tolist()}
        return {tail.decode(errors="ignore")[-1] for tail in tails}

    def _starts(self) -> Numbers:
        """The position of the length of each string."""
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
        if len(marked) - np.count_nonzero(marked) != (LENGTH - 1) * len(ends):  # a string contains a NUL
            return [self.encoded[a + LENGTH : b].decode() for a, b in zip(starts.tolist(), ends.tolist())]
        # Deleting the NULs of the lengths leaves one byte before each string.
        return marked.tobytes().translate(_TO_NUL, b"\0").decode().split("\0")[1:]


def string_ends(data: bytes | bytearray, position: int, limit: int) -> Numbers:
    """The ends of up to ``limit`` strings from byte ``position`` of ``data`` on, relative to ``position``.

    All these strings are valid UTF-8 and are complete in ``data``. The result is empty if the first string is empty,
    long or cut off, or if a string is not UTF-8.
    """
    window = np.frombuffer(data, np.uint8, min(WINDOW, len(data) - position), position)
    lengths_at, ends = _run(window, limit)
    if len(ends):
        text = window[: int(ends[-1])].copy()
        text[lengths_at] = 0
        try:
            text.tobytes().decode()
        except UnicodeDecodeError:
            return ends[:0]
    return ends


def _run(window: NDArray[np.uint8], limit: int) -> tuple[Numbers, Numbers]:
    """The run of strings at the start of a window: the positions of their lengths, and their ends."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    at = np.flatnonzero(seven[1:] & ~zero[: max(len(seven) - 1, 0)])[:limit].astype(np.int64)
    ends = at + window[at] + LENGTH
    fits = ends <= len(window)
    fits[:1] &= at[:1] == 0
    fits[1:] &= at[1:] == ends[:-1]
    count = len(fits) if fits.all() else int(fits.argmin())
    return at[:count], ends[:count]
