"""Byte-pair encoding of pieces of texts (``text/pieces.py``).

A piece is its bytes' ids, or its characters', of which always the two neighbours merge that come first in the order of
merges, the leftmost of equals (Sennrich et al. 2016, "Neural machine translation of rare words with subword units"),
until none can. One that the vocabulary has as a whole is looked up, once it is known that it does merge to it.

Pairs are in a table of open addressing with linear steps, a power of two of slots, of which some are free. A
pair's value is rank << 32 | id; NEVER stands for none. For two bytes there is a table by their values.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import BLOCK, PiecesRecord, hashing, over
from pellucid.kernels.text.split import decoding
from pellucid.kernels.text.words import EMPTY, finding, probing

NEVER = (1 << 63) - 1
SHORT = 64  # symbols up to which looking through all pairs is faster than a heap
UNKNOWN, MERGES, DIFFERS = 0, 1, 2  # whether a piece of the vocabulary is what its symbols merge to


class PairsRecord(Record):
    """Fill a table of pairs, all of whose slots are EMPTY."""

    lefts: Address  # (n,) int32
    rights: Address  # (n,) int32
    merged: Address  # (n,) int32; below 0: not to be merged
    ranks: Address  # (n,) int32: the pair of the lowest merges first, of equal ones the leftmost
    count: int  # n
    slots: Address  # (size, 2) int64: left << 32 | right, value
    mask: int  # size - 1


class MergeRecord(PiecesRecord):
    bytes: Address  # (256,) int32: each byte's id, below 0: none
    characters: Address  # (0x110000,) int32: each character's id, below 0: none; for symbols "characters"
    unknown: int  # the id of a character that has neither one nor bytes, below 0: none, it vanishes
    fuse: int  # 1: unknown neighbours are one symbol
    first: Address  # (256, 256) int64: what two bytes become; for symbols "bytes"
    pairs: Address  # a table of Pairs
    pairs_mask: int
    words: Address  # a table of Words
    words_mask: int
    word_text: Address  # what Words was filled with
    word_places: Address
    word_state: Address  # (V,) uint8: UNKNOWN, MERGES, DIFFERS


def scratch_bytes(longest: int) -> int:
    """What ``PiecesRecord.scratch`` must have for a longest piece of so many bytes."""
    return 8 * BLOCK + 48 * longest + 32 * SHORT + 64


def pairing(simd: Any) -> Any:
    """value_of: what two neighbours become."""
    load, slot_for = simd.load_i64, probing(simd, 2)

    @simd.jit
    def value_of(left, right, pairs, mask):
        place = slot_for(pairs, mask, left << 32 | right)
        return NEVER if load(place) == EMPTY else load(place + 8)

    return value_of


@kernel("text.pairs", PairsRecord)
def build_pairs(simd: Any) -> Any:
    at, load, load_i32, store_i64 = PairsRecord.at, simd.load_i64, simd.load_i32, simd.store_i64
    slot_for = probing(simd, 2)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        lefts, rights, merged = load(record + at.lefts), load(record + at.rights), load(record + at.merged)
        slots, mask, ranks = load(record + at.slots), load(record + at.mask), load(record + at.ranks)
        for i in range(load(record + at.count)):
            pair = load_i32(lefts + i * 4) << 32 | load_i32(rights + i * 4)
            result, place = load_i32(merged + i * 4), slot_for(slots, mask, pair)
            if load(place) == EMPTY:  # of a pair that is listed twice the first counts
                store_i64(place, pair)
                store_i64(place + 8, NEVER if result < 0 else load_i32(ranks + i * 4) << 32 | result)

    return body


@kernel("text.merge", MergeRecord)
def build(simd: Any, symbols: str, whole: bool) -> Any:
    """``symbols``: "bytes" or "characters". ``whole``: a piece that the vocabulary has is that one, whatever its
    symbols merge to."""
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    hashed, _ = hashing(simd)
    word_of, value_of = finding(simd), pairing(simd)
    merge = _merging(simd, value_of)
    length_of, code_point = decoding(simd)

    @simd.jit
    def of_bytes(record, place, length, ids, values):
        """A piece's symbols and what each becomes with the next. Returns how many there are."""
        alphabet, first = load(record + at.bytes), load(record + at.first)
        count, before = 0, 0
        for i in range(length):
            byte = load_u8(place + i)
            symbol = load_i32(alphabet + byte * 4)
            if symbol >= 0:
                if count:
                    store_i64(values + count * 8 - 8, load(first + (before << 8 | byte) * 8))
                store_i32(ids + count * 4, symbol)
                before = byte
                count += 1
        return count

    @simd.jit
    def of_characters(record, place, length, ids, values):
        alphabet, characters = load(record + at.bytes), load(record + at.characters)
        pairs, mask = load(record + at.pairs), load(record + at.pairs_mask)
        unknown, fuse = load(record + at.unknown), load(record + at.fuse)
        count, done, open_ = 0, 0, False  # whether the last symbol is an unknown one
        while done < length:
            size = length_of(load_u8(place + done))
            symbol, spelled = load_i32(characters + code_point(place + done) * 4), False
            strange = symbol < 0
            if strange:
                spelled = True
                for i in range(size):
                    spelled = spelled and load_i32(alphabet + load_u8(place + done + i) * 4) >= 0
                symbol = unknown
            if spelled:
                for i in range(size):
                    store_i32(ids + (count + i) * 4, load_i32(alphabet + load_u8(place + done + i) * 4))
                count += size
                open_ = False
            elif symbol >= 0 and not (strange and open_ and fuse):
                store_i32(ids + count * 4, symbol)
                count += 1
                open_ = strange
            done += size
        for i in range(count - 1):
            store_i64(values + i * 8, value_of(load_i32(ids + i * 4), load_i32(ids + i * 4 + 4), pairs, mask))
        return count

    start = of_bytes if symbols == "bytes" else of_characters

    @simd.jit
    def merged(record, scratch, place, length, out):
        """A piece's ids, to ``out``. Returns how many."""
        values = scratch + (length + 16) // 16 * 64
        count = start(record, place, length, scratch, values)
        pairs, mask = load(record + at.pairs), load(record + at.pairs_mask)
        return merge(scratch, count, values, values + (count + 8) * 8, pairs, mask, out)

    @simd.jit
    def ids_of(record, scratch, place, length, part, out):
        """The same, for a piece that may be a word of the vocabulary."""
        h = hashed(place, length)
        word = word_of(
            place, length, h, load(record + at.words), load(record + at.words_mask),
            load(record + at.word_text), load(record + at.word_places),
        )  # fmt: skip
        if word < 0:
            return merged(record, scratch, place, length, out)
        known = load(record + at.word_state) + word
        state = load_u8(known)
        if (whole and part == 0) or state == MERGES:
            store_i32(out, word)
            return 1
        made = merged(record, scratch, place, length, out)
        if state == UNKNOWN:
            same = made == 1 and load_i32(out) == word
            store_u8(known, MERGES if same else DIFFERS)
        return made

    return over(simd, at, ids_of)


