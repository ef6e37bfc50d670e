"""Byte-pair encoding of pre-tokens (``text/pieces.py``).

The symbols of a pre-token are the ids of its bytes or characters. The neighbouring pair with the lowest rank merges,
the leftmost if ranks are equal, until no pair merges (Sennrich et al. 2016, "Neural machine translation of rare words
with subword units"). If the whole pre-token is a piece of the vocabulary, the kernel records at its first occurrence
whether the symbols merge to this piece. If they do, later occurrences get the piece's id without merging.

The table of pairs uses open addressing with linear probing; its size is a power of two and some slots are free. A
pair's value is rank << 32 | id, or NEVER if it does not merge. A separate table, indexed by two bytes, has the values
of pairs of bytes.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.text.merge_loop import NEVER as NEVER  # re-exported for code that fills tables of pairs
from pellucid.kernels.text.merge_loop import SHORT, merging
from pellucid.kernels.text.pieces import BLOCK, PiecesRecord, hashing, pieces_body
from pellucid.kernels.text.split import decoding
from pellucid.kernels.text.words import EMPTY, finding, probing

UNKNOWN, MERGES, DIFFERS = 0, 1, 2  # whether the symbols of a piece of the vocabulary merge to this piece


class PairsRecord(Record):
    """Fills a table of pairs. All slots are EMPTY at first."""

    lefts: Address  # (n,) int32
    rights: Address  # (n,) int32
    merged: Address  # (n,) int32; below 0: the pair does not merge
    ranks: Address  # (n,) int32: the pair with the lowest rank merges first, the leftmost if ranks are equal
    count: int  # n
    slots: Address  # (size, 2) int64: left << 32 | right, value
    mask: int  # size - 1


class MergeRecord(PiecesRecord):
    bytes: Address  # (256,) int32: each byte's id; below 0: none
    characters: Address  # (0x110000,) int32: each character's id; below 0: none; for symbols "characters"
    by_place: int  # bytes of a table of characters; four tables: inside, first, last, alone; 0: one table
    unknown: int  # the id of a character without an id or bytes; below 0: the character is dropped
    fuse: int  # 1: adjacent unknown characters are one symbol
    first: Address  # (256, 256) int64: the value of each pair of bytes; for symbols "bytes"
    pairs: Address  # the table of pairs (PairsRecord)
    pairs_mask: int
    words: Address  # the table of the vocabulary's pieces (WordsRecord)
    words_mask: int
    word_text: Address  # the texts and places of WordsRecord that filled the table
    word_places: Address
    word_state: Address  # (V,) uint8: UNKNOWN, MERGES, DIFFERS


def scratch_bytes(longest: int) -> int:
    """Return the bytes of ``PiecesRecord.scratch`` for pre-tokens of up to ``longest`` bytes."""
    return 8 * BLOCK + 48 * longest + 32 * SHORT + 64


def pairing(simd: Any) -> Any:
    """Make ``value_of``, which returns the value of a pair of symbols."""
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
            if load(place) == EMPTY:  # the first of duplicates counts
                store_i64(place, pair)
                store_i64(place + 8, NEVER if result < 0 else load_i32(ranks + i * 4) << 32 | result)

    return body


def byte_symbols(simd: Any) -> Any:
    """Make ``start``, which writes the symbols of a pre-token's bytes and the values of neighbours.

    It returns the number of symbols.
    """
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
    """Make ``start`` as in :func:`byte_symbols`, for characters. Unknown characters become bytes or the unknown id."""
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_i32, store_i64 = simd.store_i32, simd.store_i64
    length_of, code_point = decoding(simd)

    @simd.jit
    def start(record, place, length, ids, values):
        alphabet, characters = load(record + at.bytes), load(record + at.characters)
        pairs, mask = load(record + at.pairs), load(record + at.pairs_mask)
        unknown, fuse = load(record + at.unknown), load(record + at.fuse)
        by_place = load(record + at.by_place)
        count, done, waiting = 0, 0, False  # waiting: the unknown id follows the bytes of later characters
        while done < length:
            size = length_of(load_u8(place + done))
            which = (1 if done == 0 else 0) + (2 if done + size >= length else 0)
            symbol = load_i32(characters + which * by_place + code_point(place + done) * 4)
            strange = symbol < 0
            spelled = strange
            for i in range(size if strange else 0):
                spelled = spelled and load_i32(alphabet + load_u8(place + done + i) * 4) >= 0
            if spelled:
                for i in range(size):
                    store_i32(ids + (count + i) * 4, load_i32(alphabet + load_u8(place + done + i) * 4))
                count += size
            else:
                if waiting and not (strange and (fuse or unknown < 0)):
                    store_i32(ids + count * 4, unknown)
                    count += 1
                if not strange:
                    store_i32(ids + count * 4, symbol)
                    count += 1
                waiting = strange and unknown >= 0
            done += size
        if waiting:
            store_i32(ids + count * 4, unknown)
            count += 1
        for i in range(count - 1):
            store_i64(values + i * 8, value_of(load_i32(ids + i * 4), load_i32(ids + i * 4 + 4), pairs, mask))
        return count

    return start


def encoding(simd: Any, symbols: str) -> Any:
    """Make ``merged``, which writes the ids that a pre-token's symbols merge to and returns their number."""
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
    """Build the merges. ``symbols`` is "bytes" or "characters".

    With ``whole``, a pre-token that is a piece of the vocabulary gets the piece's id, even if its symbols merge to
    other ids.
    """
    at, load, load_u8, load_i32 = MergeRecord.at, simd.load_i64, simd.load_u8, simd.load_i32
    store_u8, store_i32 = simd.store_u8, simd.store_i32
    hashed, _ = hashing(simd)
    word_of, merged = finding(simd), encoding(simd, symbols)

    @simd.jit
    def ids_of(record, scratch, place, length, part, out):
        """Write the ids of a pre-token, which may be a piece of the vocabulary. Returns their number."""
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
        id_count = merged(record, scratch, place, length, out)
        if state == UNKNOWN:
            same = id_count == 1 and load_i32(out) == word
            store_u8(known, MERGES if same else DIFFERS)
        return id_count

    return pieces_body(simd, at, ids_of)
