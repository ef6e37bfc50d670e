"""WordPiece of pre-tokens (``text/pieces.py``): greedy segmentation into the longest pieces that match.

The reference is ``tokenize/kinds/wordpiece.py``. A pre-token that pieces cannot cover, or that is too long, becomes the
unknown id.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address
from pellucid.kernels.text.pieces import BLOCK, PiecesRecord, pieces_body
from pellucid.kernels.text.words import walking


class WordPieceRecord(PiecesRecord):
    slots: Address  # a tree of the pieces that begin a word (text/words.py)
    ids: Address
    more_slots: Address  # a tree of the pieces that continue a word, without their prefix
    more_ids: Address
    unknown: int
    longest: int  # maximum number of characters of a word


def scratch_bytes(longest: int) -> int:
    """Return the bytes of ``PiecesRecord.scratch`` for pre-tokens of up to ``longest`` bytes."""
    return 8 * BLOCK


@kernel("text.wordpiece", WordPieceRecord)
def build(simd: Any) -> Any:
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
