"""Segments pre-tokens (``text/pieces.py``) into pieces: the likeliest (Unigram), or the longest (WordPiece)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address
from pellucid.kernels.text.pieces import BLOCK, PiecesRecord, pieces_body
from pellucid.kernels.text.split import decoding
from pellucid.kernels.text.words import ROOT, stepping, walking

RESET = 100_000.0  # float32 sums beyond this restart at 0
NODE = 16  # bytes of a node, one per position: score, begin and id of the last piece


class UnigramRecord(PiecesRecord):
    """Segments pre-tokens (``text/pieces.py``) into the likeliest pieces of a Unigram vocabulary: Viterbi's algorithm.

    The reference is ``tokenize/kinds/unigram.py``. For each byte position, the kernel keeps the best path to this
    position. Of equally good paths, it keeps the first. An unknown character has its own score. Adjacent unknown
    characters become one unknown id, or the ids of their bytes.
    """

    slots: Address  # a tree of the pieces (text/words.py)
    ids: Address
    scores: Address  # (V,) float64
    unknown: int
    unknown_score: float
    bytes: Address  # (256,) int32: each byte's id; below 0: none
    spelled: int  # 1: unknown characters become bytes


def scratch_bytes(longest: int) -> int:
    """Return the bytes of ``PiecesRecord.scratch`` for pre-tokens of up to ``longest`` bytes."""
    return 8 * BLOCK + NODE * (longest + 2)


def searching(simd: Any, single: bool) -> Any:
    """Make ``best``, which finds the best path to each position."""
    at, load, load_u8, load_i32, load_f64 = (
        UnigramRecord.at, simd.load_i64, simd.load_u8, simd.load_i32, simd.load_f64,
    )  # fmt: skip
    store_i32, store_f64, behind, (length_of, _) = simd.store_i32, simd.store_f64, stepping(simd), decoding(simd)

    @simd.jit
    def sum_of(a, b):
        if single:
            return np.float64(np.float32(a + b))
        return a + b

    @simd.jit
    def offer(nodes, start, stop, score, index):
        """Keep a path to a position if it is the first (the score was NaN) or better than before."""
        there = nodes + stop * NODE
        if not score <= load_f64(there):
            store_f64(there, score)
            store_i32(there + 8, start)
            store_i32(there + 12, index)

    @simd.jit
    def again(nodes, start, reached, so_far):
        """Subtract ``so_far`` from the scores of positions ``start`` to ``reached``."""
        for i in range(start, reached + 1):
            there = nodes + i * NODE
            store_f64(there, sum_of(load_f64(there), -so_far))

    @simd.jit
    def best(record, nodes, place, length):
        slots, ids = load(record + at.slots), load(record + at.ids)
        scores, unknown = load(record + at.scores), load(record + at.unknown)
        unknown_score, reached, start = load_f64(record + at.unknown_score), 0, 0
        store_f64(nodes, 0.0)
        for i in range(1, length + 1):
            store_f64(nodes + i * NODE, np.nan)
        while start < length:
            so_far = load_f64(nodes + start * NODE)
            if single and abs(so_far) > RESET:
                again(nodes, start, reached, so_far)
                so_far = 0.0
            size, base, alone, here = length_of(load_u8(place + start)), ROOT, False, start
            while here < length:
                node, base = behind(slots, base, load_u8(place + here))
                if node < 0:
                    break
                here += 1
                index = load_i32(ids + node * 4)
                if index >= 0:
                    offer(nodes, start, here, sum_of(so_far, load_f64(scores + index * 8)), index)
                    reached = max(reached, here)
                    alone = alone or here == start + size
            if not alone:
                offer(nodes, start, start + size, sum_of(so_far, unknown_score), unknown)
                reached = max(reached, start + size)
            start += size

    return best


def spelling(simd: Any) -> Any:
    """Make ``spell``, which writes unknown characters as bytes, if all bytes have ids, else as one id.

    It returns the new number of ids.
    """
    at, load, load_u8 = UnigramRecord.at, simd.load_i64, simd.load_u8
    load_i32, store_i32 = simd.load_i32, simd.store_i32

    @simd.jit
    def spell(record, place, begin, end, out, id_count):
        alphabet, known = load(record + at.bytes), load(record + at.spelled) != 0
        for i in range(begin, end):
            known = known and load_i32(alphabet + load_u8(place + i) * 4) >= 0
        if not known:
            store_i32(out + id_count * 4, load(record + at.unknown))
            return id_count + 1
        for i in range(begin, end):
            store_i32(out + id_count * 4, load_i32(alphabet + load_u8(place + i) * 4))
            id_count += 1
        return id_count

    return spell


@kernel("text.unigram", UnigramRecord)
def build(simd: Any, single: bool) -> Any:
    """Build Unigram. With ``single``, sums are float32 and unknown characters become bytes, as in SentencePiece."""
    at, load, load_i32, store_i32 = UnigramRecord.at, simd.load_i64, simd.load_i32, simd.store_i32
    best, spell = searching(simd, single), spelling(simd)

    @simd.jit
    def trace(nodes, length):
        """Reverse the links of the best path. Returns the end of its first piece, or -1."""
        stop, following = length, -1
        while stop > 0:
            start = load_i32(nodes + stop * NODE + 8)
            store_i32(nodes + stop * NODE + 8, following)
            following, stop = stop, start
        return following

    @simd.jit
    def ids_of(record, scratch, place, length, part, out):
        nodes, unknown = scratch, load(record + at.unknown)
        as_bytes = single and load(record + at.spelled) != 0
        best(record, nodes, place, length)
        begin, id_count, open_at, here = 0, 0, -1, trace(nodes, length)
        while here > 0:
            index = load_i32(nodes + here * NODE + 12)
            if index == unknown:
                if open_at >= 0 and as_bytes:
                    id_count = spell(record, place, open_at, begin, out, id_count)
                    open_at = begin
                elif open_at < 0:
                    open_at = begin
            else:
                if open_at >= 0:
                    id_count = spell(record, place, open_at, begin, out, id_count)
                    open_at = -1
                store_i32(out + id_count * 4, index)
                id_count += 1
            begin = here
            here = load_i32(nodes + here * NODE + 8)
        if open_at >= 0:
            id_count = spell(record, place, open_at, begin, out, id_count)
        return id_count

    return pieces_body(simd, at, ids_of)


class WordPieceRecord(PiecesRecord):
    """WordPiece of pre-tokens (``text/pieces.py``): greedy segmentation into the longest pieces that match.

    The reference is ``tokenize/kinds/wordpiece.py``. A pre-token that pieces cannot cover, or that is too long, becomes
    the unknown id.
    """

    slots: Address  # a tree of the pieces that begin a word (text/words.py)
    ids: Address
    more_slots: Address  # a tree of the pieces that continue a word, without their prefix
    more_ids: Address
    unknown: int
    longest: int  # maximum number of characters of a word


def wordpiece_scratch_bytes(longest: int) -> int:
    """Return the bytes of ``PiecesRecord.scratch`` for pre-tokens of up to ``longest`` bytes."""
    return 8 * BLOCK


@kernel("text.wordpiece", WordPieceRecord)
def build_wordpiece(simd: Any) -> Any:
    at, load, load_u8, store_i32 = WordPieceRecord.at, simd.load_i64, simd.load_u8, simd.store_i32
    walk = walking(simd)

    @simd.jit
    def characters(place, length):
        count = 0
        for i in range(length):
            count += load_u8(place + i) & 0xC0 != 0x80
        return count

    @simd.jit
    def ids_of(record, scratch, place, length, part, out):
        unknown = load(record + at.unknown)
        if characters(place, length) > load(record + at.longest):
            store_i32(out, unknown)
            return 1
        slots, ids = load(record + at.slots), load(record + at.ids)
        here, end, id_count = place, place + length, 0
        while here < end:
            found, here = walk(slots, ids, here, end, True)
            if found < 0:
                store_i32(out, unknown)
                return 1
            store_i32(out + id_count * 4, found)
            id_count += 1
            slots, ids = load(record + at.more_slots), load(record + at.more_ids)
        return id_count

    return pieces_body(simd, at, ids_of)
