"""The common part of the model kernels ``text.merge``, ``text.unigram`` and ``text.wordpiece``: pre-tokens → token ids.

Called directly from Python, on UTF-8. Most pre-tokens recur, so their ids are cached in tables of fixed size. Each
thread has two tables: one for short pre-tokens, one for longer pre-tokens. CPU cache misses limit the speed of lookups,
so the entries of a block of pre-tokens are prefetched before the first entry is read. Several texts may be
concatenated; the kernel also writes the number of ids of each text.

A pre-token may stand for an id that is already known (an added token): its end is then -1 - id. The parts of a cut
pre-token (``text/cut.py``) have the flag PART in their ends if their ids may differ from the ids of a whole
pre-token with the same text.

A kernel's file builds its body with :func:`pieces_body` from a function that computes the ids of one pre-token.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.record import Address, Record

PADDING = 128  # readable bytes after the text
PART = 1 << 30  # flag in a pre-token's end
BLOCK = 16  # pre-tokens whose cache entries are prefetched together

# A cache entry: hash (8 bytes), length (1), number of ids (1), text, ids. Pre-tokens that do not fit are not cached. In
# the cache of short pre-tokens two adjacent entries are a set: a new entry replaces the first entry, whose content
# moves to the second entry.
ENTRY, KEPT_BYTES = 64, 32
LONG_ENTRY, LONG_BYTES = 256, 160
TEXT = 10  # offset of the text in an entry
FIRST_IDS = 6  # ids that are copied before their number is checked


class PiecesRecord(Record):
    """The fields of every kernel built with :func:`pieces_body`."""

    text: Address  # UTF-8, then PADDING
    pieces: Address  # (n, 2) int32: begin and end of each pre-token, in bytes
    count: int  # n
    ends: Address  # (texts,) int32: the end of each text
    counts: Address  # (texts,) int64: the number of ids up to the end of each text
    texts: int
    memory: Address  # the cache of short pre-tokens, zero at first
    memory_mask: int
    long_memory: Address  # the cache of longer pre-tokens, zero at first
    long_mask: int
    scratch: Address  # BLOCK hashes, then the kernel's own scratch
    out: Address  # (m,) int32 ids, room for the number of bytes plus FIRST_IDS
    firsts: Address  # (n,) int32: the number of ids before each pre-token; 0: not written


def hashing(simd: Any) -> Any:
    """Make ``hashed``, which returns the hash of bytes, and ``same``, which compares the bytes at two addresses."""
    load, mul64 = simd.load_i64, simd.mul64

    @simd.jit
    def hashed(place, length):
        """Return the hash of ``length`` bytes, read eight at a time. Bytes after them are masked out."""
        h = mul64(length, -7046029254386353131)
        done = 0
        while done + 8 <= length:
            h = mul64(h ^ load(place + done), -4417276706812531889)
            h ^= (h >> 29) & 0x7FFFFFFFF
            done += 8
        if done < length:
            rest = load(place + done) & ((1 << (8 * (length - done))) - 1)
            h = mul64(h ^ rest, -4417276706812531889)
            h ^= (h >> 29) & 0x7FFFFFFFF
        h = mul64(h, -4417276706812531889)
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
    """Make ``append``, which adds a span (begin and end) and returns the new number of spans."""
    store_i64 = simd.store_i64

    @simd.jit
    def append(pieces, count, begin, end):
        store_i64(pieces + count * 8, begin | end << 32)
        return count + 1

    return append


def _memory(simd: Any) -> Any:
    """Make ``known`` and ``keep``, which read and write a cache entry."""
    load, load_u8, load_i32 = simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    _, same = hashing(simd)

    @simd.jit
    def known(entry, h, place, length, out):
        """Copy a pre-token's ids from an entry to ``out``. Returns their number, or -1 if the entry has other text."""
        if load(entry) != h or load_u8(entry + 8) != length or not same(place, entry + TEXT, length):
            return -1
        count, ids = load_u8(entry + 9), entry + TEXT + length
        for i in range(0, 4 * FIRST_IDS, 8):
            store_i64(out + i, load(ids + i))
        for i in range(FIRST_IDS, count):
            store_i32(out + i * 4, load_i32(ids + i * 4))
        return count

    @simd.jit
    def keep(entry, h, place, length, out, id_count):
        store_i64(entry, h)
        store_u8(entry + 8, length)
        store_u8(entry + 9, id_count)
        for i in range(0, length, 8):
            store_i64(entry + TEXT + i, load(place + i))
        for i in range(id_count):
            store_i32(entry + TEXT + length + i * 4, load_i32(out + i * 4))

    return known, keep


def _short(simd: Any, ids_of: Any) -> Any:
    """Make ``short``, which copies the ids of a short pre-token from one of the two cache entries at ``entry``.

    If neither entry has the pre-token, ``short`` computes the ids and caches them.
    """
    load, store_i64 = simd.load_i64, simd.store_i64
    known, keep = _memory(simd)

    @simd.jit
    def moved(entry, other):
        for i in range(0, ENTRY, 8):
            store_i64(other + i, load(entry + i))

    @simd.jit
    def short(record, entry, h, scratch, place, length, part, out):
        id_count = known(entry, h, place, length, out)
        if id_count < 0:
            id_count = known(entry + ENTRY, h, place, length, out)
        if id_count < 0:
            id_count = ids_of(record, scratch, place, length, part, out)
            if TEXT + length + 4 * id_count <= ENTRY:
                moved(entry, entry + ENTRY)
                keep(entry, h, place, length, out, id_count)
        return id_count

    return short


def _longer(simd: Any, at: Any, ids_of: Any, hashed: Any) -> Any:
    """Make ``longer``, which copies the ids of a longer pre-token from its cache entry, or computes and caches them."""
    load = simd.load_i64
    known, keep = _memory(simd)

    @simd.jit
    def longer(record, scratch, place, length, part, out):
        h = hashed(place, length) ^ part
        entry = load(record + at.long_memory) + (h & load(record + at.long_mask)) * LONG_ENTRY
        id_count = known(entry, h, place, length, out)
        if id_count < 0:
            id_count = ids_of(record, scratch, place, length, part, out)
            if TEXT + length + 4 * id_count <= LONG_ENTRY:
                keep(entry, h, place, length, out, id_count)
        return id_count

    return longer


def pieces_body(simd: Any, at: Any, ids_of: Any) -> Any:
    """Make the body of a kernel whose record begins with the fields of :class:`PiecesRecord`.

    ``ids_of(record, scratch, place, length, part, out)`` writes the ids of one pre-token to ``out`` and returns their
    number; ``part`` is 1 for a part of a pre-token that was cut.
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
        scratch, firsts, id_count, done = hashes + BLOCK * 8, load(record + at.firsts), 0, 0
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
                    store_i64(counts + done * 8, id_count)
                    done += 1
                place, where = text + begin, out + id_count * 4
                if firsts != 0:
                    store_i32(firsts + i * 4, id_count)
                if end < 0:
                    store_i32(where, -1 - end)
                    id_count += 1
                    continue
                length, part = (end & ~PART) - begin, end >> 30
                if length > LONG_BYTES:
                    id_count += ids_of(record, scratch, place, length, part, where)
                elif length > KEPT_BYTES:
                    id_count += longer(record, scratch, place, length, part, where)
                elif length > 0:
                    h = load(hashes + (i - first) * 8)
                    id_count += short(record, memory + (h >> 1 & mask) * ENTRY, h, scratch, place, length, part, where)
        while done < texts:
            store_i64(counts + done * 8, id_count)
            done += 1

    return body
