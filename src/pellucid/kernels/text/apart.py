"""Pieces of texts cut between characters that are next to each other in no piece of the vocabulary.

Called straight from Python, on UTF-8. No pair across such a place can ever merge, so the parts are encoded like the
whole: and scripts without spaces, whose sentences are one piece, fall apart into words that are met again. Where a
pattern has cut at spaces and punctuation before, only places between two characters of three bytes or more are worth
looking at.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import PART, appending
from pellucid.kernels.text.split import decoding
from pellucid.kernels.text.words import EMPTY, probing

WIDE = 0x800  # the first character of three bytes
AFTER, BEFORE = 1, 2  # flags: never cut after a character, or before it
NONE = 255


class ApartRecord(Record):
    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: a piece's first byte, and the one behind its last (text_pieces.py)
    count: int  # n
    slots: Address  # (size,) int64: the pairs that pieces have, left << 21 | right; or EMPTY
    mask: int  # size - 1
    common: Address  # (0x110000,) uint8: a character's row in ``together``, or NONE
    together: Address  # (256, 256) uint8: 1 where no cut is made between two such, whatever else is said
    flags: Address  # (0x110000,) uint8: AFTER, BEFORE
    marked: int  # 1: parts of what is cut are marked as such (text_pieces.py)
    out: Address  # (m, 2) int32, room for as many as there are bytes, and pieces
    made: Address  # int64: m


class NeighboursRecord(Record):
    """Fill a table of pairs, all of whose slots are EMPTY."""

    pairs: Address  # (n,) int64
    count: int  # n
    slots: Address  # (size,) int64
    mask: int  # size - 1


@kernel("text.neighbours", NeighboursRecord)
def build_neighbours(simd: Any) -> Any:
    at, load, store_i64 = NeighboursRecord.at, simd.load_i64, simd.store_i64
    slot_for = probing(simd, 1)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        pairs, slots, mask = load(record + at.pairs), load(record + at.slots), load(record + at.mask)
        for i in range(load(record + at.count)):
            pair = load(pairs + i * 8)
            store_i64(slot_for(slots, mask, pair), pair)

    return body


@kernel("text.apart", ApartRecord)
def build(simd: Any, everywhere: bool) -> Any:
    """``everywhere``: also between shorter characters."""
    at, load, load_u8, load_i32 = ApartRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i64, append, slot_for = simd.store_i64, appending(simd), probing(simd, 1)
    length_of, code_point = decoding(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        slots, mask, flags, made = load(record + at.slots), load(record + at.mask), load(record + at.flags), 0
        common, together = load(record + at.common), load(record + at.together)
        marked = load(record + at.marked) * PART
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            position, before, row, part = begin, 0, NONE, 0
            while position < end:
                first = load_u8(text + position)
                if not everywhere and first < 0xE0:
                    position += 1  # a byte of a shorter character
                    before = 0
                    continue
                code, cut, before_row = code_point(text + position), False, row
                row = load_u8(common + code)
                if position > begin if everywhere else before >= WIDE:
                    if before_row != NONE and row != NONE:
                        cut = load_u8(together + (before_row << 8 | row)) == 0
                    elif load_u8(flags + before) & AFTER | load_u8(flags + code) & BEFORE == 0:
                        cut = load(slot_for(slots, mask, before << 21 | code)) == EMPTY
                if cut:
                    part = marked
                    made = append(out, made, begin, position | part)
                    begin = position
                before = code
                position += length_of(first)
            made = append(out, made, begin, end if end < 0 else end | part)
        store_i64(load(record + at.made), made)

    return body
