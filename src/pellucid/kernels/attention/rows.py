"""Rows and tiles of attention: the queries of a tile, and the tokens that the queries see (attend to).

A *row* is one query head of one token. The rows of a sequence that share a key/value head are numbered from 0 in the
order (token, head of the group). A *tile* is a run of consecutive rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pellucid.kernels.attention.tiles import SPAN
from pellucid.kernels.core.record import Address, Record, StepRecord


class RowsRecord(Record):
    """Fields that define the rows of attention, and the tokens that the rows see."""

    heads: int  # H
    kv_heads: int  # G
    group: int  # the layer's group in the cache; a group has its own block tables
    page_bytes: int  # from one page to the next
    causal: int  # 1: a token sees itself and the tokens before it; 0: all tokens of its sequence
    window: int  # a token sees at most window - 1 tokens before itself, and if not causal, after itself; 0: no limit
    chunked: int  # 1: a token sees only tokens of its own chunk of ``window`` tokens
    cross: int  # 1: keys and values come from the sequence's encoder (cross attention)


class ScoresRecord(RowsRecord):
    """Fields that define the scores of the rows."""

    q: Address  # (T, H * K) float32
    keys: Address  # G heads of page 0, see kv_layout.py
    scale: float
    softcap: float  # 0: none
    # Address of float32 biases; 0: none. The address is for head 0, and a query and a key at position 0. The biases for
    # keys at the next positions follow. The kernel may read 15 numbers after the last token's bias, but ignores them.
    bias: Address
    bias_stride: int  # bytes from one head to the next
    bias_step: int  # bytes to go back for each query position: 4 for biases by distance, 0 for biases by key
    sinks: Address  # (H,) float32, or 0: none


class Tile(NamedTuple):
    """Rows ``first`` to ``first + rows - 1`` of a sequence and a key/value head. Used only inside kernels."""

    record: int
    step: int
    sequence: int
    kv_head: int
    group: int  # query heads that share the key/value head
    first: int
    rows: int


class Context(NamedTuple):
    """The tokens that a sequence attends to, including the tokens of this step. Used only inside kernels.

    In cross attention these are the tokens of the sequence's encoder.
    """

    length: int  # number of tokens
    pages: int  # address of their block table
    position: int  # position of the sequence's first row


class RowHelpers(NamedTuple):
    """The helpers that ``rows_of`` makes."""

    context_of: Any
    place_of: Any
    limits: Any
    seen: Any
    seen_by: Any


def rows_of(simd: Any, at: Any) -> RowHelpers:
    """Make the helpers for rows. ``at`` holds the field offsets of attention's record."""
    context_of, earliest = _context_of(simd, at), _earliest(simd, at)
    seen = _seen(simd, at, earliest)

    @simd.jit
    def seen_by(tile):
        """Return the range of tokens that a tile sees."""
        return seen(tile, context_of(tile), tile.first, tile.rows)

    return RowHelpers(context_of, _place_of(simd, at), _limits(simd, at, earliest), seen, seen_by)


def _context_of(simd: Any, at: Any) -> Any:
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32

    @simd.jit
    def context_of(tile):
        """Return the tokens that the tile's sequence attends to."""
        step, row = tile.step, 4 * tile.sequence
        length = load_i32(load(step + step_at.length) + row)
        position = length - load_i32(load(step + step_at.row_count) + row)
        pages = load(step + step_at.pages)
        if load(tile.record + at.cross) != 0:
            length = load_i32(load(step + step_at.encoder_length) + row)
            pages = load(step + step_at.encoder_pages)
        pages += load(tile.record + at.group) * load(step + step_at.group_stride)
        return Context(length, pages + load(step + step_at.page_stride) * row, position)

    return context_of


def _place_of(simd: Any, at: Any) -> Any:
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32

    @simd.jit
    def place_of(tile, row):
        """Return the row's index among all (token, query head) pairs of the step."""
        first_token = load_i32(load(tile.step + step_at.first_row) + 4 * tile.sequence)
        head = tile.kv_head * tile.group + row % tile.group
        return (first_token + row // tile.group) * load(tile.record + at.heads) + head

    return place_of


def _earliest(simd: Any, at: Any) -> Any:
    load = simd.load_i64

    @simd.jit
    def earliest(tile, position):
        """Return the first token that the token at a position sees."""
        window, first = load(tile.record + at.window), 0
        if window != 0 and load(tile.record + at.chunked) != 0:
            first = position // window * window
        elif window != 0:
            first = max(0, position - window + 1)
        return first

    return earliest


def _limits(simd: Any, at: Any, earliest: Any) -> Any:
    load = simd.load_i64

    @simd.jit
    def limits(tile, context, row):
        """Return a row's position and the range of tokens that it sees: position, first, end."""
        position, end = context.position + row // tile.group, context.length
        window = load(tile.record + at.window)
        if load(tile.record + at.causal) != 0:
            end = position + 1
        elif window != 0:
            end = min(end, position + window)
        return position, earliest(tile, position), end

    return limits


def _seen(simd: Any, at: Any, earliest: Any) -> Any:
    load = simd.load_i64

    @simd.jit
    def seen(tile, context, first, rows):
        """Return the range of tokens that ``rows`` rows from ``first`` on see.

        With a window, the range begins at a multiple of SPAN, which may be before the first token seen.
        """
        window = load(tile.record + at.window)
        begin, end = 0, context.length
        last = context.position + (first + rows - 1) // tile.group
        if load(tile.record + at.causal) != 0:
            end = last + 1
        elif window != 0:
            end = min(end, last + window)
        if window != 0:
            begin = earliest(tile, context.position + first // tile.group) // SPAN * SPAN
        return begin, end

    return seen
