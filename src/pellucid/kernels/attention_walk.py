"""A tile of rows on its way through the past: its scores, softmax and values, piece by piece.

A *row* is one query head of one token. The rows of a tile share a key/value head of a sequence (heads of its group, or
neighbouring tokens), and number from 0 up in the order (token, head of the group).

A tile's work space, in a thread's scratch, is laid out by ``Space``; what is left of a piece lies there until it is
joined to the pieces before it, or is put *apart* (``keep``) for whoever joins all pieces of a tile (``attention.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.kernels.attention_tiles import (
    scores_tile,
    softmax_of_rows,
    values_tile,
    widen_keys,
    widen_values,
)
from pellucid.kernels.cached import PAGE, head_bytes
from pellucid.kernels.quantize import block_bytes, quantize_block
from pellucid.kernels.record import SCRATCH_HEADER, Step

ROWS = 8  # rows that the inner loops take at once
TOGETHER = 64  # rows of a tile at most
SPAN = 32  # tokens whose scores are taken at once
PIECE = 512  # tokens that have a softmax of their own
AHEAD = 1  # pages between what is asked for and what is read
STATE = 16  # bytes a row: largest score and sum so far, then the piece's
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
    def sums(self) -> int:
        """(TOGETHER, V): a piece's weighted values."""
        return self.queries + TOGETHER * self.head_dim * 4

    @property
    def totals(self) -> int:
        """(TOGETHER, V): those of all pieces so far."""
        return self.sums + TOGETHER * self.value_dim * 4

    @property
    def page(self) -> int:
        """A page's keys or values, widened."""
        return self.totals + TOGETHER * self.value_dim * 4

    @property
    def weights(self) -> int:
        """(TOGETHER, PIECE): scores, then weights."""
        return self.page + PAGE * 4 * max(self.head_dim, self.value_dim)

    @property
    def states(self) -> int:
        """TOGETHER states."""
        return self.weights + TOGETHER * SCORES

    @property
    def apart(self) -> int:
        """Pieces that are kept apart."""
        return self.states + TOGETHER * STATE

    @property
    def piece(self) -> int:
        """Bytes of one that is: up to ROWS sums, then as many states."""
        return ROWS * (4 * self.value_dim + STATE)

    def bytes(self, context: int) -> int:
        """The whole scratch, if no sequence is longer than ``context`` tokens."""
        return self.apart + 2 * (-(-context // PIECE) + 1) * self.piece


def walk(simd: Any, at: Any, head_dim: int, value_dim: int, stored: str, planes: int) -> Any:
    """Helpers for a tile: (seen_by, begin, piece, join, keep, join_kept, finish); ``at`` has the record's fields."""
    load, load_i32, load_f32, store_f32 = simd.load_i64, simd.load_i32, simd.load_f32, simd.store_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    vexp, lane0 = simd.vexp, simd.lane0
    scores, values = _by_count(simd, head_dim, value_dim, stored)
    wide_scores, wide_values = (
        scores_tile(simd, ROWS, head_dim, "f32"),
        values_tile(simd, ROWS, value_dim, "f32"),
    )
    wider_keys, wider_values = widen_keys(simd, head_dim, stored), widen_values(simd, value_dim, stored)
    softmax, quantize = softmax_of_rows(simd), quantize_block(simd, planes)
    step_at, space = Step.at, Space(head_dim, value_dim)
    in_queries, in_sums, in_totals, in_page = space.queries, space.sums, space.totals, space.page
    in_weights, in_states = space.weights, space.states
    row_bytes, out_bytes, q_bytes = head_dim * 4, value_dim * 4, block_bytes(planes)
    key_head, value_head = head_bytes(stored, head_dim), head_bytes(stored, value_dim)
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def ahead_of(number, first, count, last, pages, page_bytes, keys, stored):
        """Bytes from what is read now to what is read ``AHEAD`` pages later; 0 if nothing is.

        A piece's ``count`` pages from page ``first`` on are read twice, for keys and for values, then those of the next
        piece, up to page ``last``; ``number`` counts them from the piece's first.
        """
        base, page, later = keys, first + number, number + AHEAD
        if number >= count:
            base, page = stored, first + number - count
        to, then = keys, first + later
        if later >= 2 * count:
            then -= count
            if then >= last:
                return 0
        elif later >= count:
            to, then = stored, first + later - count
        return to - base + (load_i32(pages + then * 4) - load_i32(pages + page * 4)) * page_bytes

    @simd.jit
    def past_of(record, step, s):
        """Tokens that sequence s attends to, where their pages are, and the position of its first row."""
        length = load_i32(load(step + step_at.length) + 4 * s)
        past = length - load_i32(load(step + step_at.row_count) + 4 * s)
        pages = load(step + step_at.pages)
        if load(record + at.memory) != 0:
            length, pages = (
                load_i32(load(step + step_at.memory_length) + 4 * s),
                load(step + step_at.memory_pages),
            )
        return length, pages + s * load(step + step_at.page_stride) * 4, past

    @simd.jit
    def seen(record, length, earliest, latest):
        """Which tokens any of the queries at positions ``earliest`` to ``latest`` sees, from a whole span on."""
        window = load(record + at.window)
        begin, end = 0, length
        if load(record + at.causal) != 0:
            end = latest + 1
        if window != 0:
            begin = max(0, earliest - window + 1) // SPAN * SPAN
        return begin, end

    @simd.jit
    def seen_by(record, step, s, first, rows):
        """Which tokens a tile sees."""
        group = load(record + at.heads) // load(record + at.kv_heads)
        length, _, past = past_of(record, step, s)
        return seen(record, length, past + first // group, past + (first + rows - 1) // group)

    @simd.jit
    def begin(record, step, s, kv_head, first, rows, scratch):
        """Rows ``first`` to ``first + rows`` of sequence s and a key/value head: nothing is seen yet."""
        heads, group = load(record + at.heads), load(record + at.heads) // load(record + at.kv_heads)
        token0 = load_i32(load(step + step_at.first_row) + 4 * s)
        scale = splat(np.float32(simd.load_f64(record + at.scale)))
        for r in range(rows):
            row = first + r
            place = (token0 + row // group) * heads + kv_head * group + row % group
            q = load(record + at.q) + place * row_bytes
            for i in range(0, row_bytes, 64):
                vstore(scratch + in_queries + r * row_bytes + i, vload(q + i) * scale)
            for i in range(0, out_bytes, 64):
                vstore(scratch + in_totals + r * out_bytes + i, splat(0.0))
            store_f32(scratch + in_states + r * STATE, minus_infinity)
            store_f32(scratch + in_states + r * STATE + 4, np.float32(0))

    @simd.jit
    def piece(record, step, s, kv_head, first, rows, scratch, piece):
        """What the tile makes of the tokens from ``piece`` on: sums, and the second halves of the states."""
        group = load(record + at.heads) // load(record + at.kv_heads)
        length, pages, past = past_of(record, step, s)
        queries, sums, page = scratch + in_queries, scratch + in_sums, scratch + in_page
        weights, states = scratch + in_weights, scratch + in_states
        cap = np.float32(simd.load_f64(record + at.softcap))
        page_bytes = load(record + at.page_bytes)
        keys, stored = (
            load(record + at.keys) + kv_head * key_head,
            load(record + at.values) + kv_head * value_head,
        )
        bias, bias_stride = load(record + at.bias), load(record + at.bias_stride)
        begin, end = seen(record, length, past + first // group, past + (first + rows - 1) // group)
        start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
        number, count_pages, first_page = 0, (stop - start + PAGE - 1) // PAGE, start // PAGE
        last_page = (end + PAGE - 1) // PAGE
        for t0 in range(start, stop, PAGE):
            here = keys + load_i32(pages + t0 // PAGE * 4) * page_bytes
            ahead = ahead_of(number, first_page, count_pages, last_page, pages, page_bytes, keys, stored)
            number += 1
            if rows > ROWS:
                wider_keys(here, page)
            for sub in range(0, rows, ROWS):
                count, row = min(ROWS, rows - sub), first + sub
                low, high = seen(record, length, past + row // group, past + (row + count - 1) // group)
                for t in range(max(low, t0), min(high, t0 + PAGE), SPAN):
                    q, to = queries + sub * row_bytes, weights + sub * SCORES + (t - piece) * 4
                    if rows > ROWS and count == ROWS:
                        wide_scores(q, page, t - t0, 0, to, SCORES)
                    else:
                        scores(count, q, here, t - t0, ahead, to)

        for sub in range(0, rows, ROWS):
            count, row = min(ROWS, rows - sub), first + sub
            low, high = seen(record, length, past + row // group, past + (row + count - 1) // group)
            low, high = max(low, piece), min(high, piece + PIECE)
            for r in range(sub, sub + count):
                position = past + (first + r) // group
                last, earliest = length, 0
                if load(record + at.causal) != 0:
                    last = position + 1
                if load(record + at.window) != 0:
                    earliest = max(0, position - load(record + at.window) + 1)
                row_weights, row_bias = weights + r * SCORES + (low - piece) * 4, 0
                if load(record + at.biased) != 0:
                    row_bias = bias + (kv_head * group + (first + r) % group) * bias_stride - position * 4
                softmax(row_weights, low, high, earliest, last, cap, row_bias, states + r * STATE + 8)
                for i in range(0, out_bytes, 64):
                    vstore(sums + r * out_bytes + i, splat(0.0))

        for t0 in range(start, stop, PAGE):
            here = stored + load_i32(pages + t0 // PAGE * 4) * page_bytes
            ahead = ahead_of(number, first_page, count_pages, last_page, pages, page_bytes, keys, stored)
            number += 1
            if rows > ROWS:
                wider_values(here, page)
            for sub in range(0, rows, ROWS):
                count, row = min(ROWS, rows - sub), first + sub
                low, high = seen(record, length, past + row // group, past + (row + count - 1) // group)
                low, high = max(low, t0), min(high, t0 + PAGE)
                if low < high:
                    w, to = weights + sub * SCORES + (low - piece) * 4, sums + sub * out_bytes
                    if rows > ROWS and count == ROWS:
                        wide_values(w, SCORES, page, low - t0, 0, high - low, to)
                    else:
                        values(count, w, here, low - t0, ahead, high - low, to)

    @simd.jit
    def join_row(state, totals, largest, total, sums):
        """A row's piece, joined to those before it; nothing if no token of it is seen."""
        if largest == minus_infinity:
            return
        top = load_f32(state)
        highest = max(top, largest)
        old, new = vexp(splat(top - highest)), vexp(splat(largest - highest))
        store_f32(state, highest)
        store_f32(state + 4, lane0(fma(splat(total), new, splat(load_f32(state + 4)) * old)))
        for i in range(0, out_bytes, 64):
            vstore(totals + i, fma(vload(sums + i), new, vload(totals + i) * old))

    @simd.jit
    def join(rows, scratch):
        """The piece, joined to those before it."""
        for r in range(rows):
            state, at_row = scratch + in_states + r * STATE, r * out_bytes
            join_row(
                state,
                scratch + in_totals + at_row,
                load_f32(state + 8),
                load_f32(state + 12),
                scratch + in_sums + at_row,
            )

    @simd.jit
    def keep(rows, scratch, where):
        """The piece of a tile of at most ROWS rows, put apart."""
        for i in range(0, rows * out_bytes, 64):
            vstore(where + i, vload(scratch + in_sums + i))
        for r in range(rows):
            state = scratch + in_states + r * STATE
            store_f32(where + ROWS * out_bytes + r * STATE, load_f32(state + 8))
            store_f32(where + ROWS * out_bytes + r * STATE + 4, load_f32(state + 12))

    @simd.jit
    def join_kept(rows, scratch, where):
        """A piece that was put apart, joined to those before it."""
        for r in range(rows):
            kept, at_row = where + ROWS * out_bytes + r * STATE, r * out_bytes
            join_row(
                scratch + in_states + r * STATE,
                scratch + in_totals + at_row,
                load_f32(kept),
                load_f32(kept + 4),
                where + at_row,
            )

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
        heads, group = load(record + at.heads), load(record + at.heads) // load(record + at.kv_heads)
        token0 = load_i32(load(step + step_at.first_row) + 4 * s)
        quantized = load(record + at.quantized)
        for r in range(rows):
            row = first + r
            place = (token0 + row // group) * heads + kv_head * group + row % group
            out, state = load(record + at.out) + place * out_bytes, scratch + in_states + r * STATE
            share = splat(share_of(state, load(record + at.sinks), place % heads))
            for i in range(0, out_bytes, 64):
                vstore(out + i, vload(scratch + in_totals + r * out_bytes + i) * share)
            if quantized != 0:
                for block in range(value_dim // 32):
                    quantize(out + block * 128, quantized + (place * (value_dim // 32) + block) * q_bytes)

    return seen_by, begin, piece, join, keep, join_kept, finish


def _by_count(simd: Any, head_dim: int, value_dim: int, stored: str) -> Any:
    """The inner loops for any number of rows, of which some take as many at once as there are."""
    row_bytes, out_bytes = head_dim * 4, value_dim * 4
    scores8, scores4, scores3, scores2, scores1 = (
        scores_tile(simd, n, head_dim, stored) for n in (8, 4, 3, 2, 1)
    )
    values8, values4, values3, values2, values1 = (
        values_tile(simd, n, value_dim, stored) for n in (8, 4, 3, 2, 1)
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
            rows, queries, out = rows - done, queries + done * row_bytes, out + done * SCORES

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
