"""Pieces of texts with other characters in them, as a normalizer makes them. Called straight from Python, on UTF-8.

What becomes of a character does not hang on those around it, but for three things: spaces in a row may become one, and
none at a piece's ends; a piece may get something put before it; and a line feed behind a carriage return may belong to
it. A character for which that is not so, in its place, is where this gives up: Python then does it. A piece that is an
id (``text_pieces.py``) takes one byte, so that what lies behind another stays there.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import Address, Record
from pellucid.kernels.text_split import decoding

KEPT, STRANGE = 0, -1  # targets of a character that stays, and of one that is not for this
DONE, GAVE_UP = 0, 1
NEVER, ALWAYS, FIRST = 0, 1, 2


class Rewrite(Record):
    text: Address  # UTF-8
    pieces: (
        Address  # (n, 2) int32: a piece's first byte, and the one behind its last, or an id (text_pieces.py)
    )
    count: int  # n
    ends: Address  # (texts,) int32: the byte behind each text
    texts: int
    targets: Address  # (0x110000,) int32: KEPT, STRANGE, or where in ``written`` the target is
    written: Address  # targets, each with its length in a byte before it
    joins: Address  # (0x110000,) uint8: 1 where a character is one with a short one before it
    collapse: int  # 1: of spaces in a row, the first stays
    trim: int  # 1: none does at the ends of a piece
    pairs: int  # 1: a line feed goes with the carriage return before it
    prefix: Address  # what is put before a piece that is not empty
    prefix_length: int  # bytes of that
    when: int  # NEVER, ALWAYS, or FIRST: only where a text begins
    unless_there: int  # 1: not where it begins with that
    out: Address  # the new texts: room for the longest target of every byte, a prefix for every piece
    out_pieces: Address  # (n, 2) int32
    out_ends: Address  # (texts,) int32
    status: Address  # int64: DONE, or why not


@kernel("text.rewrite", Rewrite)
def build(simd: Any, joining: bool) -> Any:
    """``joining``: some characters join others, and carriage returns line feeds."""
    at, load, load_u8, load_i32 = Rewrite.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    length_of, code_point = decoding(simd)

    @simd.jit
    def copy(place, length, out):
        for i in range(length):
            store_u8(out + i, load_u8(place + i))

    @simd.jit
    def begins_with(place, length, prefix, prefix_length):
        if length < prefix_length:
            return False
        for i in range(prefix_length):
            if load_u8(place + i) != load_u8(prefix + i):
                return False
        return True

    @simd.jit
    def superfluous(out, first, made, collapse, trim):
        """Whether a space is one too many."""
        if made == first:
            return trim
        return collapse and load_u8(out + made - 1) == 32

    @simd.jit
    def rewrite(record, begin, end, first):
        """One piece, to ``out`` from ``first``. Returns the end of it there, or -1 where it gives up."""
        text, out = load(record + at.text), load(record + at.out)
        targets, written = load(record + at.targets), load(record + at.written)
        joins, collapse, pairs = load(record + at.joins), load(record + at.collapse), load(record + at.pairs)
        collapse, trim = collapse != 0, load(record + at.trim) != 0
        position, before, made = begin, 0, first
        while position < end:
            place = text + position
            code, size = code_point(place), length_of(load_u8(place))
            if joining:
                if load_u8(joins + code) != 0 and before > 0 and before + size < 6:
                    return -1
                before = 0 if code < 32 else size
            target = load_i32(targets + code * 4)
            if target == KEPT:
                if not (code == 32 and superfluous(out, first, made, collapse, trim)):
                    copy(place, size, out + made)
                    made += size
            elif target == STRANGE:
                return -1
            else:
                amount = load_u8(written + target)
                for i in range(amount):
                    byte = load_u8(written + target + 1 + i)
                    if not (byte == 32 and superfluous(out, first, made, collapse, trim)):
                        store_u8(out + made, byte)
                        made += 1
            position += size
            if joining:
                if pairs and code == 13 and position < end and load_u8(text + position) == 10:
                    position += 1
        while trim and made > first and load_u8(out + made - 1) == 32:
            made -= 1
        return made

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        pieces, ends, texts = load(record + at.pieces), load(record + at.ends), load(record + at.texts)
        out, out_pieces, out_ends = (
            load(record + at.out),
            load(record + at.out_pieces),
            load(record + at.out_ends),
        )
        prefix, prefix_length = load(record + at.prefix), load(record + at.prefix_length)
        when, unless_there = load(record + at.when), load(record + at.unless_there)
        made, done, text_begin = 0, 0, 0
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            while done < texts - 1 and begin >= load_i32(ends + done * 4):
                store_i32(out_ends + done * 4, made)
                text_begin = load_i32(ends + done * 4)
                done += 1
            store_i32(out_pieces + i * 8, made)
            if end < 0:
                store_i32(out_pieces + i * 8 + 4, end)
                store_u8(out + made, 0)
                made += 1
                continue
            start = made
            made = rewrite(record, begin, end, made)
            if made < 0:
                store_i64(load(record + at.status), GAVE_UP)
                return
            wanted = made > start and (when == ALWAYS or (when == FIRST and begin == text_begin))
            if wanted and unless_there:
                wanted = not begins_with(out + start, made - start, prefix, prefix_length)
            if wanted:
                for k in range(made - start - 1, -1, -1):
                    store_u8(out + start + prefix_length + k, load_u8(out + start + k))
                copy(prefix, prefix_length, out + start)
                made += prefix_length
            store_i32(out_pieces + i * 8 + 4, made)
        while done < texts:
            store_i32(out_ends + done * 4, made)
            done += 1
        store_i64(load(record + at.status), DONE)

    return body
