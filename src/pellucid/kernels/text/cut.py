"""Cuts spans of texts at added tokens, and between characters that are adjacent in no piece of the vocabulary."""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import PART, appending
from pellucid.kernels.text.split import decoding, skipping
from pellucid.kernels.text.words import EMPTY, probing, walking


class AddedRecord(Record):
    """Finds added tokens in texts, before any other stage. Called directly from Python, on UTF-8.

    The leftmost match wins. Of several matches at one place, the longest match wins. ``tokenize/stages/pretokenize.py``
    does the same in Python. A matched token becomes a span that stands for its id (``text/pieces.py``). Control tokens
    that a user wrote are matched too, but stay text.
    """

    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: begin and end of each span, in bytes
    count: int  # n
    starts: Address  # (256,) uint8: 1 if a token begins with this byte
    slots: Address  # a tree of the tokens (text/words.py)
    ids: Address  # the index of the token that ends at a slot, or -1
    emitted: Address  # (tokens,) int32: a token's id, or -1 if it stays text
    out: Address  # (m, 2) int32 spans, room for n + 1 plus the number of bytes
    made: Address  # int64: m


@kernel("text.added", AddedRecord)
def build_added(simd: Any) -> Any:
    at, load, load_i32 = AddedRecord.at, simd.load_i64, simd.load_i32
    store_i64, append, walk, skip = simd.store_i64, appending(simd), walking(simd), skipping(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        starts, slots = load(record + at.starts), load(record + at.slots)
        ids, emitted, spans = load(record + at.ids), load(record + at.emitted), 0
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            position = begin
            while True:
                position = skip(starts, text + position, text + end) - text
                if position >= end:
                    break
                found, stop = walk(slots, ids, text + position, text + end, True)
                if found < 0:
                    position += 1
                    continue
                index = load_i32(emitted + found * 4)
                if index >= 0:
                    if begin < position:
                        spans = append(out, spans, begin, position)
                    spans = append(out, spans, position, -1 - index)
                    begin = stop - text
                position = stop - text
            if begin < end or end < 0:
                spans = append(out, spans, begin, end)
        store_i64(load(record + at.made), spans)

    return body


# Cuts pre-tokens between characters that are adjacent in no piece of the vocabulary.
#
# Called directly from Python, on UTF-8. No pair of symbols can merge across a cut, so the parts get the same ids as the
# whole. This speeds up scripts without spaces, where a whole sentence is one pre-token: the parts are words that recur,
# so their ids are often in the cache. If a pattern has already split at spaces and punctuation, only places between two
# characters of three bytes or more are checked.

WIDE = 0x800  # the first character of three bytes
AFTER, BEFORE = 1, 2  # flags: never cut after a character, or before it
NONE = 255


class ApartRecord(Record):
    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: begin and end of each pre-token, in bytes (text/pieces.py)
    count: int  # n
    slots: Address  # (size,) int64: the adjacent characters of pieces, left << 21 | right; or EMPTY
    mask: int  # size - 1
    common: Address  # (0x110000,) uint8: row in ``together`` of a character with many neighbours, or NONE
    together: Address  # (256, 256) uint8: 1 if ``slots`` or ``flags`` forbid a cut between the two characters
    flags: Address  # (0x110000,) uint8: AFTER, BEFORE
    marked: int  # 1: the parts of a pre-token get the flag PART (text/pieces.py)
    out: Address  # (m, 2) int32 pre-tokens, room for n plus the number of bytes
    made: Address  # int64: m


class NeighboursRecord(Record):
    """Fills a table of pairs of characters. All slots are EMPTY at first."""

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
def build_apart(simd: Any, everywhere: bool) -> Any:
    """Build the cuts. ``everywhere`` is True to cut also between characters of fewer than three bytes."""
    at, load, load_u8, load_i32 = ApartRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i64, append, slot_for = simd.store_i64, appending(simd), probing(simd, 1)
    length_of, code_point = decoding(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        slots, mask = load(record + at.slots), load(record + at.mask)
        flags, spans = load(record + at.flags), 0
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
                    spans = append(out, spans, begin, position | part)
                    begin = position
                before = code
                position += length_of(first)
            spans = append(out, spans, begin, end if end < 0 else end | part)
        store_i64(load(record + at.made), spans)

    return body
