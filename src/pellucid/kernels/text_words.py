"""Pieces of a vocabulary by their bytes: a table to look whole ones up, and a tree of all of their beginnings.

Both are filled once, straight from Python. The table is open addressing with linear steps, a power of two of slots, of
which some are free. The tree is one such table too: of a node and a byte, the node behind; slots are single words,
so that a step is one look into memory.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import Address, Record
from pellucid.kernels.text_pieces import hashing

EMPTY = -1  # a slot that is not taken
MOST_NODES = 1 << 24


class Words(Record):
    """Fill a table of pieces, all of whose slots are EMPTY."""

    text: Address  # the pieces' bytes, one behind the other, and PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; a piece of no bytes is left out
    slots: Address  # (size, 2) int64: hash, id
    mask: int  # size - 1


class Tree(Record):
    """Grow a tree of pieces, all of whose slots are EMPTY, and whose ids are -1."""

    text: Address  # the pieces' bytes, one behind the other
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; a piece of no bytes is left out
    slots: Address  # (size,) int64: node << 32 | byte << 24 | node behind
    mask: int  # size - 1
    ids: Address  # (nodes,) int32: the piece that ends at a node, or -1; the root is node 0
    nodes: Address  # int64: how many there are


class Splits(Record):
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
    """behind: the node of a tree behind a node and a byte, or -1."""
    load, slot_of = simd.load_i64, keying(simd)

    @simd.jit
    def behind(slots, mask, node, byte):
        key = node << 8 | byte
        slot = slot_of(key, mask)
        while True:
            found = load(slots + slot * 8)
            if found >> 24 == key:
                return found & 0xFFFFFF
            if found == EMPTY:
                return -1
            slot = (slot + 1) & mask

    return behind


def walking(simd: Any) -> Any:
    """walk: of the pieces of a tree that text begins with, the longest, or the shortest; and where it ends.

    The piece is -1, and ends where it began, if there is none. ``here`` and ``end`` are addresses.
    """
    load_u8, load_i32 = simd.load_u8, simd.load_i32
    behind = stepping(simd)

    @simd.jit
    def walk(slots, mask, ids, here, end, longest):
        node, found, stop = 0, -1, here
        while here < end:
            node = behind(slots, mask, node, load_u8(here))
            if node < 0:
                break
            here += 1
            if load_i32(ids + node * 4) >= 0:
                found, stop = load_i32(ids + node * 4), here
                if not longest:
                    break
        return found, stop

    return walk


@kernel("text.words", Words)
def build_words(simd: Any) -> Any:
    at, load, load_i32, store_i64 = Words.at, simd.load_i64, simd.load_i32, simd.store_i64
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


@kernel("text.tree", Tree)
def build_tree(simd: Any) -> Any:
    at, load, load_i32, load_u8 = Tree.at, simd.load_i64, simd.load_i32, simd.load_u8
    store_i32, store_i64 = simd.store_i32, simd.store_i64
    behind, slot_of = stepping(simd), keying(simd)

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        text, places = load(record + at.text), load(record + at.places)
        slots, mask, ids = load(record + at.slots), load(record + at.mask), load(record + at.ids)
        nodes = 1
        for word in range(load(record + at.count)):
            begin, end = load_i32(places + word * 4), load_i32(places + word * 4 + 4)
            if begin == end:
                continue
            node = 0
            for i in range(begin, end):
                byte = load_u8(text + i)
                following = behind(slots, mask, node, byte)
                if following < 0:
                    following, nodes = nodes, nodes + 1
                    key = node << 8 | byte
                    slot = slot_of(key, mask)
                    while load(slots + slot * 8) != EMPTY:
                        slot = (slot + 1) & mask
                    store_i64(slots + slot * 8, key << 24 | following)
                node = following
            store_i32(ids + node * 4, word)
        store_i64(load(record + at.nodes), nodes)

    return body


@kernel("text.splits", Splits)
def build_splits(simd: Any) -> Any:
    at, load, load_i32, store_i32, store_i64 = (
        Splits.at, simd.load_i64, simd.load_i32, simd.store_i32, simd.store_i64,
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
