"""Byte-pair encoding of pieces of a text. Called straight from Python, on UTF-8.

A piece is its bytes' ids, of which always the two neighbours merge that come first in the order of merges, the
leftmost of equals (Sennrich et al. 2016, "Neural machine translation of rare words with subword units"), until none
can. Most pieces are met again and again: one that the vocabulary has as a whole is looked up, once it is known that
its bytes do merge to it; the ids of others are kept in a memory of fixed size, of which each thread has one to
itself.

Tables are open addressing with linear steps, a power of two of slots, at most half of them taken. A pair's value is
rank << 32 | id; NEVER stands for none.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import Address, Record

NEVER = (1 << 63) - 1
EMPTY = -1  # a slot's key that is not taken
ENTRY = 64  # bytes of an entry of the memory: hash, length and count, five ids, 32 bytes of text
KEPT_IDS, KEPT_BYTES = 5, 32
PADDING = 32  # bytes behind the text that may be read
SHORT = 64  # symbols up to which looking through all pairs is faster than a heap
UNKNOWN, MERGES, DIFFERS = 0, 1, 2  # whether a piece of the vocabulary is what its bytes merge to


class Pairs(Record):
    """Fill a table of pairs, all of whose slots are EMPTY."""

    lefts: Address  # (n,) int32
    rights: Address  # (n,) int32
    merged: Address  # (n,) int32; below 0: not to be merged
    ranks: Address  # (n,) int32: the pair of the lowest merges first, of equal ones the leftmost
    count: int  # n
    slots: Address  # (size, 2) int64: left << 32 | right, value
    mask: int  # size - 1


class Words(Record):
    """Fill a table of pieces, all of whose slots are EMPTY."""

    text: Address  # the pieces' bytes, one behind the other, and PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; a piece of no bytes is left out
    slots: Address  # (size, 2) int64: hash, id
    mask: int  # size - 1


class Merge(Record):
    text: Address  # UTF-8, and PADDING
    pieces: Address  # (n, 2) int32: a piece's first byte, and the one behind its last
    count: int  # n
    bytes: Address  # (256,) int32: each byte's id, below 0: none, the byte vanishes
    pairs: Address  # a table of Pairs
    pairs_mask: int
    words: Address  # a table of Words
    words_mask: int
    word_text: Address  # what Words was filled with
    word_places: Address
    word_state: Address  # (V,) uint8: UNKNOWN, MERGES, DIFFERS
    memory: Address  # entries, zero at first
    memory_mask: int
    scratch: Address  # ``scratch_bytes``
    out: Address  # (m,) int32, room for as many as there are bytes
    made: Address  # int64: m


def scratch_bytes(longest: int) -> int:
    """What ``Merge.scratch`` must have for a longest piece of so many bytes."""
    return 48 * longest + 16 * SHORT + 64


def _helpers(simd: Any) -> Any:
    load, load_i32 = simd.load_i64, simd.load_i32

    @simd.jit
    def hashed(place, length):
        """Of so many bytes, eight at a time; what lies behind them does not count."""
        h = length * -7046029254386353131
        done = 0
        while done + 8 <= length:
            h = (h ^ load(place + done)) * -4417276706812531889
            h ^= (h >> 29) & 0x7FFFFFFFF
            done += 8
        if done < length:
            rest = load(place + done) & ((1 << (8 * (length - done))) - 1)
            h = (h ^ rest) * -4417276706812531889
            h ^= (h >> 29) & 0x7FFFFFFFF
        h *= -4417276706812531889
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

    @simd.jit
    def slot_of(pair, mask):
        h = pair * -7046029254386353131
        return (h ^ (h >> 32) & 0xFFFFFFFF) & mask

    @simd.jit
    def value_of(left, right, pairs, mask):
        """What two neighbours become."""
        pair = left << 32 | right
        slot = slot_of(pair, mask)
        while True:
            found = load(pairs + slot * 16)
            if found == pair:
                return load(pairs + slot * 16 + 8)
            if found == EMPTY:
                return NEVER
            slot = (slot + 1) & mask

    @simd.jit
    def word_of(place, length, h, words, mask, text, places):
        """The id of a piece of the vocabulary, or -1."""
        slot = h & mask
        while True:
            found = load(words + slot * 16)
            if found == EMPTY:
                return -1
            if found == h:
                word = load(words + slot * 16 + 8)
                begin = load_i32(places + word * 4)
                if load_i32(places + word * 4 + 4) - begin == length and same(place, text + begin, length):
                    return word
            slot = (slot + 1) & mask

    return hashed, same, slot_of, value_of, word_of


@kernel("text.pairs", Pairs)
def build_pairs(simd: Any) -> Any:
    at, load, load_i32, store_i64 = Pairs.at, simd.load_i64, simd.load_i32, simd.store_i64
    _, _, slot_of, _, _ = _helpers(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        lefts, rights, merged = load(record + at.lefts), load(record + at.rights), load(record + at.merged)
        slots, mask, ranks = load(record + at.slots), load(record + at.mask), load(record + at.ranks)
        for i in range(load(record + at.count)):
            pair = load_i32(lefts + i * 4) << 32 | load_i32(rights + i * 4)
            result, slot = load_i32(merged + i * 4), slot_of(pair, mask)
            while load(slots + slot * 16) != EMPTY and load(slots + slot * 16) != pair:
                slot = (slot + 1) & mask
            if (
                result >= 0 and load(slots + slot * 16) == EMPTY
            ):  # of a pair that is listed twice the first counts
                store_i64(slots + slot * 16, pair)
                store_i64(slots + slot * 16 + 8, load_i32(ranks + i * 4) << 32 | result)

    return body


@kernel("text.words", Words)
def build_words(simd: Any) -> Any:
    at, load, load_i32, store_i64 = Words.at, simd.load_i64, simd.load_i32, simd.store_i64
    hashed, _, _, _, _ = _helpers(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, places = load(record + at.text), load(record + at.places)
        slots, mask = load(record + at.slots), load(record + at.mask)
        for word in range(load(record + at.count)):
            begin, end = load_i32(places + word * 4), load_i32(places + word * 4 + 4)
            if begin == end:
                continue
            h = hashed(text + begin, end - begin)
            slot = h & mask
            while load(slots + slot * 16) != EMPTY:
                slot = (slot + 1) & mask
            store_i64(slots + slot * 16, h)
            store_i64(slots + slot * 16 + 8, word)

    return body


@kernel("text.merge", Merge)
def build(simd: Any, whole: bool) -> Any:
    """``whole``: a piece that the vocabulary has is that one, whatever its bytes merge to."""
    at, load, load_u8, load_i32 = Merge.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    hashed, same, _, value_of, word_of = _helpers(simd)

    @simd.jit
    def few(ids, count, values, pairs, mask, out):
        """Merge symbols by looking through all of them; the ids that are left go to ``out``. Returns how many."""
        for i in range(count - 1):
            store_i64(values + i * 8, value_of(load_i32(ids + i * 4), load_i32(ids + i * 4 + 4), pairs, mask))
        while count > 1:
            best, where = NEVER, 0
            for i in range(count - 1):
                value = load(values + i * 8)
                if value < best:
                    best, where = value, i
            if best == NEVER:
                break
            store_i32(ids + where * 4, best & 0xFFFFFFFF)
            count -= 1
            for i in range(where + 1, count):
                store_i32(ids + i * 4, load_i32(ids + i * 4 + 4))
                store_i64(values + i * 8 - 8, load(values + i * 8))
            if where > 0:
                left, here = load_i32(ids + where * 4 - 4), load_i32(ids + where * 4)
                store_i64(values + where * 8 - 8, value_of(left, here, pairs, mask))
            if where < count - 1:
                here, right = load_i32(ids + where * 4), load_i32(ids + where * 4 + 4)
                store_i64(values + where * 8, value_of(here, right, pairs, mask))
        for i in range(count):
            store_i32(out + i * 4, load_i32(ids + i * 4))
        return count

    @simd.jit
    def sift_up(heap, at):
        """A heap of (value, position), the smallest first: put the last entry where it belongs."""
        value, position = load(heap + at * 16), load(heap + at * 16 + 8)
        while at > 0:
            parent = (at - 1) // 2
            other = load(heap + parent * 16)
            if other < value or (other == value and load(heap + parent * 16 + 8) < position):
                break
            store_i64(heap + at * 16, other)
            store_i64(heap + at * 16 + 8, load(heap + parent * 16 + 8))
            at = parent
        store_i64(heap + at * 16, value)
        store_i64(heap + at * 16 + 8, position)

    @simd.jit
    def before(heap, a, b):
        x, y = load(heap + a * 16), load(heap + b * 16)
        return x < y or (x == y and load(heap + a * 16 + 8) < load(heap + b * 16 + 8))

    @simd.jit
    def sift_down(heap, at, size):
        """The same for the entry at ``at``, whose children are in order."""
        value, position = load(heap + at * 16), load(heap + at * 16 + 8)
        while True:
            child = 2 * at + 1
            if child >= size:
                break
            if child + 1 < size and before(heap, child + 1, child):
                child += 1
            other = load(heap + child * 16)
            if other > value or (other == value and load(heap + child * 16 + 8) > position):
                break
            store_i64(heap + at * 16, other)
            store_i64(heap + at * 16 + 8, load(heap + child * 16 + 8))
            at = child
        store_i64(heap + at * 16, value)
        store_i64(heap + at * 16 + 8, position)

    @simd.jit
    def push(heap, size, value, position):
        """One more entry, unless there is no value. Returns how many there are now."""
        if value == NEVER:
            return size
        store_i64(heap + size * 16, value)
        store_i64(heap + size * 16 + 8, position)
        sift_up(heap, size)
        return size + 1

    @simd.jit
    def order(heap, size):
        """Make entries that lie in any order a heap."""
        for i in range(size // 2 - 1, -1, -1):
            sift_down(heap, i, size)

    @simd.jit
    def many(ids, count, scratch, pairs, mask, out):
        """The same with a heap, over a list linked both ways.

        An entry of the heap is stale if its symbol's value is another by now. A symbol has one live entry at most, and
        every merge leaves two new ones for the one that it took: the heap holds 3 * count entries at most, but entries
        that are stale are dropped before it grows over 1.5 * count.
        """
        following, previous = scratch, scratch + count * 4
        values, heap = scratch + count * 8, scratch + count * 16
        size = 0
        for i in range(count):
            store_i32(following + i * 4, i + 1)
            store_i32(previous + i * 4, i - 1)
            value = NEVER
            if i + 1 < count:
                value = value_of(load_i32(ids + i * 4), load_i32(ids + i * 4 + 4), pairs, mask)
            store_i64(values + i * 8, value)
            if value != NEVER:
                store_i64(heap + size * 16, value)
                store_i64(heap + size * 16 + 8, i)
                size += 1
        order(heap, size)
        room = count + count // 2
        while size > 0:
            value, here = load(heap), load(heap + 8)
            size -= 1
            if size > 0:
                store_i64(heap, load(heap + size * 16))
                store_i64(heap + 8, load(heap + size * 16 + 8))
                sift_down(heap, 0, size)
            if load(values + here * 8) != value:
                continue
            gone = load_i32(following + here * 4)
            after = load_i32(following + gone * 4)
            store_i32(ids + here * 4, value & 0xFFFFFFFF)
            store_i32(ids + gone * 4, -1)
            store_i64(values + gone * 8, NEVER)
            store_i32(following + here * 4, after)
            if size + 2 > room:
                kept = 0
                for i in range(size):
                    if load(values + load(heap + i * 16 + 8) * 8) == load(heap + i * 16):
                        store_i64(heap + kept * 16, load(heap + i * 16))
                        store_i64(heap + kept * 16 + 8, load(heap + i * 16 + 8))
                        kept += 1
                size = kept
                order(heap, size)
            if after < count:
                store_i32(previous + after * 4, here)
                value = value_of(load_i32(ids + here * 4), load_i32(ids + after * 4), pairs, mask)
                store_i64(values + here * 8, value)
                size = push(heap, size, value, here)
            else:
                store_i64(values + here * 8, NEVER)
            left = load_i32(previous + here * 4)
            if left >= 0:
                value = value_of(load_i32(ids + left * 4), load_i32(ids + here * 4), pairs, mask)
                store_i64(values + left * 8, value)
                size = push(heap, size, value, left)
        made = 0
        for i in range(count):
            symbol = load_i32(ids + i * 4)
            if symbol >= 0:
                store_i32(out + made * 4, symbol)
                made += 1
        return made

    @simd.jit
    def merged(record, place, length, out):
        """A piece's ids, to ``out``. Returns how many."""
        alphabet, ids = load(record + at.bytes), load(record + at.scratch)
        pairs, mask = load(record + at.pairs), load(record + at.pairs_mask)
        count = 0
        for i in range(length):
            symbol = load_i32(alphabet + load_u8(place + i) * 4)
            if symbol >= 0:
                store_i32(ids + count * 4, symbol)
                count += 1
        if count <= SHORT:
            return few(ids, count, ids + SHORT * 4, pairs, mask, out)
        return many(ids, count, ids + (count + 1) // 2 * 8, pairs, mask, out)

    @simd.jit
    def encode(record, place, length, out):
        """A piece's ids, from where they are known or made. Returns how many."""
        h = hashed(place, length)
        word = word_of(
            place, length, h, load(record + at.words), load(record + at.words_mask),
            load(record + at.word_text), load(record + at.word_places),
        )  # fmt: skip
        if word >= 0:
            known = load(record + at.word_state) + word
            state = load_u8(known)
            if state == UNKNOWN:
                made = merged(record, place, length, out)
                state = DIFFERS
                if made == 1 and load_i32(out) == word:
                    state = MERGES
                store_u8(known, state)
            if whole or state == MERGES:
                store_i32(out, word)
                return 1
        if length > KEPT_BYTES:
            return merged(record, place, length, out)
        entry = load(record + at.memory) + (h & load(record + at.memory_mask)) * ENTRY
        if load(entry) == h and load_u8(entry + 8) == length and same(place, entry + 32, length):
            made = load_u8(entry + 9)
            for i in range(KEPT_IDS):
                store_i32(out + i * 4, load_i32(entry + 12 + i * 4))
            return made
        made = merged(record, place, length, out)
        if made <= KEPT_IDS:
            store_i64(entry, h)
            store_u8(entry + 8, length)
            store_u8(entry + 9, made)
            for i in range(made):
                store_i32(entry + 12 + i * 4, load_i32(out + i * 4))
            for i in range(0, length, 8):
                store_i64(entry + 32 + i, load(place + i))
        return made

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, pieces, out = load(record + at.text), load(record + at.pieces), load(record + at.out)
        made = 0
        for i in range(load(record + at.count)):
            begin, end = load_i32(pieces + i * 8), load_i32(pieces + i * 8 + 4)
            if begin < end:
                made += encode(record, text + begin, end - begin, out + made * 4)
        store_i64(load(record + at.made), made)

    return body