def _merging(simd: Any, value_of: Any) -> Any:
    """merge: symbols to ids, when it is known what each becomes with the next."""
    load, load_i32, load_u8 = simd.load_i64, simd.load_i32, simd.load_u8
    store_i32, store_i64, store_u8 = simd.store_i32, simd.store_i64, simd.store_u8

    @simd.jit
    def few(ids, count, values, links, pairs, mask, out):
        """Looking through all values, over a list linked both ways, in bytes; values of what is gone are NEVER."""
        following, previous = links, links + SHORT + 8
        for i in range(count):
            store_u8(following + i, i + 1)
            store_u8(previous + i + 1, i)
        store_i64(values + (count - 1) * 8, NEVER)
        while True:
            best = NEVER
            for i in range(count):
                best = min(best, load(values + i * 8))
            if best == NEVER:
                break
            here = 0
            while load(values + here * 8) != best:
                here += 1
            gone = load_u8(following + here)
            after = load_u8(following + gone)
            store_i32(ids + here * 4, best & 0xFFFFFFFF)
            store_i32(ids + gone * 4, -1)
            store_u8(following + here, after)
            store_i64(values + gone * 8, NEVER)
            value = NEVER
            if after < count:
                store_u8(previous + after, here)
                value = value_of(best & 0xFFFFFFFF, load_i32(ids + after * 4), pairs, mask)
            store_i64(values + here * 8, value)
            if here > 0:
                before = load_u8(previous + here)
                value = value_of(load_i32(ids + before * 4), best & 0xFFFFFFFF, pairs, mask)
                store_i64(values + before * 8, value)
        return gather(ids, count, out)

    @simd.jit
    def gather(ids, count, out):
        """The symbols that are left."""
        made = 0
        for i in range(count):
            symbol = load_i32(ids + i * 4)
            if symbol >= 0:
                store_i32(out + made * 4, symbol)
                made += 1
        return made

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
    def many(ids, count, values, links, pairs, mask, out):
        """The same with a heap.

        An entry of the heap is stale if its symbol's value is another by now. A symbol has one live entry at most, and
        every merge leaves two new ones for the one that it took: the heap holds 3 * count entries at most, but entries
        that are stale are dropped before it grows over 1.5 * count.
        """
        following, previous, heap = links, links + count * 4, links + (count + 1) // 2 * 16
        store_i64(values + (count - 1) * 8, NEVER)
        size = 0
        for i in range(count):
            store_i32(following + i * 4, i + 1)
            store_i32(previous + i * 4, i - 1)
            value = load(values + i * 8)
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
        return gather(ids, count, out)

    @simd.jit
    def merge(ids, count, values, links, pairs, mask, out):
        if count == 0:
            return 0
        if count <= SHORT:
            return few(ids, count, values, links, pairs, mask, out)
        return many(ids, count, values, links, pairs, mask, out)

    return merge
