"""Attention over the paged key/value cache (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    out = softmax(mask(softcap(scale * q Kᵀ) + bias)) V

In: queries (T, H, K) float32; the layer's pages, with keys (G, K) and values (G, V) for every token, in the layout of
``attention/kv_layout.py``. Out: (T, H, V) float32, and optionally the same values as activation blocks.

``bias`` depends on the head and on the distance between query and key (ALiBi: Press et al. 2022; relative positions:
Raffel et al. 2020) or on the position of the key alone. A head may have a *sink*: a score that takes a share of the
softmax and contributes no value (Xiao et al. 2023). Keys and values come from the sequence itself, or from its encoder
(cross attention).

A *row* is one query head of one token. Rows that share a key/value head (heads of one group, and neighbouring tokens)
are computed together in *tiles* (``attention/walk.py``), so that each key and value is loaded once for eight rows.
Tiles of more than eight rows widen a page to float32 once. Pages in bfloat16 are multiplied without widening.

The tokens that a sequence attends to, its *context*, are cut into *pieces* of 512 tokens, counted from the start of the
sequence. Each piece has its own unnormalised softmax: m is its largest score, s the sum of its weights, and o the sum
of its weighted values. They are then joined to M, sum and out of the pieces before it (Milakov and Gimelshein 2018):

    M' = max(M, m)    sum = sum e^(M - M') + s e^(m - M')    out = out e^(M - M') + o e^(m - M')

A row's result depends only on its own sequence and position. Pieces, and the pages of a piece, begin at fixed positions
of the sequence and are summed in a fixed order. Other rows in the tile, the split of prompts into steps, and the thread
do not change this order. ``split_work`` distributes the tiles over the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.attention.rows import (
    MAX_TILE_ROWS,
    PIECE,
    ROWS,
    SPAN,
    RowHelpers,
    ScoresRecord,
    ScratchLayout,
    Tile,
    rows_of,
)
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, StepRecord

if TYPE_CHECKING:
    from pellucid.kernels.attention.walk import Walk

# The distribution of tiles over threads: each thread gets an equal share of the total cost, in the order of the tiles.
#
# If a boundary between shares falls inside a tile of few rows and many pieces, each thread stores the results of its
# pieces separately. The thread that finishes last joins all of them in order, so no thread waits.


class WorkSplit(NamedTuple):
    """The helpers that ``split_work`` makes."""

    scratch_of: Any
    extent: Any
    units: Any
    thread_units: Any
    compute_tile: Any
    compute_pieces: Any


def split_work(simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout) -> WorkSplit:
    """Make the helpers for the threads' parts of the tiles."""
    at, load, seen_by = StepRecord.at, simd.load_i64, rows.seen_by

    @simd.jit
    def scratch_of(step, thread):
        return load(step + at.scratch) + thread * load(step + at.scratch_bytes)

    @simd.jit
    def extent(tile):
        """Return a tile's first piece, its number of pieces, and its cost."""
        start, stop = seen_by(tile)
        first_piece = start // PIECE * PIECE
        pieces = (max(stop, start + 1) - first_piece + PIECE - 1) // PIECE
        # Loading keys and values costs the same as the arithmetic of ROWS rows.
        return first_piece, pieces, (max(stop - start, 0) + SPAN) * (tile.rows + ROWS)

    @simd.jit
    def units(tile, pieces, by_pieces):
        """Return the number of a tile's units. Different threads can compute different units.

        A tile of more than ROWS rows is one unit. The units of a smaller tile are its pieces, or its rows if it has
        more rows than pieces and ``by_pieces`` is False. If the units are rows, each thread reads all keys and values.
        """
        if tile.rows > ROWS:
            return 1
        if by_pieces:
            return pieces
        return max(tile.rows, pieces)

    @simd.jit
    def bound(work, cost, units):
        """Return the first unit of a thread whose share starts at ``work`` within the tile's cost."""
        if work <= 0:
            return 0
        if work >= cost:
            return units
        return (work * units + cost // 2) // cost

    @simd.jit
    def thread_units(thread, threads, total, work, cost, units):
        """Return a thread's range of units of a tile that starts at ``work`` within the total."""
        first, end = simd.thread_range(total, thread, threads)
        return bound(first - work, cost, units), bound(end - work, cost, units)

    compute_tile = _compute_tile(simd, rows, walk, space)
    compute_pieces = _compute_pieces(simd, rows, walk, space, thread_units, scratch_of)
    return WorkSplit(scratch_of, extent, units, thread_units, compute_tile, compute_pieces)


def _compute_tile(simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout) -> Any:
    begin, clear, write_scores, add_scores, write_weights, add_values, join, finish = walk
    context_of, piece_at, totals_at, states_at = rows.context_of, space.piece, space.totals, space.states
    out_bytes = 4 * space.value_dim

    @simd.jit
    def compute_tile(tile, first_piece, pieces, scratch):
        """Compute a tile on one thread."""
        context, sums = context_of(tile), scratch + piece_at
        totals, states = scratch + totals_at, scratch + states_at
        if pieces == 1:
            totals, states = sums, sums + tile.rows * out_bytes
        else:
            clear(tile.rows, scratch)
        begin(tile, scratch)
        for i in range(pieces):
            piece = first_piece + i * PIECE
            write_scores(tile, context, scratch, piece)
            add_scores(tile, context, scratch, piece)
            write_weights(tile, context, scratch, piece, sums)
            add_values(tile, context, scratch, piece, sums)
            if pieces > 1:
                join(tile.rows, scratch, sums)
        finish(tile, totals, states)

    return compute_tile


def _compute_pieces(
    simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout, thread_units: Any, scratch_of: Any
) -> Any:
    begin, clear, write_scores, add_scores, write_weights, add_values, join, finish = walk
    context_of, shared_at, piece_bytes = rows.context_of, space.shared_pieces, space.piece_bytes(ROWS)
    totals_at, states_at = space.totals, space.states

    @simd.jit
    def place_of_piece(thread, low, pieces, number, step):
        """Return the address for piece ``number`` of a thread whose pieces of the tile start at ``low``.

        A thread can share two tiles, so it has two places: one for a tile that it starts, one for a tile that an
        earlier thread starts.
        """
        which = 0
        if low == 0:
            which = pieces
        return scratch_of(step, thread) + shared_at + (which + number - low) * piece_bytes

    @simd.jit
    def compute_pieces(tile, first_piece, pieces, thread, threads, total, work, cost):
        """Compute a thread's pieces of a shared tile; the last thread to finish joins all pieces."""
        context, scratch = context_of(tile), scratch_of(tile.step, thread)
        low, high = thread_units(thread, threads, total, work, cost, pieces)
        begin(tile, scratch)
        for i in range(low, high):
            piece, sums = first_piece + i * PIECE, place_of_piece(thread, low, pieces, i, tile.step)
            write_scores(tile, context, scratch, piece)
            add_scores(tile, context, scratch, piece)
            write_weights(tile, context, scratch, piece, sums)
            add_values(tile, context, scratch, piece, sums)
        starter, involved = 0, 0
        for t in range(threads - 1, -1, -1):
            begins, ends = thread_units(t, threads, total, work, cost, pieces)
            if begins < ends:
                starter, involved = t, involved + 1
        counter = scratch_of(tile.step, starter)
        if simd.atomic_add(counter, 1) + 1 < involved:
            return
        simd.atomic_store(counter, 0)
        clear(tile.rows, scratch)
        for t in range(threads):
            begins, ends = thread_units(t, threads, total, work, cost, pieces)
            for i in range(begins, ends):
                join(tile.rows, scratch, place_of_piece(t, begins, pieces, i, tile.step))
        finish(tile, scratch + totals_at, scratch + states_at)

    return compute_pieces


class AttentionRecord(ScoresRecord):
    values: Address  # G heads of page 0
    out: Address  # (T, H * V) float32
    quantized: Address  # (T, H * V / 32) activation blocks, or 0: not written


def reference(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    first_position: int = 0,
    *,
    scale: float,
    softcap: float = 0.0,
    causal: bool = True,
    window: int = 0,
    chunked: bool = False,
    bias: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]] | None = None,
    sinks: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """Compute attention of one sequence in float64, from q (T, H, K), k (T', G, K) and v (T', G, V).

    ``bias`` maps the positions of queries (T, 1) and of keys (T',) to the biases (H, T, T').
    """
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, 1) for a in (k, v))
    scores = np.einsum("thk,shk->hts", q.astype(np.float64), k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    query, key = np.arange(len(q))[:, None] + first_position, np.arange(len(k))
    if bias is not None:
        scores = scores + bias(query, key)
    seen = np.ones((len(q), len(k)), bool)
    if causal:
        seen &= key <= query
    if window:
        seen &= key >= query // window * window if chunked else key > query - window
        seen &= key < query + window
    scores = np.where(seen, scores, -np.inf)
    sink = np.full((q.shape[1], 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    weights = np.exp(scores - top)
    weights /= weights.sum(-1, keepdims=True) + np.exp(sink - top)
    return np.asarray(np.einsum("hts,shk->thk", weights, v), np.float64)


@kernel("attention", AttentionRecord, quantizes="value_dim")
def build(simd: Any, head_dim: int, value_dim: int, kv_dtype: str, activation_bits: int) -> Any:
    """Build attention. ``head_dim`` is K, ``value_dim`` is V, ``kv_dtype`` is one of ``kv_layout.KV_DTYPES``.

    ``activation_bits`` is the width of the activation blocks.
    """
    from pellucid.kernels.attention.walk import walk  # only to compile

    at, space = AttentionRecord.at, ScratchLayout(head_dim, value_dim)
    rows_of_step = rows_of(simd, at)
    walk_of_tile = walk(simd, at, rows_of_step, space, kv_dtype, activation_bits)
    return body_of(simd, at, split_work(simd, rows_of_step, walk_of_tile, space))


def body_of(simd: Any, at: Any, split: WorkSplit) -> Any:
    """Make the kernel's body. ``at`` holds the field offsets of its record."""
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32
    scratch_of, extent, units_of, thread_units, compute_tile, compute_pieces = split

    @simd.jit
    def body(record, step, thread, threads):
        kv_heads = load(record + at.kv_heads)
        group = load(record + at.heads) // kv_heads
        scratch = scratch_of(step, thread)
        sequences = load(step + step_at.sequences)
        rows_in_all = load(step + step_at.tokens) * group * kv_heads
        tile_rows = max(ROWS, min(MAX_TILE_ROWS, rows_in_all // (8 * threads) // ROWS * ROWS))
        total, total_pieces = 0, 0
        for s in range(sequences):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for first in range(0, rows, tile_rows):
                tile = Tile(record, step, s, 0, group, first, min(tile_rows, rows - first))
                _, pieces, cost = extent(tile)
                total, total_pieces = total + kv_heads * cost, total_pieces + kv_heads * pieces
        by_pieces = total_pieces >= 2 * threads
        work = 0
        for s in range(sequences):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for kv_head in range(kv_heads):
                for first in range(0, rows, tile_rows):
                    tile = Tile(record, step, s, kv_head, group, first, min(tile_rows, rows - first))
                    first_piece, pieces, cost = extent(tile)
                    units = units_of(tile, pieces, by_pieces)
                    low, high = thread_units(thread, threads, total, work, cost, units)
                    if low < high and (units == 1 or high - low == units):
                        compute_tile(tile, first_piece, pieces, scratch)
                    elif low < high and units == pieces:
                        compute_pieces(tile, first_piece, pieces, thread, threads, total, work, cost)
                    elif low < high:
                        rows_of_it = Tile(record, step, s, kv_head, group, first + low, high - low)
                        compute_tile(rows_of_it, first_piece, pieces, scratch)
                    work += cost

    return body
