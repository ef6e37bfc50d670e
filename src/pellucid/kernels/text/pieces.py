"""Ids of the pieces of texts, one piece after the other: what all kinds of tokenizers share, but for what a piece is.

Called straight from Python, on UTF-8. Most pieces are met again and again: their ids are kept in memories of fixed
size, of which each thread has two to itself, for short pieces and longer ones. Looking up many in a row takes as long
as the cache misses do, so a block's entries are asked for before the first is looked at. Several texts may lie behind
one another; how many ids each has is told too.

A piece may also be one id that is known beforehand (an added token): the byte behind its last is then -1 - id. And it
may be marked as a PART of one that was cut, where that makes a difference.

A kind's file makes its kernel of :func:`over` and of a function that works out the ids of one piece.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.record import Address, Record

PADDING = 128  # bytes behind the text that may be read
PART = 1 << 30  # in the byte behind a piece's last
BLOCK = 16

# An entry of a memory: the hash, length and count, then the text, then the ids, if all of that fits in. Of the short
# pieces' memory two entries that lie beside each other are a set: what is new goes to the first, that to the second.
ENTRY, KEPT_BYTES = 64, 32
LONG_ENTRY, LONG_BYTES = 256, 160
TEXT = 10  # bytes before the text
FIRST_IDS = 6  # what is copied of the ids before it is asked how many there are


class PiecesRecord(Record):
    text: Address  # UTF-8, and PADDING
    pieces: Address  # (n, 2) int32: a piece's first byte, and the one behind its last
    count: int  # n
    ends: Address  # (texts,) int32: the byte behind each text
    counts: Address  # (texts,) int64: the ids up to the end of each
    texts: int
    memory: Address  # entries, zero at first, of short pieces
    memory_mask: int
    long_memory: Address  # the same of longer ones
    long_mask: int
    scratch: Address  # what the kind wants, and before that BLOCK hashes
    out: Address  # (m,) int32, room for FIRST_IDS more than there are bytes
    firsts: Address  # (n,) int32: the ids before each piece; 0 if nobody asks


def hashing(simd: Any) -> Any:
    """(hashed, same): a hash of some bytes, and whether two places hold the same ones."""
    load, times = simd.load_i64, simd.times

    @simd.jit
    def hashed(place, length):
        """Of so many bytes, eight at a time; what lies behind them does not count."""
        h = times(length, -7046029254386353131)
        done = 0
        while done + 8 <= length:
            h = times(h ^ load(place + done), -4417276706812531889)
            h ^= (h >> 29) & 0x7FFFFFFFF
            done += 8
        if done < length:
            rest = load(place + done) & ((1 << (8 * (length - done))) - 1)
            h = times(h ^ rest, -4417276706812531889)
            h ^= (h >> 29) & 0x7FFFFFFFF
        h = times(h, -4417276706812531889)
        h ^= (h >> 32) & 0xFFFFFFFF
        return h & 0x7FFFFFFFFFFFFFFF

    @simd.jit
    def same(place, other, length):
        done = 0
        while done + 8 <= length:
            if load(place + done) != load(other + done):
                return False
            done += 8
        if done == length:
            return True
        return (load(place + done) ^ load(other + done)) & ((1 << (8 * (length - done))) - 1) == 0

    return hashed, same


def appending(simd: Any) -> Any:
    """append: one more piece, its first byte and the one behind its last. Returns how many pieces there are now."""
    store_i64 = simd.store_i64

    @simd.jit
    def append(pieces, count, begin, end):
        store_i64(pieces + count * 8, begin | end << 32)
        return count + 1

    return append


def _memory(simd: Any) -> Any:
    """(known, keep) of entries."""
    load, load_u8, load_i32 = simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    _, same = hashing(simd)

    @simd.jit
    def known(entry, h, place, length, out):
        """The ids of a piece from an entry; returns how many, -1 if it is not there."""
        if load(entry) != h or load_u8(entry + 8) != length or not same(place, entry + TEXT, length):
            return -1
        count, ids = load_u8(entry + 9), entry + TEXT + length
        for i in range(0, 4 * FIRST_IDS, 8):
            store_i64(out + i, load(ids + i))
        for i in range(FIRST_IDS, count):
            store_i32(out + i * 4, load_i32(ids + i * 4))
        return count

    @simd.jit
    def keep(entry, h, place, length, out, made):
        store_i64(entry, h)
        store_u8(entry + 8, length)
        store_u8(entry + 9, made)
        for i in range(0, length, 8):
            store_i64(entry + TEXT + i, load(place + i))
        for i in range(made):
            store_i32(entry + TEXT + length + i * 4, load_i32(out + i * 4))

    return known, keep


def _short(simd: Any, ids_of: Any) -> Any:
    """short: the ids of a short piece, from the set of two entries at ``entry``, or worked out and kept there."""
    load, store_i64 = simd.load_i64, simd.store_i64
    known, keep = _memory(simd)

    @simd.jit
    def moved(entry, other):
        for i in range(0, ENTRY, 8):
            store_i64(other + i, load(entry + i))

    @simd.jit
    def short(record, entry, h, scratch, place, length, part, out):
        made = known(entry, h, place, length, out)
        if made < 0:
            made = known(entry + ENTRY, h, place, length, out)
        if made < 0:
            made = ids_of(record, scratch, place, length, part, out)
            if TEXT + length + 4 * made <= ENTRY:
                moved(entry, entry + ENTRY)
                keep(entry, h, place, length, out, made)
        return made

    return short


def _longer(simd: Any, at: Any, ids_of: Any, hashed: Any) -> Any:
    """longer: the ids of a longer piece, from its entry, or worked out and kept there."""
    load = simd.load_i64
    known, keep = _memory(simd)

    @simd.jit
    def longer(record, scratch, place, length, part, out):
        h = hashed(place, length) ^ part
        entry = load(record + at.long_memory) + (h & load(record + at.long_mask)) * LONG_ENTRY
        made = known(entry, h, place, length, out)
        if made < 0:
            made = ids_of(record, scratch, place, length, part, out)
            if TEXT + length + 4 * made <= LONG_ENTRY:
                keep(entry, h, place, length, out, made)
        return made

    return longer


def over(simd: Any, at: Any, ids_of: Any) -> Any:
    """The body of a kernel whose record begins with the fields of Pieces.

    ``ids_of(record, scratch, place, length, part, out)`` works out the ids of one piece and returns how many they are;
    ``part`` is 1 for a part of a piece that was cut.
    """
    load, load_i32, store_i32, store_i64 = simd.load_i64, simd.load_i32, simd.store_i32, simd.store_i64
    hashed, _ = hashing(simd)
    short, longer = _short(simd, ids_of), _longer(simd, at, ids_of, hashed)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        ends, counts, texts = load(record + at.ends), load(record + at.counts), load(record + at.texts)
        memory, mask = load(record + at.memory), load(record + at.memory_mask) & -2
        hashes, count = load(record + at.scratch), load(record + at.count)
        scratch, firsts, made, done = hashes + BLOCK * 8, load(record + at.firsts), 0, 0
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            for i in range(first, last):
                begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
                length = (end & ~PART) - begin
                if end >= 0 and length <= KEPT_BYTES:
                    h = hashed(text + begin, length) ^ (end >> 30)
                    store_i64(hashes + (i - first) * 8, h)
                    simd.prefetch(memory + (h >> 1 & mask) * ENTRY)
            for i in range(first, last):
                begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
                while done < texts - 1 and begin >= load_i32(ends + done * 4):
                    store_i64(counts + done * 8, made)
                    done += 1
                place, where = text + begin, out + made * 4
                if firsts != 0:
                    store_i32(firsts + i * 4, made)
                if end < 0:
                    store_i32(where, -1 - end)
                    made += 1
                    continue
                length, part = (end & ~PART) - begin, end >> 30
                if length > LONG_BYTES:
                    made += ids_of(record, scratch, place, length, part, where)
                elif length > KEPT_BYTES:
                    made += longer(record, scratch, place, length, part, where)
                elif length > 0:
                    h = load(hashes + (i - first) * 8)
                    made += short(
                        record, memory + (h >> 1 & mask) * ENTRY, h, scratch, place, length, part, where
                    )
        while done < texts:
            store_i64(counts + done * 8, made)
            done += 1

    return body
