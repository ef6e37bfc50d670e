"""Indexes of a vocabulary's pieces by their bytes: a hash table of whole pieces, and a prefix tree (trie) of pieces.

Both are filled once, directly from Python. The hash table uses open addressing with linear probing; its size is a power
of two and some slots are free. The tree is a double array (Aoe 1989, "An Efficient Digital Search Algorithm by Using a
Double-Array Structure"), with exclusive or instead of a sum, as in Yata's darts-clone. Each node has a base, and its
child for a byte is in slot base ^ byte. A slot holds the bases of the child and of its parent. If the parent's base is
another base, there is no child for the byte. A step is one memory access that depends only on the step before it.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.pieces import hashing

EMPTY = -1  # a free slot
MAX_NODES = 1 << 24
ROOT = 1  # the base of the root; nodes without children have base 0
PLACES = 256  # slots that the children of a base may take; also the size of a block
TRIES = 512  # slots to try for a node's children before the children get a new block


class WordsRecord(Record):
    """Fills a hash table of pieces. All slots are EMPTY at first."""

    text: Address  # the bytes of all pieces, concatenated, then PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; empty pieces are skipped
    slots: Address  # (size, 2) int64: hash, id
    mask: int  # size - 1


class TreeRecord(Record):
    """Builds the tree of pieces. Nodes are numbered in the order of their creation; the root is node 0."""

    text: Address  # the bytes of all pieces, concatenated
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n; empty pieces are skipped
    slots: Address  # (size,) int64, EMPTY at first: node << 32 | byte << 24 | child; scratch
    mask: int  # size - 1
    first: Address  # (nodes,) int32, -1 at first: a node's last created child, or -1
    next: Address  # (nodes,) int32: the sibling created before the node, or -1
    bytes: Address  # (nodes,) uint8: the byte that leads to the node
    ids: Address  # (nodes,) int32, -1 at first: the piece that ends at a node, or -1
    nodes: Address  # int64: the number of nodes


class LayoutRecord(Record):
    """Lays a tree out as a double array."""

    nodes: int
    first: Address
    next: Address
    bytes: Address
    ids: Address
    bases: Address  # (nodes,) int32, scratch
    used: Address  # (size,) uint8, 0 at first: 1 if a base is in use
    slots: Address  # (size,) int64, EMPTY at first: base of the parent << 32 | base of the children
    out: Address  # (size,) int32, -1 at first: the piece that ends at a slot's node, or -1
    size: int  # a multiple of PLACES
    made: Address  # int64: slots in use, up to the end of a block; -1 if size is too small


class SplitsRecord(Record):
    """Finds the pieces that are the concatenation of two other pieces."""

    text: Address  # the bytes of all pieces, concatenated, then PADDING
    places: Address  # (n + 1,) int32: where each piece begins
    count: int  # n
    slots: Address  # the pieces' hash table (WordsRecord)
    mask: int
    lefts: Address  # (m,) int32, room for one number per byte
    rights: Address  # (m,) int32
    merged: Address  # (m,) int32
    made: Address  # int64: m


def finding(simd: Any) -> Any:
    """Make ``word_of``, which returns the id of a piece of the vocabulary, from its bytes and their hash, or -1."""
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
    """Make ``slot_of``, which returns the first slot of a table to probe for an integer key."""
    mul64 = simd.mul64

    @simd.jit
    def slot_of(key, mask):
        h = mul64(key, -7046029254386353131)
        return (h ^ (h >> 32) & 0xFFFFFFFF) & mask

    return slot_of


def probing(simd: Any, width: int) -> Any:
    """Make ``slot_for``, which returns the address of a key's slot, or of the free slot for the key.

    ``width`` is the number of int64 words of a slot. The first word is the key.
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
    """Make ``behind``, which returns the slot of a base's child for a byte, and the base of this child's children.

    If there is no such child, the slot is -1.
    """
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
    """Make ``walk``, which returns the longest or shortest piece of a tree at the start of a text, and the piece's end.

    Without a match the piece is -1 and ends at ``here``. ``here`` and ``end`` are addresses of text.
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
        """True if the slots of a child and of its older siblings are free for this base."""
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
        slot_count = load(record + at.made)
        low, free = 0, PLACES  # the first slot to try; the end of the slots in use
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
                        low = position  # few slots before this position are free
                    if free == size:
                        store_i64(slot_count, -1)
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
        # Add the base of each child's own children to the child's slot. These bases were not known before.
        for node in range(load(record + at.nodes)):
            base, child = load_i32(bases + node * 4), load_i32(first + node * 4)
            while child >= 0:
                position = base ^ load_u8(bytes_ + child)
                store_i64(slots + position * 8, load(slots + position * 8) | load_i32(bases + child * 4))
                child = load_i32(next_ + child * 4)
        store_i64(slot_count, free)

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
        slots, mask, split_count = load(record + at.slots), load(record + at.mask), 0
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
                    store_i32(lefts + split_count * 4, left)
                    store_i32(rights + split_count * 4, right)
                    store_i32(merged + split_count * 4, word)
                    split_count += 1
        store_i64(load(record + at.made), split_count)

    return body
