"""The distribution of tiles over threads: each thread gets an equal share of the total cost, in the order of the tiles.

If a boundary between shares falls inside a tile of few rows and many pieces, each thread stores the results of its
pieces separately. The thread that finishes last joins all of them in order, so no thread waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pellucid.kernels.attention.rows import RowHelpers
from pellucid.kernels.attention.tiles import ROWS, SPAN
from pellucid.kernels.attention.walk import PIECE, ScratchLayout, Walk
from pellucid.kernels.core.record import StepRecord


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
    scratch_of, thread_units = _scratch_of(simd), _thread_units(simd)
    return WorkSplit(
        scratch_of,
        _extent(simd, rows),
        _units(simd),
        thread_units,
        _compute_tile(simd, rows, walk, space),
        _compute_pieces(simd, rows, walk, space, thread_units, scratch_of),
    )


def _scratch_of(simd: Any) -> Any:
    at, load = StepRecord.at, simd.load_i64

    @simd.jit
    def scratch_of(step, thread):
        return load(step + at.scratch) + thread * load(step + at.scratch_bytes)

    return scratch_of


def _extent(simd: Any, rows: RowHelpers) -> Any:
    seen_by = rows.seen_by

    @simd.jit
    def extent(tile):
        """Return a tile's first piece, its number of pieces, and its cost."""
        start, stop = seen_by(tile)
        first_piece = start // PIECE * PIECE
        pieces = (max(stop, start + 1) - first_piece + PIECE - 1) // PIECE
        # Loading keys and values costs the same as the arithmetic of ROWS rows.
        return first_piece, pieces, (max(stop - start, 0) + SPAN) * (tile.rows + ROWS)

    return extent


def _units(simd: Any) -> Any:
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

    return units


def _thread_units(simd: Any) -> Any:
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

    return thread_units


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
