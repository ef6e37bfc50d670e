"""Pieces of a vocabulary by their bytes: a table to look whole ones up, and a tree of all of their beginnings.

Both are filled once, straight from Python. The table is open addressing with linear steps, a power of two of slots, of
which some are free. The tree is a double array (Aoe 1989, "An Efficient Digital Search Algorithm by Using a
Double-Array Structure"), with exclusive or instead of a sum, as in Yata's darts-clone: the children of a node lie at
its base ^ byte, and each says whose child it is. A step is one look into memory, and waits only for the step before.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import hashing

EMPTY = -1  # a slot that is not taken
MOST_NODES = 1 << 24
ROOT = 1  # the base of the root; 0 is that of nodes without children
PLACES = 256  # that a base's children may have; as many slots are a block
TRIES = 512  # slots to look at for a node's children before they get a block that is free


class WordsRecord(Record):
    """Fill a table of pieces, all of whose slots are EMPTY."""

    text: Address  # the pieces' bytes, one behind the other, and PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; a piece of no bytes is left out
    slots: Address  # (size, 2) int64: hash, id
    mask: int  # size - 1


class TreeRecord(Record):
    """Grow a tree of pieces: its nodes in the order in which they are met, the root is node 0."""

    text: Address  # the pieces' bytes, one behind the other
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; a piece of no bytes is left out
    slots: Address  # (size,) int64, EMPTY: node << 32 | byte << 24 | node behind; needed only here
    mask: int  # size - 1
    first: Address  # (nodes,) int32: a node's youngest child, or -1, which it is at first
    next: Address  # (nodes,) int32: the child before, or -1
    bytes: Address  # (nodes,) uint8: what leads to the node
    ids: Address  # (nodes,) int32: the piece that ends at a node, or -1, which it is at first
    nodes: Address  # int64: how many there are


class LayoutRecord(Record):
    """Lay a tree out as a double array."""

    nodes: int
    first: Address
    next: Address
    bytes: Address
    ids: Address
    bases: Address  # (nodes,) int32, to work with
    used: Address  # (size,) uint8: whether a base is one; 0 at first
    slots: Address  # (size,) int64, EMPTY: the base of the parent << 32 | the base of the children
    out: Address  # (size,) int32: the piece that ends at a slot's node, or -1, which it is at first
    size: int  # a multiple of PLACES
    made: Address  # int64: slots that may be taken, or -1 if there are too few


class SplitsRecord(Record):
    """Find the pieces that are two others, one behind the other."""

    text: Address  # the pieces' bytes, one behind the other, and PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n
    slots: Address  # a table of them
    mask: int
    lefts: Address  # (m,) int32, room for as many as there are bytes
    rights: Address  # (m,) int32
    merged: Address  # (m,) int32
    made: Address  # int64: m


def finding(simd: Any) -> Any:
    """word_of: the id of a piece of the vocabulary, by its bytes and their hash, or -1."""
    load, load_i32 = simd.load_i64, simd.load_i32
    _, same = hashing(simd)

    @simd.jit
    def word_of(place, length, h, words, mask, text, places):
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

    return word_of


def keying(simd: Any) -> Any:
    """slot_of: where in a table a key that is a number is looked for first."""
    times = simd.times

    @simd.jit
    def slot_of(key, mask):
        h = times(key, -7046029254386353131)
        return (h ^ (h >> 32) & 0xFFFFFFFF) & mask

    return slot_of


def probing(simd: Any, width: int) -> Any:
    """slot_for: the address of the slot that begins with a key, or of the free one where it would be.

    ``width``: int64 of a slot.
    """
    load, slot_of = simd.load_i64, keying(simd)

    @simd.jit
    def slot_for(slots, mask, key):
        slot = slot_of(key, mask)
        while load(slots + slot * (8 * width)) != EMPTY and load(slots + slot * (8 * width)) != key:
            slot = (slot + 1) & mask
        return slots + slot * (8 * width)

    return slot_for


def stepping(simd: Any) -> Any:
    """behind: where the child of a base by a byte lies, or -1; and the base of its own children."""
    load = simd.load_i64

    @simd.jit
    def behind(slots, base, byte):
        position = base ^ byte
        found = load(slots + position * 8)
        if found >> 32 != base:
            return -1, 0
        return position, found & 0xFFFFFFFF

    return behind


def walking(simd: Any) -> Any:
    """walk: of the pieces of a tree that text begins with, the longest, or the shortest; and where it ends.

    The piece is -1, and ends where it began, if there is none. ``here`` and ``end`` are addresses.
    """
    load_u8, load_i32 = simd.load_u8, simd.load_i32
    behind = stepping(simd)

    @simd.jit
    def walk(slots, ids, here, end, longest):
        base, found, stop = ROOT, -1, here
        while here < end:
            node, base = behind(slots, base, load_u8(here))
            if node < 0:
                break
            here += 1
            if load_i32(ids + node * 4) >= 0:
                found, stop = load_i32(ids + node * 4), here
                if not longest:
                    break
        return found, stop

    return walk


@kernel("text.words", WordsRecord)
def build_words(simd: Any) -> Any:
    at, load, load_i32, store_i64 = WordsRecord.at, simd.load_i64, simd.load_i32, simd.store_i64
    hashed, _ = hashing(simd)

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


@kernel("text.tree", TreeRecord)
def build_tree(simd: Any) -> Any:
    at, load, load_i32, load_u8 = TreeRecord.at, simd.load_i64, simd.load_i32, simd.load_u8
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64
    slot_of = keying(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, places = load(record + at.text), load(record + at.places)
        slots, mask, ids = load(record + at.slots), load(record + at.mask), load(record + at.ids)
        first, next_ = load(record + at.first), load(record + at.next)
        bytes_, nodes = load(record + at.bytes), 1
        for word in range(load(record + at.count)):
            begin, end = load_i32(places + word * 4), load_i32(places + word * 4 + 4)
            if begin == end:
                continue
            node = 0
            for i in range(begin, end):
                byte = load_u8(text + i)
                key = node << 8 | byte
                slot = slot_of(key, mask)
                while load(slots + slot * 8) != EMPTY and load(slots + slot * 8) >> 24 != key:
                    slot = (slot + 1) & mask
                if load(slots + slot * 8) == EMPTY:
                    store_i64(slots + slot * 8, key << 24 | nodes)
                    store_u8(bytes_ + nodes, byte)
                    store_i32(next_ + nodes * 4, load_i32(first + node * 4))
                    store_i32(first + node * 4, nodes)
                    node, nodes = nodes, nodes + 1
                else:
                    node = load(slots + slot * 8) & 0xFFFFFF
            store_i32(ids + node * 4, word)
        store_i64(load(record + at.nodes), nodes)

    return body


@kernel("text.layout", LayoutRecord)
def build_layout(simd: Any) -> Any:
    at, load, load_i32, load_u8 = LayoutRecord.at, simd.load_i64, simd.load_i32, simd.load_u8
    store_u8, store_i32, store_i64 = simd.store_u8, simd.store_i32, simd.store_i64

    @simd.jit
    def fits(slots, next_, bytes_, child, base):
        """Whether all children from one on find their places free."""
        while child >= 0:
            if load(slots + (base ^ load_u8(bytes_ + child)) * 8) != EMPTY:
                return False
            child = load_i32(next_ + child * 4)
        return True

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        slots, used, size = load(record + at.slots), load(record + at.used), load(record + at.size)
        first, next_, bytes_ = load(record + at.first), load(record + at.next), load(record + at.bytes)
        ids, bases, out = load(record + at.ids), load(record + at.bases), load(record + at.out)
        made = load(record + at.made)
        low, free = 0, PLACES  # where the search begins; and from where on nothing is taken
        store_u8(used, 1)
        for node in range(load(record + at.nodes)):
            child = load_i32(first + node * 4)
            if child < 0:
                store_i32(bases + node * 4, 0)
                continue
            byte, base, position, tries = load_u8(bytes_ + child), ROOT, low, 0
            while node > 0:
                if position >= free or tries == TRIES:
                    if tries == TRIES:
                        low = position  # hardly anything is free before it
                    if free == size:
                        store_i64(made, -1)
                        return
                    base, free = free, free + PLACES
                    break
                base = position ^ byte
                if (
                    load(slots + position * 8) == EMPTY
                    and load_u8(used + base) == 0
                    and fits(slots, next_, bytes_, load_i32(next_ + child * 4), base)
                ):
                    break
                position, tries = position + 1, tries + 1
            store_u8(used + base, 1)
            store_i32(bases + node * 4, base)
            while child >= 0:
                position = base ^ load_u8(bytes_ + child)
                store_i64(slots + position * 8, base << 32)
                store_i32(out + position * 4, load_i32(ids + child * 4))
                child = load_i32(next_ + child * 4)
            while low < free and load(slots + low * 8) != EMPTY:
                low += 1
        for node in range(load(record + at.nodes)):  # what was not known yet: the children's own bases
            base, child = load_i32(bases + node * 4), load_i32(first + node * 4)
            while child >= 0:
                position = base ^ load_u8(bytes_ + child)
                store_i64(slots + position * 8, load(slots + position * 8) | load_i32(bases + child * 4))
                child = load_i32(next_ + child * 4)
        store_i64(made, free)

    return body


@kernel("text.splits", SplitsRecord)
def build_splits(simd: Any) -> Any:
    at, load, load_i32, store_i32, store_i64 = (
        SplitsRecord.at, simd.load_i64, simd.load_i32, simd.store_i32, simd.store_i64,
    )  # fmt: skip
    hashed, _ = hashing(simd)
    word_of = finding(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, places = load(record + at.text), load(record + at.places)
        slots, mask, made = load(record + at.slots), load(record + at.mask), 0
        lefts, rights, merged = load(record + at.lefts), load(record + at.rights), load(record + at.merged)
        for word in range(load(record + at.count)):
            begin, end = load_i32(places + word * 4), load_i32(places + word * 4 + 4)
            for cut in range(begin + 1, end):
                h = hashed(text + begin, cut - begin)
                left = word_of(text + begin, cut - begin, h, slots, mask, text, places)
                if left < 0:
                    continue
                h = hashed(text + cut, end - cut)
                right = word_of(text + cut, end - cut, h, slots, mask, text, places)
                if right >= 0:
                    store_i32(lefts + made * 4, left)
                    store_i32(rights + made * 4, right)
                    store_i32(merged + made * 4, word)
                    made += 1
        store_i64(load(record + at.made), made)

    return body
