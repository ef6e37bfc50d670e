"""Rows and tiles of attention: the queries of a tile, the tokens that the queries see (attend to), and their memory.

A *row* is one query head of one token. The rows of a sequence that share a key/value head are numbered from 0 in the
order (token, head of the group). A *tile* is a run of consecutive rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Struct

from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.core.record import SCRATCH_HEADER, Address, Record, StepRecord

ROWS = 8  # maximum number of rows of a loop over a page
SPAN = 32  # tokens whose scores a loop computes
MAX_TILE_ROWS = 64  # maximum number of rows of a tile
PIECE = 512  # tokens of a piece, which has its own softmax
STATE = 8  # bytes of a row's state: the largest score and the sum of the weights, float32
# Bytes between rows of scores. A power of two would map all rows to the same cache sets.
SCORES = PIECE * 4 + 64


class ScratchLayout(Struct, frozen=True):
    """Byte offsets in a thread's scratch memory, for heads of widths K and V.

    ``positions`` is the number of bytes for the scores of positions (``attention/disentangled.py``).
    """

    head_dim: int
    value_dim: int
    positions: int = 0

    @property
    def queries(self) -> int:
        """(MAX_TILE_ROWS, K): the queries of the tile, multiplied by the scale."""
        return SCRATCH_HEADER

    @property
    def totals(self) -> int:
        """(MAX_TILE_ROWS, V) float32: the weighted values of the pieces so far."""
        return self.queries + MAX_TILE_ROWS * self.head_dim * 4

    @property
    def states(self) -> int:
        """(MAX_TILE_ROWS, 2) float32: the states of the pieces so far."""
        return self.totals + MAX_TILE_ROWS * self.value_dim * 4

    @property
    def page(self) -> int:
        """A head's keys or values in one page, widened to float32."""
        return self.states + MAX_TILE_ROWS * STATE

    @property
    def weights(self) -> int:
        """(MAX_TILE_ROWS, PIECE): the scores of a piece, then its weights."""
        return self.page + PAGE * 4 * max(self.head_dim, self.value_dim)

    @property
    def piece(self) -> int:
        """The result of a piece: sums and states."""
        return self.weights + MAX_TILE_ROWS * SCORES

    @property
    def position_scores(self) -> int:
        """The scores of positions."""
        return self.piece + self.piece_bytes(MAX_TILE_ROWS)

    @property
    def shared_pieces(self) -> int:
        """The results of pieces that threads share, for tiles of at most ROWS rows."""
        return self.position_scores + self.positions

    def piece_bytes(self, rows: int) -> int:
        """Bytes of a piece's result: the rows' sums, then their states."""
        return rows * (4 * self.value_dim + STATE)

    def bytes(self, context: int) -> int:
        """Bytes of the scratch memory of a thread, for sequences of at most ``context`` tokens."""
        return self.shared_pieces + 2 * (-(-context // PIECE) + 1) * self.piece_bytes(ROWS)


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

    @simd.jit
    def place_of(tile, row):
        """Return the row's index among all (token, query head) pairs of the step."""
        first_token = load_i32(load(tile.step + step_at.first_row) + 4 * tile.sequence)
        head = tile.kv_head * tile.group + row % tile.group
        return (first_token + row // tile.group) * load(tile.record + at.heads) + head

    @simd.jit
    def earliest(tile, position):
        """Return the first token that the token at a position sees."""
        window, first = load(tile.record + at.window), 0
        if window != 0 and load(tile.record + at.chunked) != 0:
            first = position // window * window
        elif window != 0:
            first = max(0, position - window + 1)
        return first

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

    @simd.jit
    def seen_by(tile):
        """Return the range of tokens that a tile sees."""
        return seen(tile, context_of(tile), tile.first, tile.rows)

    return RowHelpers(context_of, place_of, limits, seen, seen_by)
