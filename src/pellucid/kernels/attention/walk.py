"""The walk of a tile over its context: scores, softmax and weighted values, piece by piece.

The result of a piece is the rows' sums followed by their states. It is written to an address that the caller chooses,
and then joined to the pieces before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pellucid.kernels.attention.inner_loops import softmax_of_row
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.kernels.attention.page_loops import PageLoops, page_loops
from pellucid.kernels.attention.rows import PIECE, ROWS, SCORES, STATE, RowHelpers, ScratchLayout
from pellucid.kernels.matmul.quantize import block_bytes, quantize_blocks


class Walk(NamedTuple):
    """The helpers that ``walk`` makes, in call order; ``write_scores`` to ``join`` are called for each piece.

    A tile of one piece needs neither ``clear`` nor ``join``: joining the first piece copies it, bit for bit.
    ``add_scores`` does nothing, and disentangled attention replaces it (``attention/disentangled.py``).
    """

    begin: Any
    clear: Any
    write_scores: Any
    add_scores: Any
    write_weights: Any
    add_values: Any
    join: Any
    finish: Any


def walk(simd: Any, at: Any, rows: RowHelpers, space: ScratchLayout, kv_dtype: str, activation_bits: int) -> Walk:
    """Make the helpers for a tile. ``at`` holds the field offsets of attention's record.

    Call these helpers directly, not through another helper: Numba optimises all code below a function again for every
    level of calls, and the inner loops dominate the compile time.
    """
    from pellucid.kernels.simd.emitter import TARGET

    # Distance of the ``further`` prefetch in tokens: the first distance in ``TARGET.stream``, converted to whole pages
    # of keys, and at least two pages.
    head_dim, value_dim = space.head_dim, space.value_dim
    far = PAGE * max(2, TARGET.stream[0][0] // head_bytes(kv_dtype, head_dim))
    loops = page_loops(simd, head_dim, value_dim, kv_dtype, SCORES)
    keys_of = page_of(simd, at.keys, at.page_bytes, head_bytes(kv_dtype, head_dim))
    values_of = page_of(simd, at.values, at.page_bytes, head_bytes(kv_dtype, value_dim))

    @simd.jit
    def add_no_scores(tile, context, scratch, piece):
        pass

    return Walk(
        _begin(simd, at, rows, loops, space),
        _clear(simd, space),
        _scores(simd, rows, loops, space, keys_of, values_of, far),
        add_no_scores,
        _weights(simd, at, rows, loops, space),
        _values(simd, rows, loops, space, keys_of, values_of, far),
        _join(simd, space),
        _finish(simd, at, rows, space, activation_bits),
    )


def _begin(simd: Any, at: Any, rows: RowHelpers, loops: PageLoops, space: ScratchLayout) -> Any:
    load, splat, vload = simd.load_i64, simd.splat, simd.vload
    place_of, store16, number_bytes = rows.place_of, loops.store, loops.size
    queries_at, head_dim = space.queries, space.head_dim

    @simd.jit
    def begin(tile, scratch):
        """Store the tile's queries, scaled."""
        scale = splat(np.float32(simd.load_f64(tile.record + at.scale)))
        for r in range(tile.rows):
            q = load(tile.record + at.q) + place_of(tile, tile.first + r) * head_dim * 4
            for i in range(0, head_dim, 16):
                store16(scratch + queries_at + (r * head_dim + i) * number_bytes, vload(q + i * 4) * scale)

    return begin


def _clear(simd: Any, space: ScratchLayout) -> Any:
    vstore, splat, store_f32 = simd.vstore, simd.splat, simd.store_f32
    totals_at, states_at, out_bytes = space.totals, space.states, space.value_dim * 4
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def clear(rows, scratch):
        """Clear the totals and states of a tile's rows."""
        for r in range(rows):
            for i in range(0, out_bytes, 64):
                vstore(scratch + totals_at + r * out_bytes + i, splat(0.0))
            store_f32(scratch + states_at + r * STATE, minus_infinity)
            store_f32(scratch + states_at + r * STATE + 4, np.float32(0))

    return clear


