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
from pellucid.kernels.text.merge_loop import NEVER as NEVER  # for those who fill tables of pairs
from pellucid.kernels.text.merge_loop import SHORT, merging
from pellucid.kernels.text.pieces import BLOCK, PiecesRecord, hashing, over
from pellucid.kernels.text.split import decoding
from pellucid.kernels.text.words import EMPTY, finding, probing

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


def byte_symbols(simd: Any) -> Any:
    """start: the symbols of a piece's bytes, and what each becomes with the next. Returns the number of symbols."""
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i32, store_i64 = simd.store_i32, simd.store_i64

    @simd.jit
    def start(record, place, length, ids, values):
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

    return start


def character_symbols(simd: Any, value_of: Any) -> Any:
    """start: as in :func:`byte_symbols`, for a piece's characters; an unknown one is its bytes or the unknown id."""
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i32, store_i64 = simd.store_i32, simd.store_i64
    length_of, code_point = decoding(simd)

    @simd.jit
    def start(record, place, length, ids, values):
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

    return start


def encoding(simd: Any, symbols: str) -> Any:
    """merged: the ids that a piece's symbols merge to, to ``out``. Returns how many they are."""
    at, load, value_of = MergeRecord.at, simd.load_i64, pairing(simd)
    start = byte_symbols(simd) if symbols == "bytes" else character_symbols(simd, value_of)
    merge = merging(simd, value_of)

    @simd.jit
    def merged(record, scratch, place, length, out):
        values = scratch + (length + 16) // 16 * 64
        count = start(record, place, length, scratch, values)
        pairs, mask = load(record + at.pairs), load(record + at.pairs_mask)
        return merge(scratch, count, values, values + (count + 8) * 8, pairs, mask, out)

    return merged


@kernel("text.merge", MergeRecord)
def build(simd: Any, symbols: str, whole: bool) -> Any:
    """``symbols``: "bytes" or "characters". ``whole``: a piece that the vocabulary has is that one, whatever its
    symbols merge to."""
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32 = simd.store_u8, simd.store_i32
    hashed, _ = hashing(simd)
    word_of, merged = finding(simd), encoding(simd, symbols)

    @simd.jit
    def ids_of(record, scratch, place, length, part, out):
        """The ids of a piece, which may be a word of the vocabulary."""
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
