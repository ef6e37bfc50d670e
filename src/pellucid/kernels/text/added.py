"""Finds added tokens in texts, before any other stage. Called directly from Python, on UTF-8.

The leftmost match wins. Of several matches at one place, the longest match wins. ``tokenize/stages/added_tokens.py``
does the same in Python. A matched token becomes a span that stands for its id (``text/pieces.py``). Control tokens that
a user wrote are matched too, but stay text.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import appending
from pellucid.kernels.text.split import skipping
from pellucid.kernels.text.words import walking


class AddedRecord(Record):
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
def build(simd: Any) -> Any:
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