def page_of(simd: Any, in_page_0: int, page_bytes: int, each: int) -> Any:
    """Make the helper that locates a head's keys or values in a page.

    ``in_page_0`` and ``page_bytes`` are offsets of fields of the record; ``each`` is the size of one head in bytes.
    """
    load, load_i32 = simd.load_i64, simd.load_i32

    @simd.jit
    def place_of(tile, context, token):
        """Return the head's address in the page that holds a token."""
        head = load(tile.record + in_page_0) + tile.kv_head * each
        return head + load_i32(context.pages + token // PAGE * 4) * load(tile.record + page_bytes)

    return place_of


def _scores(
    simd: Any, rows: RowHelpers, loops: PageLoops, space: ScratchLayout, keys_of: Any, values_of: Any, far: int
) -> Any:
    seen, open_keys, scores = rows.seen, loops.open_keys, loops.scores
    page_at, queries_at, weights_at = space.page, space.queries, space.weights
    query_bytes = space.head_dim * loops.size

    @simd.jit
    def after_keys(tile, context, start, stop, token):
        """Return the address that the walk reads at ``token``: keys before ``stop``, then values from ``start`` on."""
        if token < stop:
            return keys_of(tile, context, token)
        return values_of(tile, context, min(start + token - stop, stop - 1))

    @simd.jit
    def write_scores(tile, context, scratch, piece):
        """Compute the scores of a piece, page by page, and prefetch the data that follows."""
        page, (begin, end) = scratch + page_at, seen(tile, context, tile.first, tile.rows)
        start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
        for t0 in range(start, stop, PAGE):
            here = keys_of(tile, context, t0)
            ahead = after_keys(tile, context, start, stop, t0 + PAGE) - here
            further = after_keys(tile, context, start, stop, t0 + far) - here
            open_keys(tile.rows, here, page)
            for sub in range(0, tile.rows, ROWS):
                count = min(ROWS, tile.rows - sub)
                low, high = seen(tile, context, tile.first + sub, count)
                queries, out = scratch + queries_at + sub * query_bytes, scratch + weights_at + sub * SCORES
                first, last = max(low, t0), min(high, t0 + PAGE)
                if first < last:
                    to = out + (first - piece) * 4
                    scores(tile.rows, count, queries, here, page, first - t0, ahead, further, last - first, to)

    return write_scores


def _weights(simd: Any, at: Any, rows: RowHelpers, loops: PageLoops, space: ScratchLayout) -> Any:
    load, vstore, splat, seen, limits = simd.load_i64, simd.vstore, simd.splat, rows.seen, rows.limits
    softmax, number_bytes = softmax_of_row(simd, loops.store, loops.size), loops.size
    weights_at, out_bytes = space.weights, space.value_dim * 4

    @simd.jit
    def write_weights(tile, context, scratch, piece, sums):
        """Turn the scores of a piece into weights, write the rows' states, and clear the rows' sums."""
        record, states = tile.record, sums + tile.rows * out_bytes
        cap = np.float32(simd.load_f64(record + at.softcap))
        bias, bias_stride = load(record + at.bias), load(record + at.bias_stride)
        bias_step = load(record + at.bias_step)
        for sub in range(0, tile.rows, ROWS):
            count = min(ROWS, tile.rows - sub)
            low, high = seen(tile, context, tile.first + sub, count)
            low, high = max(low, piece), min(high, piece + PIECE)
            for r in range(sub, sub + count):
                position, first, last = limits(tile, context, tile.first + r)
                row, row_bias = scratch + weights_at + r * SCORES, 0
                if bias != 0:
                    head = tile.kv_head * tile.group + (tile.first + r) % tile.group
                    row_bias = bias + head * bias_stride - position * bias_step
                row_scores, row_weights = row + (low - piece) * 4, row + (low - piece) * number_bytes
                state = states + r * STATE
                softmax(row_scores, row_weights, low, high, first, last, cap, row_bias, state)
                for i in range(0, out_bytes, 64):
                    vstore(sums + r * out_bytes + i, splat(0.0))

    return write_weights


def _values(
    simd: Any, rows: RowHelpers, loops: PageLoops, space: ScratchLayout, keys_of: Any, values_of: Any, far: int
) -> Any:
    seen, open_values, values = rows.seen, loops.open_values, loops.values
    page_at, weights_at = space.page, space.weights
    out_bytes, number_bytes = space.value_dim * 4, loops.size

    @simd.jit
    def after_values(tile, context, stop, end, token, here):
        """Return the address that the walk reads at ``token``: values before ``stop``, then keys of later tokens."""
        if token < stop:
            return values_of(tile, context, token)
        if token < end:
            return keys_of(tile, context, token)
        return here

    @simd.jit
    def add_values(tile, context, scratch, piece, sums):
        """Add a piece's weighted values to the rows' sums, and prefetch the data that follows."""
        page, (begin, end) = scratch + page_at, seen(tile, context, tile.first, tile.rows)
        start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
        for t0 in range(start, stop, PAGE):
            here = values_of(tile, context, t0)
            ahead = after_values(tile, context, stop, end, t0 + PAGE, here) - here
            further = after_values(tile, context, stop, end, t0 + far, here) - here
            open_values(tile.rows, here, page)
            for sub in range(0, tile.rows, ROWS):
                count = min(ROWS, tile.rows - sub)
                low, high = seen(tile, context, tile.first + sub, count)
                low, high = max(low, t0), min(high, t0 + PAGE)
                if low < high:
                    w = scratch + weights_at + sub * SCORES + (low - piece) * number_bytes
                    to = sums + sub * out_bytes
                    values(tile.rows, count, w, here, page, low - t0, ahead, further, high - low, to)

    return add_values


def _join(simd: Any, space: ScratchLayout) -> Any:
    load_f32, store_f32, vload, vstore = simd.load_f32, simd.store_f32, simd.vload, simd.vstore
    splat, fma, vexp, lane0 = simd.splat, simd.fma, simd.vexp, simd.lane0
    totals_at, states_at, out_bytes = space.totals, space.states, space.value_dim * 4
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def join_row(total, state, piece_sum, piece_state):
        """Join a row's piece to the pieces before it; a no-op if the row sees no token of the piece."""
        top, largest = load_f32(state), load_f32(piece_state)
        if largest == minus_infinity:
            return
        highest = max(top, largest)
        old, new = vexp(splat(top - highest)), vexp(splat(largest - highest))
        store_f32(state, highest)
        store_f32(state + 4, lane0(fma(splat(load_f32(piece_state + 4)), new, splat(load_f32(state + 4)) * old)))
        for i in range(0, out_bytes, 64):
            vstore(total + i, fma(vload(piece_sum + i), new, vload(total + i) * old))

    @simd.jit
    def join(rows, scratch, sums):
        """Join a piece to the pieces before it."""
        totals, states, piece_states = scratch + totals_at, scratch + states_at, sums + rows * out_bytes
        for r in range(rows):
            join_row(totals + r * out_bytes, states + r * STATE, sums + r * out_bytes, piece_states + r * STATE)

    return join


def _finish(simd: Any, at: Any, rows: RowHelpers, space: ScratchLayout, activation_bits: int) -> Any:
    load, load_f32, vload, vstore = simd.load_i64, simd.load_f32, simd.vload, simd.vstore
    splat, vexp, lane0, place_of = simd.splat, simd.vexp, simd.lane0, rows.place_of
    quantize, q_bytes = quantize_blocks(simd, activation_bits), block_bytes(activation_bits)
    blocks, out_bytes = space.value_dim // 32, space.value_dim * 4

    @simd.jit
    def share_of(state, sinks, head):
        """Return the factor of a row's sums: 1 / the sum of all weights, including the weight of a sink."""
        if sinks == 0:
            return np.float32(1) / load_f32(state + 4)
        top, sink = load_f32(state), load_f32(sinks + 4 * head)
        highest = max(top, sink)
        tokens, nothing = lane0(vexp(splat(top - highest))), lane0(vexp(splat(sink - highest)))
        return tokens / (load_f32(state + 4) * tokens + nothing)

    @simd.jit
    def finish(tile, totals, states):
        """Write the rows' results from their sums of weighted values and their states."""
        heads, quantized = load(tile.record + at.heads), load(tile.record + at.quantized)
        for r in range(tile.rows):
            place = place_of(tile, tile.first + r)
            out, state = load(tile.record + at.out) + place * out_bytes, states + r * STATE
            share = splat(share_of(state, load(tile.record + at.sinks), place % heads))
            for i in range(0, out_bytes, 64):
                vstore(out + i, vload(totals + r * out_bytes + i) * share)
            if quantized != 0:
                quantize(out, quantized + place * blocks * q_bytes, blocks, 0)

    return finish
