"""Brings spans of text into a Unicode normalization form (UAX #15). Called directly from Python, on UTF-8.

Most characters, and most marks after them, are in the form already, independent of their neighbours. They are copied.
At a character that may change, or compose with a character before it, the kernel goes back to the last starter if
necessary. It decomposes, orders and composes all characters up to the next character that composes with no earlier
character. The reference is ``tokenize/stages/normalize.py``.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address
from pellucid.kernels.text.merge import pairing
from pellucid.kernels.text.merge_loop import NEVER
from pellucid.kernels.text.rewrite import ChangedRecord, spans_body
from pellucid.kernels.text.split import decoding, running

# The properties of a character. CLASS: its canonical combining class. CHANGES: it is not in the form by itself. JOINS:
# it may compose with a character before it.
CLASS, CHANGES, JOINS = 255, 256, 512
MAX_PARTS = 128  # maximum number of parts that are ordered together; Python handles longer sequences
PART_BITS = 21  # bits of a part's code point; its combining class is stored above them


class NormalizeRecord(ChangedRecord):
    """``out`` has room for the parts, i.e. the full decomposition, of every character."""

    properties: Address  # (0x110000,) uint16
    places: Address  # (0x110000,) int32: index of the parts in ``written``; 0: the character is its only part
    written: Address  # int32: the number of parts, then their code points
    composes: int  # 1: the form is composed
    pairs: Address  # table of pairs: the composition of two parts (text/merge.py)
    pairs_mask: int
    scratch: Address  # (MAX_PARTS,) int32


def encoding(simd: Any) -> Any:
    """Make ``encode``, which writes a code point as UTF-8 to ``out`` and returns the number of bytes."""
    store_u8 = simd.store_u8

    @simd.jit
    def encode(code, out):
        if code < 0x80:
            store_u8(out, code)
            return 1
        if code < 0x800:
            store_u8(out, 0xC0 | code >> 6)
            store_u8(out + 1, 0x80 | code & 63)
            return 2
        if code < 0x10000:
            store_u8(out, 0xE0 | code >> 12)
            store_u8(out + 1, 0x80 | code >> 6 & 63)
            store_u8(out + 2, 0x80 | code & 63)
            return 3
        store_u8(out, 0xF0 | code >> 18)
        store_u8(out + 1, 0x80 | code >> 12 & 63)
        store_u8(out + 2, 0x80 | code >> 6 & 63)
        store_u8(out + 3, 0x80 | code & 63)
        return 4

    return encode


def inserting(simd: Any) -> Any:
    """Make ``insert``, which adds a part in canonical order, before the marks of a higher combining class."""
    load_i32, store_i32 = simd.load_i32, simd.store_i32

    @simd.jit
    def insert(parts, count, code, kind):
        here = count
        while kind > 0 and here > 0 and load_i32(parts + here * 4 - 4) >> PART_BITS > kind:
            store_i32(parts + here * 4, load_i32(parts + here * 4 - 4))
            here -= 1
        store_i32(parts + here * 4, kind << PART_BITS | code)

    return insert


def composing(simd: Any) -> Any:
    """Make ``compose``, which composes ordered parts in place and returns the number of remaining parts."""
    load_i32, store_i32, value_of = simd.load_i32, simd.store_i32, pairing(simd)

    @simd.jit
    def compose(parts, count, pairs, mask):
        kept, starter, last = 0, -1, 0
        for i in range(count):
            part = load_i32(parts + i * 4)
            kind = part >> PART_BITS
            if starter >= 0 and (starter == kept - 1 or last < kind):
                joined = value_of(load_i32(parts + starter * 4), part & ((1 << PART_BITS) - 1), pairs, mask)
                if joined != NEVER:
                    store_i32(parts + starter * 4, joined)
                    continue
            if kind == 0:
                starter = kept
            store_i32(parts + kept * 4, part)
            kept, last = kept + 1, kind
        return kept

    return compose


def rebuilding(simd: Any, length_of: Any, code_point: Any) -> Any:
    """Make ``rebuild``, which decomposes, orders and composes characters.

    The characters are from ``position`` up to the next character that composes with no earlier character. ``rebuild``
    returns their end in ``text`` and in ``out``. The end in ``out`` is -1 if they have more than MAX_PARTS parts.
    """
    at, load, load_u8 = NormalizeRecord.at, simd.load_i64, simd.load_u8
    load_u16, load_i32 = simd.load_u16, simd.load_i32
    insert, compose, encode = inserting(simd), composing(simd), encoding(simd)

    @simd.jit
    def rebuild(record, position, end, out_end):
        text, out, parts = load(record + at.text), load(record + at.out), load(record + at.scratch)
        properties, places = load(record + at.properties), load(record + at.places)
        written, count, first = load(record + at.written), 0, True
        while position < end:
            code = code_point(text + position)
            if not first and load_u16(properties + code * 2) & (JOINS | CLASS) == 0:
                break
            first = False
            place = load_i32(places + code * 4)
            many = load_i32(written + place * 4) if place > 0 else 1
            if count + many > MAX_PARTS:
                return position, -1
            for i in range(many):
                part = load_i32(written + (place + 1 + i) * 4) if place > 0 else code
                insert(parts, count, part, load_u16(properties + part * 2) & CLASS)
                count += 1
            position += length_of(load_u8(text + position))
        if load(record + at.composes):
            count = compose(parts, count, load(record + at.pairs), load(record + at.pairs_mask))
        for i in range(count):
            out_end += encode(load_i32(parts + i * 4) & ((1 << PART_BITS) - 1), out + out_end)
        return position, out_end

    return rebuild


@kernel("text.normalize", NormalizeRecord)
def build(simd: Any) -> Any:
    at, load, load_u8, load_u16 = NormalizeRecord.at, simd.load_i64, simd.load_u8, simd.load_u16
    store_i64, run_of = simd.store_i64, running(simd)
    length_of, code_point = decoding(simd)
    rebuild = rebuilding(simd, length_of, code_point)

    @simd.jit
    def change(record, begin, end, begins_text, out_end):
        text, out, properties = load(record + at.text), load(record + at.out), load(record + at.properties)
        position, anchor, anchor_end, last = begin, begin, out_end, 0
        while position < end:
            place = text + position
            run = min(run_of(place), end - position)
            if run > 0 and load_u8(place + run) >= 0x80:
                run -= 1  # the last character may compose with the next
            if run > 0:
                store_i64(out + out_end, load(place))
                position, out_end, last = position + run, out_end + run, 0
                anchor, anchor_end = position, out_end
                continue
            code, size = code_point(place), length_of(load_u8(place))
            kind = load_u16(properties + code * 2)
            if (kind <= CLASS and kind >= last) or kind == 0:
                if kind == 0:
                    anchor, anchor_end = position, out_end
                store_i64(out + out_end, load(place))
                position, out_end, last = position + size, out_end + size, kind
                continue
            if kind != CHANGES:
                position, out_end = anchor, anchor_end
            position, out_end = rebuild(record, position, end, out_end)
            if out_end < 0:
                return out_end
            anchor, anchor_end, last = position, out_end, 0
        return out_end

    return spans_body(simd, at, change)
