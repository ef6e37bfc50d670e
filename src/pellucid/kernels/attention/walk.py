"""A tile of rows on its way through the past: its scores, softmax and values, piece by piece.

A *row* is one query head of one token. The rows of a tile share a key/value head of a sequence (heads of its group, or
neighbouring tokens), and number from 0 up in the order (token, head of the group).

A tile's work space, in a thread's scratch, is laid out by ``Space``. What a piece comes to, its rows' sums and then
their states, is written where the caller wants it, and joined to the pieces before it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from pellucid.kernels.attention import bf16_tiles, tiles
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.kernels.attention.tiles import softmax_of_rows, widen_keys, widen_values
from pellucid.kernels.core.record import SCRATCH_HEADER, StepRecord
from pellucid.kernels.matmul.quantize import block_bytes, quantize_block

ROWS = 8  # rows that the inner loops take at once
TOGETHER = 64  # rows of a tile at most
SPAN = 32  # tokens whose scores are taken at once
PIECE = 512  # tokens that have a softmax of their own
STATE = 8  # bytes a row: the largest score, and the sum of the weights
SCORES = (
    PIECE * 4 + 64
)  # bytes from one row of scores to the next: no power of two, which would crowd the cache


@dataclass(frozen=True)
class Space:
    """Where things are in a thread's scratch, in bytes from its start, for heads of widths K and V."""

    head_dim: int
    value_dim: int

    @property
    def queries(self) -> int:
        """(TOGETHER, K), scaled."""
        return SCRATCH_HEADER

    @property
    def totals(self) -> int:
        """(TOGETHER, V): the weighted values of all pieces so far."""
        return self.queries + TOGETHER * self.head_dim * 4

    @property
    def states(self) -> int:
        """TOGETHER states, of all pieces so far."""
        return self.totals + TOGETHER * self.value_dim * 4

    @property
    def page(self) -> int:
        """A page's keys or values, widened."""
        return self.states + TOGETHER * STATE

    @property
    def weights(self) -> int:
        """(TOGETHER, PIECE): scores, then weights."""
        return self.page + PAGE * 4 * max(self.head_dim, self.value_dim)

    @property
    def piece(self) -> int:
        """What a piece comes to."""
        return self.weights + TOGETHER * SCORES

    @property
    def apart(self) -> int:
        """What pieces come to that are put apart, of tiles of at most ROWS rows."""
        return self.piece + self.piece_bytes(TOGETHER)

    def piece_bytes(self, rows: int) -> int:
        """Bytes of what a piece comes to: the rows' sums, then their states."""
        return rows * (4 * self.value_dim + STATE)

    def bytes(self, context: int) -> int:
        """The whole scratch, if no sequence is longer than ``context`` tokens."""
        return self.apart + 2 * (-(-context // PIECE) + 1) * self.piece_bytes(ROWS)


def walk(simd: Any, at: Any, head_dim: int, value_dim: int, kv_dtype: str, activation_bits: int) -> Any:
    """Helpers for a tile: (seen_by, begin, piece, join, finish); ``at`` has the record's fields."""
    load, load_i32, load_f32, store_f32 = simd.load_i64, simd.load_i32, simd.load_f32, simd.store_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    vexp, lane0 = simd.vexp, simd.lane0
    loops, keep, number = _loops(simd, head_dim, value_dim, kv_dtype)
    open_keys, scores, open_values, values = loops
    softmax, quantize = softmax_of_rows(simd, keep, number), quantize_block(simd, activation_bits)
    step_at, space = StepRecord.at, Space(head_dim, value_dim)
    in_queries, in_totals, in_states = space.queries, space.totals, space.states
    in_page, in_weights = space.page, space.weights
    row_bytes, out_bytes, q_bytes = head_dim * 4, value_dim * 4, block_bytes(activation_bits)
    query_bytes = head_dim * number
    key_head, value_head = head_bytes(kv_dtype, head_dim), head_bytes(kv_dtype, value_dim)
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def page_of(head, pages, token, page_bytes):
        """Where a head's keys, or values, begin in the page that has a token."""
        return head + load_i32(pages + token // PAGE * 4) * page_bytes

    @simd.jit
    def past_of(record, step, s):
        """Tokens that sequence s attends to, where their pages are, and the position of its first row."""
        length = load_i32(load(step + step_at.length) + 4 * s)
        past = length - load_i32(load(step + step_at.row_count) + 4 * s)
        pages = load(step + step_at.pages)
        if load(record + at.cross) != 0:
            length, pages = (
                load_i32(load(step + step_at.encoder_length) + 4 * s),
                load(step + step_at.encoder_pages),
            )
        return length, pages + s * load(step + step_at.page_stride) * 4, past

    @simd.jit
    def seen(record, length, past, group, first, rows):
        """Which tokens any of ``rows`` rows from ``first`` on sees, from a whole span on."""
        window = load(record + at.window)
        begin, end = 0, length
        if load(record + at.causal) != 0:
            end = past + (first + rows - 1) // group + 1
        if window != 0:
            begin = max(0, past + first // group - window + 1) // SPAN * SPAN
        return begin, end

    @simd.jit
    def seen_by(record, step, s, first, rows):
        """Which tokens a tile sees."""
        group = load(record + at.heads) // load(record + at.kv_heads)
        length, _, past = past_of(record, step, s)
        return seen(record, length, past, group, first, rows)

    @simd.jit
    def place_of(record, step, s, kv_head, row):
        """Which of all tokens' heads a row is."""
        heads, group = load(record + at.heads), load(record + at.heads) // load(record + at.kv_heads)
        token0 = load_i32(load(step + step_at.first_row) + 4 * s)
        return (token0 + row // group) * heads + kv_head * group + row % group

    @simd.jit
    def begin(record, step, s, kv_head, first, rows, scratch):
        """Rows ``first`` to ``first + rows`` of sequence s and a key/value head: nothing is seen yet."""
        scale = splat(np.float32(simd.load_f64(record + at.scale)))
        for r in range(rows):
            q = load(record + at.q) + place_of(record, step, s, kv_head, first + r) * row_bytes
            for i in range(0, head_dim, 16):
                keep(scratch + in_queries + r * query_bytes + i * number, vload(q + i * 4) * scale)
            for i in range(0, out_bytes, 64):
                vstore(scratch + in_totals + r * out_bytes + i, splat(0.0))
            store_f32(scratch + in_states + r * STATE, minus_infinity)
            store_f32(scratch + in_states + r * STATE + 4, np.float32(0))

    @simd.jit
    def piece(record, step, s, kv_head, first, rows, scratch, piece, sums):
        """What the tile makes of the tokens from ``piece`` on: its rows' sums, and then their states."""
        group = load(record + at.heads) // load(record + at.kv_heads)
        length, pages, past = past_of(record, step, s)
        queries, page, weights = scratch + in_queries, scratch + in_page, scratch + in_weights
        states = sums + rows * out_bytes
        cap = np.float32(simd.load_f64(record + at.softcap))
        page_bytes = load(record + at.page_bytes)
        keys, kv_dtype = (
            load(record + at.keys) + kv_head * key_head,
            load(record + at.values) + kv_head * value_head,
        )
        bias, bias_stride = load(record + at.bias), load(record + at.bias_stride)
        begin, end = seen(record, length, past, group, first, rows)
        start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
        for t0 in range(start, stop, PAGE):
            here, then = page_of(keys, pages, t0, page_bytes), page_of(kv_dtype, pages, start, page_bytes)
            if t0 + PAGE < stop:
                then = page_of(keys, pages, t0 + PAGE, page_bytes)
            open_keys(rows, here, page)
            for sub in range(0, rows, ROWS):
                count = min(ROWS, rows - sub)
                low, high = seen(record, length, past, group, first + sub, count)
                for t in range(max(low, t0), min(high, t0 + PAGE), SPAN):
                    q, to = queries + sub * query_bytes, weights + sub * SCORES + (t - piece) * 4
                    scores(rows, count, q, here, page, t - t0, then - here, to)

        for sub in range(0, rows, ROWS):
            count = min(ROWS, rows - sub)
            low, high = seen(record, length, past, group, first + sub, count)
            low, high = max(low, piece), min(high, piece + PIECE)
            for r in range(sub, sub + count):
                position = past + (first + r) // group
                last, earliest = length, 0
                if load(record + at.causal) != 0:
                    last = position + 1
                if load(record + at.window) != 0:
                    earliest = max(0, position - load(record + at.window) + 1)
                row_scores = weights + r * SCORES + (low - piece) * 4
                row_weights, row_bias = weights + r * SCORES + (low - piece) * number, 0
                if bias != 0:
                    row_bias = bias + (kv_head * group + (first + r) % group) * bias_stride - position * 4
                state = states + r * STATE
                softmax(row_scores, row_weights, low, high, earliest, last, cap, row_bias, state)
                for i in range(0, out_bytes, 64):
                    vstore(sums + r * out_bytes + i, splat(0.0))

        for t0 in range(start, stop, PAGE):
            here = page_of(kv_dtype, pages, t0, page_bytes)
            then = here
            if t0 + PAGE < stop:
                then = page_of(kv_dtype, pages, t0 + PAGE, page_bytes)
            elif t0 + PAGE < end:
                then = page_of(keys, pages, t0 + PAGE, page_bytes)
            open_values(rows, here, page)
            for sub in range(0, rows, ROWS):
                count = min(ROWS, rows - sub)
                low, high = seen(record, length, past, group, first + sub, count)
                low, high = max(low, t0), min(high, t0 + PAGE)
                if low < high:
                    w, to = weights + sub * SCORES + (low - piece) * number, sums + sub * out_bytes
                    values(rows, count, w, here, page, low - t0, then - here, high - low, to)

    @simd.jit
    def join_row(total, state, sum, told):
        """A row's piece, joined to those before it; nothing if no token of it is seen."""
        top, largest = load_f32(state), load_f32(told)
        if largest == minus_infinity:
            return
        highest = max(top, largest)
        old, new = vexp(splat(top - highest)), vexp(splat(largest - highest))
        store_f32(state, highest)
        store_f32(state + 4, lane0(fma(splat(load_f32(told + 4)), new, splat(load_f32(state + 4)) * old)))
        for i in range(0, out_bytes, 64):
            vstore(total + i, fma(vload(sum + i), new, vload(total + i) * old))

    @simd.jit
    def join(rows, scratch, sums):
        """What a piece has come to, joined to the pieces before it."""
        totals, states, told = scratch + in_totals, scratch + in_states, sums + rows * out_bytes
        for r in range(rows):
            join_row(totals + r * out_bytes, states + r * STATE, sums + r * out_bytes, told + r * STATE)

    @simd.jit
    def share_of(state, sinks, head):
        """What a row's sums are multiplied by: 1 / the sum of all weights, a sink's included."""
        if sinks == 0:
            return np.float32(1) / load_f32(state + 4)
        top, sink = load_f32(state), load_f32(sinks + 4 * head)
        highest = max(top, sink)
        tokens, nothing = lane0(vexp(splat(top - highest))), lane0(vexp(splat(sink - highest)))
        return tokens / (load_f32(state + 4) * tokens + nothing)

    @simd.jit
    def finish(record, step, s, kv_head, first, rows, scratch):
        """All pieces are joined: the rows' results."""
        heads, quantized = load(record + at.heads), load(record + at.quantized)
        for r in range(rows):
            place = place_of(record, step, s, kv_head, first + r)
            out, state = load(record + at.out) + place * out_bytes, scratch + in_states + r * STATE
            share = splat(share_of(state, load(record + at.sinks), place % heads))
            for i in range(0, out_bytes, 64):
                vstore(out + i, vload(scratch + in_totals + r * out_bytes + i) * share)
            if quantized != 0:
                for block in range(value_dim // 32):
                    quantize(out + block * 128, quantized + (place * (value_dim // 32) + block) * q_bytes)

    return seen_by, begin, piece, join, finish


def _loops(simd: Any, head_dim: int, value_dim: int, kv_dtype: str) -> Any:
    """Helpers for a page, ((open_keys, scores, open_values, values), store, size).

    Opened is a page that ``rows`` rows are about to meet. ``store`` puts 16 numbers of a query, or weights, of ``size``
    bytes each, to where the loops read them.
    """
    if kv_dtype == "bf16":
        from pellucid.kernels.simd import bf16_dot

        few_scores, few_values = _by_count(
            simd, head_dim, value_dim, kv_dtype, bf16_tiles, head_dim * bf16_dot.ROW_BYTES
        )

        @simd.jit
        def unopened(rows, here, page):
            pass

        @simd.jit
        def scores(rows, count, queries, here, page, token, ahead, out):
            few_scores(count, queries, here, token, ahead, out)

        @simd.jit
        def values(rows, count, weights, here, page, token, ahead, tokens, out):
            few_values(count, weights, here, token, ahead, tokens, out)

        return (unopened, scores, unopened, values), bf16_dot.store_row, bf16_dot.ROW_BYTES

    few_scores, few_values = _by_count(simd, head_dim, value_dim, kv_dtype, tiles, head_dim * 4)
    wide_scores = tiles.scores_tile(simd, ROWS, head_dim, "f32")
    wide_values = tiles.values_tile(simd, ROWS, value_dim, "f32")
    wider_keys, wider_values = widen_keys(simd, head_dim, kv_dtype), widen_values(simd, value_dim, kv_dtype)

    @simd.jit
    def open_keys(rows, here, page):
        if rows > ROWS:
            wider_keys(here, page)

    @simd.jit
    def wide_or_few_scores(rows, count, queries, here, page, token, ahead, out):
        if rows > ROWS and count == ROWS:
            wide_scores(queries, page, token, 0, out, SCORES)
        else:
            few_scores(count, queries, here, token, ahead, out)

    @simd.jit
    def open_values(rows, here, page):
        if rows > ROWS:
            wider_values(here, page)

    @simd.jit
    def wide_or_few_values(rows, count, weights, here, page, token, ahead, tokens, out):
        if rows > ROWS and count == ROWS:
            wide_values(weights, SCORES, page, token, 0, tokens, out)
        else:
            few_values(count, weights, here, token, ahead, tokens, out)

    return (open_keys, wide_or_few_scores, open_values, wide_or_few_values), simd.vstore, 4


def _by_count(
    simd: Any, head_dim: int, value_dim: int, kv_dtype: str, tiles: ModuleType, query_bytes: int
) -> Any:
    """The inner loops for any number of rows, of which some take as many at once as there are."""
    scores_tile, values_tile, out_bytes = tiles.scores_tile, tiles.values_tile, value_dim * 4
    scores8, scores4, scores3, scores2, scores1 = (
        scores_tile(simd, n, head_dim, kv_dtype) for n in (8, 4, 3, 2, 1)
    )
    values8, values4, values3, values2, values1 = (
        values_tile(simd, n, value_dim, kv_dtype) for n in (8, 4, 3, 2, 1)
    )

    @simd.jit
    def scores(rows, queries, keys, token, ahead, out):
        while rows > 0:
            if rows >= 8:
                scores8(queries, keys, token, ahead, out, SCORES)
                done = 8
            elif rows >= 4:
                scores4(queries, keys, token, ahead, out, SCORES)
                done = 4
            elif rows == 3:
                scores3(queries, keys, token, ahead, out, SCORES)
                done = 3
            elif rows == 2:
                scores2(queries, keys, token, ahead, out, SCORES)
                done = 2
            else:
                scores1(queries, keys, token, ahead, out, SCORES)
                done = 1
            rows, queries, out = rows - done, queries + done * query_bytes, out + done * SCORES

    @simd.jit
    def values(rows, weights, start, token, ahead, count, out):
        while rows > 0:
            if rows >= 8:
                values8(weights, SCORES, start, token, ahead, count, out)
                done = 8
            elif rows >= 4:
                values4(weights, SCORES, start, token, ahead, count, out)
                done = 4
            elif rows == 3:
                values3(weights, SCORES, start, token, ahead, count, out)
                done = 3
            elif rows == 2:
                values2(weights, SCORES, start, token, ahead, count, out)
                done = 2
            else:
                values1(weights, SCORES, start, token, ahead, count, out)
                done = 1
            rows, weights, out = rows - done, weights + done * SCORES, out + done * out_bytes

    return scores, values
