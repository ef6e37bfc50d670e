"""Lookup tables of vocabularies for compiled code: hash tables and tries of pieces, merges, neighbouring characters.

In: pieces, merges. Out: arrays for the kernels in ``kernels/text/words.py``, ``text/merge.py`` and ``text/cut.py``.
Compiled code also fills the tables, because a vocabulary has up to a quarter of a million pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Record
from pellucid.kernels.text import cut as text_cut
from pellucid.kernels.text import merge as text_merge
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import words as text_words
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import Arena
from pellucid.tokenize.stages.decode import byte_alphabet


def run(kernel: str, record: type[Record], **fields: Any) -> None:
    """Run a kernel once, on one thread."""
    Call(KernelKey(kernel), record, **fields)()


def slots(count: int, width: int) -> tuple[NDArray[np.int64], int]:
    """An empty hash table (size, width) for ``count`` entries, at most two thirds full, and its mask, size - 1."""
    size = max(16, 1 << (3 * count // 2).bit_length())
    table = Arena().take(8 * size * width).view(np.int64).reshape(size, width)
    table[:] = text_words.EMPTY
    return table, size - 1


class SpelledPieces(Struct, frozen=True):
    """The bytes of V pieces: ``text`` has all bytes, ``places`` (V + 1,) the start of each piece.

    A piece without bytes matches no text.
    """

    text: NDArray[np.uint8]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> SpelledPieces:
        places = np.zeros(len(pieces) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=places[1:])
        return cls.from_bytes(b"".join(pieces), places)

    @classmethod
    def by_id(cls, ids: Mapping[str, int], size: int) -> SpelledPieces:
        """Build from the id of each piece; ids without a piece have no bytes."""
        pieces = [b""] * size
        for piece, index in ids.items():
            pieces[index] = piece.encode()
        return cls.of(pieces)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of bytes of each piece, (V,); -1 for a piece without bytes."""
        lengths = np.diff(self.places)
        return np.where(lengths > 0, lengths, -1).astype(np.int32)

    @classmethod
    def from_bytes(cls, text: bytes, places: NDArray[np.int32]) -> SpelledPieces:
        return cls(np.frombuffer(text + bytes(text_pieces.PADDING), np.uint8), places)

    @classmethod
    def in_alphabet(cls, ids: Mapping[str, int], size: int) -> SpelledPieces:
        """Build from pieces spelled in the byte alphabet."""
        strange = 0xFFFF
        table = dict.fromkeys(range(0x180), strange) | {ord(char): byte for char, byte in byte_alphabet().items()}
        pieces = [""] * size
        for piece, index in ids.items():
            pieces[index] = piece
        text = "".join(pieces).translate(table)
        lengths = np.fromiter(map(len, pieces), np.int32, size)
        ends = np.cumsum(lengths)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        is_spelled = np.ones(len(codes), bool)
        for index in np.unique(np.searchsorted(ends, np.flatnonzero(codes > 255), side="right")).tolist():
            # A piece with other characters matches no text.
            is_spelled[ends[index] - lengths[index] : ends[index]] = False
            lengths[index] = 0
        places = np.append([0], np.cumsum(lengths)).astype(np.int32)
        return cls.from_bytes(codes[is_spelled].astype(np.uint8).tobytes(), places)


class WordTable:
    """A hash table that finds a piece by all its bytes."""

    def __init__(self, pieces: SpelledPieces) -> None:
        count = len(pieces.places) - 1
        self.pieces, self.state = pieces, np.zeros(count, np.uint8)
        self.slots, self.mask = slots(int(np.count_nonzero(np.diff(pieces.places))), 2)
        known = {"text": pieces.text, "places": pieces.places, "slots": self.slots, "mask": self.mask}
        run("text.words", text_words.WordsRecord, **known, count=count)


def splits(words: WordTable) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """All pairs of pieces whose concatenation is a piece: left ids, right ids, ids of the concatenations, (n,) each."""
    pieces, capacity = words.pieces, int(words.pieces.places[-1]) + 1
    columns = [np.empty(capacity, np.int32) for _ in range(3)]
    count = np.zeros(1, np.int64)
    known = {"text": pieces.text, "places": pieces.places, "slots": words.slots, "mask": words.mask}
    outputs = {**dict(zip(("lefts", "rights", "merged"), columns)), "made": count}
    run("text.splits", text_words.SplitsRecord, **known, **outputs, count=len(pieces.places) - 1)
    lefts, rights, merged = (column[: int(count[0])].copy() for column in columns)
    return lefts, rights, merged


