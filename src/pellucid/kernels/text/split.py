"""Splits spans of text where a pattern matches, as pre-tokenizers do. Called directly from Python, on UTF-8.

The pattern is an automaton's table (``tokenize/patterns/automaton.py``; ``Matcher._walked`` runs it in Python). The
behavior defines the result of a match, as in Hugging Face ``tokenizers``: the match becomes a separate span, is
removed, or joins the span before or after it. "Contiguous" joins adjacent matches, and adjacent text between matches.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import appending

BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
START = 1  # the automaton's first state; state 0 ends the run
ONES, HIGHS = 0x0101010101010101, 0x80808080_80808080 - (1 << 64)  # bit 0, or 7, of each byte; int64


class SplitRecord(Record):
    text: Address  # UTF-8
    pieces: Address  # (n, 2) int32: begin and end of each span, in bytes
    count: int  # n
    classes: Address  # (0x110000,) uint8: the class of each code point
    table: Address  # (states, columns) uint16: 2 * next state + 1 if a match ends before this character
    columns: int  # one column per class, and one column for the end of a span
    starts: Address  # (256,) uint8: 1 if a match may begin with a character that has this first byte
    behavior: int  # an index of BEHAVIORS
    inverted: int  # 1: the text between matches counts as the matches
    most_steps: int  # maximum number of bytes that the automaton may read, in total
    out: Address  # (m, 2) int32 spans, room for one span per byte
    made: Address  # int64: m, or -1 if most_steps was exceeded


def decoding(simd: Any) -> Any:
    """Make ``length`` (bytes of a character, from its first byte) and ``code_point`` (the character at an address)."""
    load_u8 = simd.load_u8

    @simd.jit
    def length(first):
        if first < 0x80:
            return 1
        if first < 0xE0:
            return 2
        if first < 0xF0:
            return 3
        return 4

    @simd.jit
    def code_point(place):
        first = load_u8(place)
        if first < 0x80:
            return first
        second = load_u8(place + 1) & 63
        if first < 0xE0:
            return (first & 31) << 6 | second
        third = load_u8(place + 2) & 63
        if first < 0xF0:
            return (first & 15) << 12 | second << 6 | third
        return (first & 7) << 18 | second << 12 | third << 6 | load_u8(place + 3) & 63

    return length, code_point


def skipping(simd: Any) -> Any:
    """Make ``skip``, which returns the first address from ``place`` on whose byte is set in ``starts``, (256,) uint8.

    If there is no such address before ``end``, it returns ``end``.
    """
    load_u8 = simd.load_u8

    @simd.jit
    def skip(starts, place, end):
        while place + 4 <= end:
            first, second = load_u8(starts + load_u8(place)), load_u8(starts + load_u8(place + 1))
            third, fourth = load_u8(starts + load_u8(place + 2)), load_u8(starts + load_u8(place + 3))
            if first | second | third | fourth:
                break
            place += 4
        while place < end and load_u8(starts + load_u8(place)) == 0:
            place += 1
        return place

    return skip


def running(simd: Any) -> Any:
    """Make ``run_of``, which counts the leading bytes, of eight at an address, that are ASCII from "!" to "~"."""
    load = simd.load_i64

    @simd.jit
    def run_of(place):
        word = load(place)
        # The highest bit of each byte outside this range. Borrows and carries may also set bits after the first of
        # these bytes.
        others = (word | word + ONES | word - 0x21 * ONES & ~word) & HIGHS
        return 8 if others == 0 else simd.lowest_bit(others) >> 3

    return run_of


def matching(simd: Any, length: Any, code_point: Any) -> Any:
    """Make ``match``, which returns the end of the match at ``position``, and the number of bytes that it has read.

    Without a match the end is ``position``.
    """
    load_u8, load_u16 = simd.load_u8, simd.load_u16

    @simd.jit
    def match(text, position, end, classes, table, columns):
        state, found, begin = START, position, position
        while True:
            kind, step = columns - 1, 0
            if position < end:
                first = load_u8(text + position)
                if first < 0x80:
                    kind, step = load_u8(classes + first), 1
                else:
                    kind, step = load_u8(classes + code_point(text + position)), length(first)
            entry = load_u16(table + (state * columns + kind) * 2)
            if entry & 1:
                found = position
            state = entry >> 1
            if state == 0:
                return found, position + step - begin
            position += step

    return match


def joining(simd: Any, append: Any) -> Any:
    """Make ``put``, which adds a part of a span according to the behavior and returns the new number of spans.

    ``first`` is the index of the first part. ``matched`` is true if this part is a match, ``previous`` if the part
    before it is a match.
    """
    store_i32 = simd.store_i32
    removed, with_previous, with_next, contiguous = (BEHAVIORS.index(name) for name in BEHAVIORS[1:])

    @simd.jit
    def put(out, spans, first, begin, end, matched, previous, behavior):
        if behavior == removed and matched:
            return spans
        joined = False
        if spans > first:
            if behavior == with_previous:
                joined = matched and not previous
            elif behavior == with_next:
                joined = previous and not matched
            elif behavior == contiguous:
                joined = matched == previous
        if joined:
            store_i32(out + spans * 8 - 4, end)
            return spans
        return append(out, spans, begin, end)

    return put


@kernel("text.split", SplitRecord)
def build(simd: Any) -> Any:
    at, load, load_u8 = SplitRecord.at, simd.load_i64, simd.load_u8
    load_i32, store_i64 = simd.load_i32, simd.store_i64
    length, code_point = decoding(simd)
    append, skip, match = appending(simd), skipping(simd), matching(simd, length, code_point)
    put = joining(simd, append)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        classes, table = load(record + at.classes), load(record + at.table)
        columns = load(record + at.columns)
        behavior, inverted = load(record + at.behavior), load(record + at.inverted) != 0
        starts, spans, steps = load(record + at.starts), 0, load(record + at.most_steps)
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            if end < 0:  # an id that is already known (text/pieces.py)
                spans = append(out, spans, begin, end)
                continue
            first, previous, position = spans, False, begin
            while True:
                position = skip(starts, text + position, text + end) - text
                if position >= end:
                    break
                found, read = match(text, position, end, classes, table, columns)
                steps -= read
                if steps < 0:
                    store_i64(load(record + at.made), -1)
                    return
                if found > position:
                    if begin < position:
                        spans = put(out, spans, first, begin, position, inverted, previous, behavior)
                        previous = inverted
                    spans = put(out, spans, first, position, found, not inverted, previous, behavior)
                    previous = not inverted
                    begin = position = found
                else:
                    position += length(load_u8(text + position))
            if begin < end:
                spans = put(out, spans, first, begin, end, inverted, previous, behavior)
        store_i64(load(record + at.made), spans)

    return body
