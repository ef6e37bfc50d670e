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


class Share(NamedTuple):
    """The helpers that ``share`` makes."""

    scratch_of: Any
    extent: Any
    units: Any
    part: Any
    whole: Any
    some: Any


def share(simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout) -> Share:
    """Make the helpers for the threads' parts of the tiles."""
    scratch_of, part = _scratch_of(simd), _part(simd)
    return Share(
        scratch_of,
        _extent(simd, rows),
        _units(simd),
        part,
        _whole(simd, rows, walk, space),
        _some(simd, rows, walk, space, part, scratch_of),
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
        """Return the number of a tile's units, which can go to different threads.

        The units of a tile of at most ROWS rows are its pieces. If the tile has more rows than pieces, and without
        ``by_pieces``, the units are its rows: each thread then reads all keys and values for its rows. A larger tile is
        one unit.
        """
        if tile.rows > ROWS:
            return 1
        if by_pieces:
            return pieces
        return max(tile.rows, pieces)

    return units


def _part(simd: Any) -> Any:
    @simd.jit
    def bound(work, cost, units):
        """Return the first unit of a thread whose share starts at ``work`` within the tile's cost."""
        if work <= 0:
            return 0
        if work >= cost:
            return units
        return (work * units + cost // 2) // cost

    @simd.jit
    def part(thread, threads, total, work, cost, units):
        """Return a thread's range of units of a tile that starts at ``work`` within the total."""
        first, end = simd.thread_range(total, thread, threads)
        return bound(first - work, cost, units), bound(end - work, cost, units)

    return part


def _whole(simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout) -> Any:
    begin, write_scores, write_weights, add_values, join, finish = walk
    past_of, piece_at = rows.past_of, space.piece

    @simd.jit
    def whole(tile, first_piece, pieces, scratch):
        """Compute a tile on one thread."""
        past, sums = past_of(tile), scratch + piece_at
        begin(tile, scratch)
        for i in range(pieces):
            piece = first_piece + i * PIECE
            write_scores(tile, past, scratch, piece)
            write_weights(tile, past, scratch, piece, sums)
            add_values(tile, past, scratch, piece, sums)
            join(tile.rows, scratch, sums)
        finish(tile, scratch)

    return whole


def _some(simd: Any, rows: RowHelpers, walk: Walk, space: ScratchLayout, part: Any, scratch_of: Any) -> Any:
    begin, write_scores, write_weights, add_values, join, finish = walk
    past_of, apart_at, piece_bytes = rows.past_of, space.apart, space.piece_bytes(ROWS)

    @simd.jit
    def apart(thread, low, pieces, number, step):
        """Return the address for piece ``number`` of a thread whose pieces of the tile start at ``low``.

        A thread can share two tiles, so it has two places: one for a tile that it starts, one for a tile that an
        earlier thread starts.
        """
        which = 0
        if low == 0:
            which = pieces
        return scratch_of(step, thread) + apart_at + (which + number - low) * piece_bytes

    @simd.jit
    def some(tile, first_piece, pieces, thread, threads, total, work, cost):
        """Compute a thread's pieces of a shared tile; the last thread to finish joins all pieces."""
        past, scratch = past_of(tile), scratch_of(tile.step, thread)
        low, high = part(thread, threads, total, work, cost, pieces)
        begin(tile, scratch)
        for i in range(low, high):
            piece, sums = first_piece + i * PIECE, apart(thread, low, pieces, i, tile.step)
            write_scores(tile, past, scratch, piece)
            write_weights(tile, past, scratch, piece, sums)
            add_values(tile, past, scratch, piece, sums)
        starter, involved = 0, 0
        for t in range(threads - 1, -1, -1):
            begins, ends = part(t, threads, total, work, cost, pieces)
            if begins < ends:
                starter, involved = t, involved + 1
        counter = scratch_of(tile.step, starter)
        if simd.atomic_add(counter, 1) + 1 < involved:
            return
        simd.atomic_store(counter, 0)
        for t in range(threads):
            begins, ends = part(t, threads, total, work, cost, pieces)
            for i in range(begins, ends):
                join(tile.rows, scratch, apart(t, begins, pieces, i, tile.step))
        finish(tile, scratch)

    return some