class PieceTree:
    """A trie of the bytes of pieces, as a double array. Raises :class:`InvalidRequest` if it has too many nodes.

    ``text_words.walking`` reads its ``slots`` (n,) int64 and ``ids`` (n,) int32.
    """

    def __init__(self, pieces: SpelledPieces) -> None:
        capacity = int(pieces.places[-1]) + 1
        if capacity > text_words.MAX_NODES:
            raise InvalidRequest(f"a vocabulary of {capacity:,} bytes; the limit is {text_words.MAX_NODES:,}")
        table, mask = slots(capacity, 1)
        of_nodes = {name: np.full(capacity, -1, np.int32) for name in ("first", "next", "ids")}
        node_fields = {**of_nodes, "bytes": np.zeros(capacity, np.uint8)}
        count, made = np.zeros(1, np.int64), np.zeros(1, np.int64)
        known = {"text": pieces.text, "places": pieces.places, "slots": table, "mask": mask}
        sizes = {"count": len(pieces.places) - 1, "nodes": count}
        run("text.tree", text_words.TreeRecord, **known, **node_fields, **sizes)
        nodes = int(count[0])
        size = text_words.PLACES * (2 + nodes * 5 // 4 // text_words.PLACES)
        while True:
            array = Arena().take(8 * size).view(np.int64)
            array[:] = text_words.EMPTY
            ids, used = np.full(size, -1, np.int32), np.zeros(size, np.uint8)
            outputs = {"slots": array, "out": ids, "used": used, "bases": np.empty(nodes, np.int32)}
            sizes = {"nodes": nodes, "size": size, "made": made}
            run("text.layout", text_words.LayoutRecord, **node_fields, **outputs, **sizes)
            if made[0] >= 0:
                break
            size *= 2
        self.slots, self.ids = array[: int(made[0])], ids[: int(made[0])]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> PieceTree:
        """Build from pieces in the order of their ids; pieces without bytes are left out."""
        return cls(SpelledPieces.of(pieces))


class PairTable:
    """A hash table of merges: ``lefts``, ``rights``, ``merged`` and ``ranks`` (n,) int32."""

    def __init__(
        self, lefts: NDArray[np.int32], rights: NDArray[np.int32], merged: NDArray[np.int32], ranks: NDArray[np.int32]
    ) -> None:
        self.slots, self.mask = slots(len(lefts), 2)
        self._columns = (lefts, rights, merged, ranks)
        columns = {"lefts": lefts, "rights": rights, "merged": merged, "ranks": ranks}
        table = {"count": len(lefts), "slots": self.slots, "mask": self.mask}
        run("text.pairs", text_merge.PairsRecord, **columns, **table)

    def of_bytes(self, byte_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """The value of each pair of bytes, (256, 256); ``byte_ids`` (256,) has each byte's id, negative for none."""
        lefts, rights, merged, ranks = self._columns
        table = np.full((256, 256), text_merge.NEVER, np.int64)
        of = {int(index): byte for byte, index in enumerate(byte_ids) if index >= 0}
        known = np.array(sorted(of), np.int32)
        rows = np.flatnonzero(np.isin(lefts, known) & np.isin(rights, known))
        for row in rows[::-1].tolist():  # reversed, so that the first of two entries for a pair wins
            value = text_merge.NEVER if merged[row] < 0 else int(ranks[row]) << 32 | int(merged[row])
            table[of[int(lefts[row])], of[int(rights[row])]] = value
        return table


class NeighbourTable(Struct, frozen=True):
    """The pairs of characters that are adjacent in pieces of a vocabulary. All other pairs can be cut.

    ``pairs`` (n,) int64 are left << 21 | right. ``flags`` (0x110000,) uint8 forbid cuts before or after a character,
    whatever its neighbour is (``text/cut.py``). ``everywhere`` is True if all pairs are known. It is False if only
    the pairs of characters of three or more bytes are known.
    """

    pairs: NDArray[np.int64]
    flags: NDArray[np.uint8]
    everywhere: bool

    def most_common(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A dense table for the characters with the most neighbours.

        Returns two arrays. The first has the row of each character, (0x110000,) uint8, or NONE for the other
        characters. The second, (256, 256) uint8, is 1 where the characters of two rows must not be separated.
        """
        lefts, rights = self.pairs >> 21, self.pairs & 0x1FFFFF
        codes, counts = np.unique(np.concatenate([lefts, rights]), return_counts=True)
        codes = codes[np.argsort(-counts, kind="stable")[: text_cut.NONE]]
        rows = np.full(0x110000, text_cut.NONE, np.uint8)
        rows[codes] = np.arange(len(codes), dtype=np.uint8)
        together = np.zeros((256, 256), np.uint8)
        together[rows[lefts], rows[rights]] = 1
        together[: len(codes)] |= (self.flags[codes] & text_cut.AFTER > 0)[:, None]
        together[:, : len(codes)] |= self.flags[codes] & text_cut.BEFORE > 0
        return rows, together

    @classmethod
    def of_text(cls, pieces: Iterable[str], together: NDArray[np.bool_]) -> NeighbourTable:
        """Build from pieces of whole characters; no cut is made next to characters in ``together`` (0x110000,)."""
        listed = list(pieces)
        codes = np.frombuffer("".join(listed).encode("utf-32-le"), np.uint32).astype(np.int64)
        lefts, rights, inside = codes[:-1], codes[1:], np.ones(max(len(codes) - 1, 0), bool)
        ends = np.cumsum(np.fromiter(map(len, listed), np.int64, len(listed)))
        inside[ends[(ends > 0) & (ends < len(codes))] - 1] = False
        flags = np.where(together, text_cut.AFTER | text_cut.BEFORE, 0).astype(np.uint8)
        return cls(np.unique(lefts[inside] << 21 | rights[inside]), flags, everywhere=True)

    @classmethod
    def of_bytes(cls, pieces: SpelledPieces, lost: Iterable[int]) -> NeighbourTable:
        """Build from pieces of bytes.

        A piece may begin or end inside a character, so that only a part of one character of a pair is known. The other
        character is then never cut from any neighbour on that side. If only parts of both characters are known, no
        character that contains the longer part is cut from a neighbour on that side. No cut is made next to characters
        with ``lost`` bytes either, because these bytes are dropped.
        """
        text, places = pieces.text, pieces.places
        leads = np.flatnonzero(text[: places[-1]] >= 0xE0)
        starts, ends = (places[np.searchsorted(places, leads, "right") + side] for side in (-1, 0))
        inside = leads > starts
        pairs, flags, data = set[int](), np.zeros(0x110000, np.uint8), text.tobytes()
        for byte in (byte for byte in lost if 0x80 <= byte < 0xF8):
            if byte < 0xC0:
                flags[:] = text_cut.AFTER | text_cut.BEFORE
            elif byte >= 0xE0:
                flags[_with_prefix(bytes([byte]))] |= text_cut.AFTER | text_cut.BEFORE
        for lead, start, end in zip(leads[inside].tolist(), starts[inside].tolist(), ends[inside].tolist()):
            before = lead - 1
            while before > start and data[before] & 0xC0 == 0x80:
                before -= 1
            left, right = data[before:lead], data[lead : min(end, lead + (4 if data[lead] >= 0xF0 else 3))]
            if left[0] < 0x80 or 0xC0 <= left[0] < 0xE0:
                continue  # a character of one or two bytes
            left_code, right_code = _character(left), _character(right)
            if left_code is not None and right_code is not None:
                pairs.add(left_code << 21 | right_code)
            elif right_code is not None or (left_code is None and len(right) > len(left)):
                flags[_with_prefix(right)] |= text_cut.BEFORE
            else:
                flags[_with_suffix(left)] |= text_cut.AFTER
        return cls(np.array(sorted(pairs), np.int64), flags, everywhere=False)


def _character(data: bytes) -> int | None:
    try:
        return ord(data.decode())
    except (UnicodeDecodeError, TypeError):
        return None


def _with_prefix(part: bytes) -> slice:
    """The characters whose UTF-8, of three or four bytes, begins with ``part``."""
    size = 4 if part[0] >= 0xF0 else 3
    code = part[0] & (7 if size == 4 else 15)
    for byte in part[1:]:
        code = code << 6 | byte & 63
    left = 6 * (size - len(part))
    return slice(code << left, (code + 1) << left)


def _with_suffix(part: bytes) -> slice:
    """The characters whose UTF-8 ends with ``part``, or the single character that ``part`` encodes."""
    known = _character(part)
    if known is not None:
        return slice(known, known + 1)
    code = 0
    for byte in part:
        code = code << 6 | byte & 63
    return slice(code, None, 1 << 6 * len(part))


def byte_table(byte_ids: Mapping[int, int]) -> NDArray[np.int32]:
    """The id of each byte, (256,); -1 for none."""
    table = np.full(256, -1, np.int32)
    table[list(byte_ids)] = list(byte_ids.values())
    return table
