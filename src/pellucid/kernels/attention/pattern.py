"""Attention scores and patterns of some rows and heads, computed again from the queries and the cached keys.

    pattern = softmax(mask(softcap(scale * q Kᵀ) + bias))

In disentangled attention, the scores of positions are added first (``attention/disentangled.py``).

The attention kernel never has a whole row of scores in memory. This kernel computes the requested rows separately, so a
trace costs only the rows that it reads. Keys are read as the attention kernel reads them. With a sink a row sums to
less than 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.attention import inner_loops
from pellucid.kernels.attention.disentangled import POSITION_BYTES, PositionRecord, position_scores
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.kernels.attention.page_loops import page_loops
from pellucid.kernels.attention.rows import PIECE, SCORES, SPAN, RowsRecord, ScoresRecord, ScratchLayout, Tile, rows_of
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, WORD, Address, StepRecord
from pellucid.kernels.ops.elementwise import tanh_vector

ROW_WORDS = 2  # words of a listed row: its index in the step, and the index of its sequence


class TracePatternRecord(ScoresRecord):
    raw: int  # 1: the scores, minus infinity for tokens that are not seen; 0: the pattern
    first: int  # the first head
    count: int  # number of heads
    rows: Address  # (1 + 2 n,) int64: n, then for each row its index and its sequence's index
    out: Address  # (n, count, ...) float32; a row of tokens has room for whole spans
    out_stride: int  # bytes from one row to the next
    out_head: int  # bytes from one head to the next: the tokens, rounded up to SPAN


class TraceDisentangledRecord(TracePatternRecord, PositionRecord):
    """The fields of a pattern and of the scores of positions."""


@kernel("trace_pattern", TracePatternRecord)
def build(simd: Any, head_dim: int, kv_dtype: str) -> Any:
    """Build the patterns of attention."""

    @simd.jit
    def nothing_to_add(tile, context, scratch, low, high, out):
        pass

    return _body(simd, TracePatternRecord.at, head_dim, kv_dtype, nothing_to_add)


@kernel("trace_disentangled", TraceDisentangledRecord)
def build_disentangled(simd: Any, head_dim: int, kv_dtype: str) -> Any:
    """Build the patterns of disentangled attention."""
    at, space = TraceDisentangledRecord.at, ScratchLayout(head_dim, head_dim, POSITION_BYTES)
    add_scores = position_scores(simd, at, rows_of(simd, at), space, kv_dtype)

    @simd.jit
    def add_positions(tile, context, scratch, low, high, out):
        for start in range(low // PAGE * PAGE, high, PIECE):
            add_scores(tile, context, scratch, start, min(start + PIECE, high), out)

    return _body(simd, at, head_dim, kv_dtype, add_positions)


def _body(simd: Any, at: Any, head_dim: int, kv_dtype: str, add_positions: Any) -> Any:
    """Make the kernel's body. ``add_positions`` adds the scores of positions to a row: (.., first, end, out)."""
    step_at, load, load_i32 = StepRecord.at, simd.load_i64, simd.load_i32
    rows, loops = rows_of(simd, at), page_loops(simd, head_dim, head_dim, kv_dtype, SCORES)
    context_of, place_of, limits, seen = rows.context_of, rows.place_of, rows.limits, rows.seen
    scores = inner_loops.scores_tile(simd, 1, head_dim, kv_dtype)
    store16, number_bytes = loops.store, loops.size
    key_bytes, finish = head_bytes(kv_dtype, head_dim), _finish(simd, at)
    vload, vstore, splat = simd.vload, simd.vstore, simd.splat
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def row_of(tile, scratch, out, end):
        """Write a head's row of scores or of the pattern, of ``end`` tokens."""
        context, queries = context_of(tile), scratch + SCRATCH_HEADER
        scale = splat(np.float32(simd.load_f64(tile.record + at.scale)))
        q = load(tile.record + at.q) + place_of(tile, tile.first) * head_dim * 4
        for i in range(0, head_dim, 16):
            store16(queries + i * number_bytes, vload(q + i * 4) * scale)
        low, high = seen(tile, context, tile.first, 1)
        keys = load(tile.record + at.keys) + tile.kv_head * key_bytes
        for page in range(low // PAGE * PAGE, high, PAGE):
            here = keys + load_i32(context.pages + page // PAGE * 4) * load(tile.record + at.page_bytes)
            for t in range(max(low, page), min(high, page + PAGE), SPAN):
                scores(queries, here, t - page, 0, 0, out + t * 4, 0)
        add_positions(tile, context, scratch, low, high, out)
        nothing = splat(np.float32(0))
        if load(tile.record + at.raw) != 0:
            nothing = splat(minus_infinity)
        for t in range(0, low, 16):
            vstore(out + t * 4, nothing)
        for t in range((high + 15) // 16 * 16, end, 16):
            vstore(out + t * 4, nothing)
        position, first, last = limits(tile, context, tile.first)
        finish(tile, out, low, high, first, last, position)

    @simd.jit
    def body(record, step, thread, threads):
        listed, count, heads = load(record + at.rows), load(record + at.count), load(record + at.heads)
        group, each = heads // load(record + at.kv_heads), load(record + at.out_head)
        scratch = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes)
        total = load(listed) * count
        for i in range(*simd.thread_range(total, thread, threads)):
            entry, head = listed + WORD * (1 + ROW_WORDS * (i // count)), load(record + at.first) + i % count
            row, sequence = load(entry), load(entry + WORD)
            inside = row - load_i32(load(step + step_at.first_row) + 4 * sequence)
            tile = Tile(record, step, sequence, head // group, group, inside * group + head % group, 1)
            out = load(record + at.out) + i // count * load(record + at.out_stride) + i % count * each
            row_of(tile, scratch, out, each // 4)

    return body


def _finish(simd: Any, at: Any) -> Any:
    load, load_f32, vload, vstore, splat = simd.load_i64, simd.load_f32, simd.vload, simd.vstore, simd.splat
    keep, vexp, vmax, vmax_lane, vsum = simd.keep, simd.vexp, simd.vmax, simd.vmax_lane, simd.vsum
    tanh, lane0, minus_infinity = tanh_vector(simd), simd.lane0, np.float32(-np.inf)

    @simd.jit
    def finish(tile, out, low, high, first, last, position):
        """Cap, bias and mask the scores of a row, and turn them into the pattern unless ``raw`` is set."""
        record, head = tile.record, tile.kv_head * tile.group + tile.first % tile.group
        cap = np.float32(simd.load_f64(record + at.softcap))
        bias = load(record + at.bias)
        if bias != 0:
            bias += head * load(record + at.bias_stride) - position * load(record + at.bias_step)
        top = splat(minus_infinity)
        for t in range(low, high, 16):
            x = vload(out + t * 4)
            if cap != np.float32(0):
                x = splat(cap) * tanh(x / splat(cap))
            if bias != 0:
                x = x + vload(bias + t * 4)
            if t < first or t + 16 > last:
                x = keep(x, first - t, last - t, minus_infinity)
            vstore(out + t * 4, x)
            top = vmax(top, x)
        if load(record + at.raw) != 0:
            return
        largest, sinks = vmax_lane(top), load(record + at.sinks)
        if sinks != 0:
            largest = max(largest, load_f32(sinks + 4 * head))
        if largest == minus_infinity:
            largest = np.float32(0)
        total = splat(np.float32(0))
        for t in range(low, high, 16):
            weight = vexp(vload(out + t * 4) - splat(largest))
            vstore(out + t * 4, weight)
            total = total + weight
        share = vsum(total)
        if sinks != 0:
            share += lane0(vexp(splat(load_f32(sinks + 4 * head) - largest)))
        for t in range(low, high, 16):
            vstore(out + t * 4, vload(out + t * 4) / splat(share))

    return finish


# Words of an entry: index of a listed row, index of a head, the address of factors or 0, the address of addends or 0.
ENTRY_WORDS = 4


class TraceMixRecord(RowsRecord):
    """Changes attention scores and patterns: adds the effect of a changed pattern to the output of a head.

        out += Σ_j (p'_j - p_j) v_j        p' = factor * p + addend
        with ``raw``: p = softmax(s)       p' = softmax(s'), s' = factor * s + addend

    p and s are rows of ``trace_pattern``, v are the cached values. Factors and addends have a number for each
    token. An addend of minus infinity masks a token. If p' equals p, no bit of ``out`` changes, because nothing is
    added. Tokens that the row does not see keep a weight of 0. If all tokens are masked, all weights are 0.

    The changed rows replace the rows in memory, so that a trace records them.
    """

    values: Address  # G heads of page 0
    sinks: Address  # (H,) float32, or 0
    raw: int  # 1: the rows are scores; 0: patterns
    rows: Address  # (1 + 2 n,) int64: as in the pattern's record
    pattern: Address  # (n, count, ...) float32, as the pattern's kernel writes it; the changed rows replace the rows
    pattern_stride: int  # bytes from one row to the next
    pattern_head: int  # bytes from one head to the next
    changed: Address  # with ``raw``: the changed patterns, as ``pattern``
    first: int  # the first head of the pattern
    entries: Address  # (1 + 4 m,) int64: m, then the entries; factors and addends: a float32 for each token
    out: Address  # (T, H * V) float32


@kernel("trace_mix", TraceMixRecord)
def build_mix(simd: Any, value_dim: int, kv_dtype: str) -> Any:
    at, step_at, load, load_i32 = TraceMixRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    rows, loops = rows_of(simd, at), page_loops(simd, value_dim, value_dim, kv_dtype, SCORES)
    add_values = inner_loops.values_tile(simd, 1, value_dim, kv_dtype)
    context_of, place_of, limits, seen = rows.context_of, rows.place_of, rows.limits, rows.seen
    store16, size, each = loops.store, loops.size, head_bytes(kv_dtype, value_dim)
    vload, vstore, splat, keep = simd.vload, simd.vstore, simd.splat, simd.keep
    vmax, vabs, vmax_lane, vexp = simd.vmax, simd.vabs, simd.vmax_lane, simd.vexp
    scale_of, zero, minus_infinity = _scale_of(simd, at), np.float32(0), np.float32(-np.inf)

    @simd.jit
    def apply(x, factors, addends, t):
        """Factor times x plus addend, for 16 tokens from token ``t`` on."""
        if factors != 0:
            x = x * vload(factors + t * 4)
        if addends != 0:
            x = x + vload(addends + t * 4)
        return x

    @simd.jit
    def change(tile, pattern, changed, entry, sums):
        """Add a row's changed weights times its values to ``sums``. Returns the largest change of a weight."""
        raw, factors, addends = load(tile.record + at.raw), load(entry + 2 * WORD), load(entry + 3 * WORD)
        context = context_of(tile)
        low, high = seen(tile, context, tile.first, 1)
        _, first, last = limits(tile, context, tile.first)
        old_top, old_total, new_top, new_total = zero, zero, zero, zero
        if raw != 0:
            for t in range(low, high, 16):
                x = apply(vload(pattern + t * 4), factors, addends, t)
                vstore(changed + t * 4, keep(x, first - t, last - t, minus_infinity))
            old_top, old_total = scale_of(tile, pattern, low, high)
            new_top, new_total = scale_of(tile, changed, low, high)
        values = load(tile.record + at.values) + tile.kv_head * each
        weights, largest = sums + value_dim * 4, splat(zero)
        for page in range(low // PAGE * PAGE, high, PAGE):
            begin, end = max(low, page), min(high, page + PAGE)
            for t in range(begin, end, 16):
                old = vload(pattern + t * 4)
                if raw != 0:
                    scores = vload(changed + t * 4)
                    old = vexp(old - splat(old_top)) / splat(old_total)
                    new = vexp(scores - splat(new_top)) / splat(new_total)
                    vstore(pattern + t * 4, scores)
                    vstore(changed + t * 4, new)
                else:
                    new = keep(apply(old, factors, addends, t), first - t, last - t, zero)
                    vstore(pattern + t * 4, new)
                delta = keep(new - old, first - t, last - t, zero)
                store16(weights + (t - page) * size, delta)
                largest = vmax(largest, vabs(delta))
            here = values + load_i32(context.pages + page // PAGE * 4) * load(tile.record + at.page_bytes)
            add_values(weights + (begin - page) * size, 0, here, begin - page, 0, 0, end - begin, sums)
        return vmax_lane(largest)

    @simd.jit
    def body(record, step, thread, threads):
        heads, entries = load(record + at.heads), load(record + at.entries)
        group, listed = heads // load(record + at.kv_heads), load(record + at.rows)
        sums = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes) + SCRATCH_HEADER
        total = load(entries)
        for i in range(*simd.thread_range(total, thread, threads)):
            entry = entries + WORD * (1 + ENTRY_WORDS * i)
            number, which = load(entry), load(entry + WORD)
            row = load(listed + WORD * (1 + ROW_WORDS * number))
            sequence = load(listed + WORD * (2 + ROW_WORDS * number))
            head = load(record + at.first) + which
            inside = row - load_i32(load(step + step_at.first_row) + 4 * sequence)
            tile = Tile(record, step, sequence, head // group, group, inside * group + head % group, 1)
            place = number * load(record + at.pattern_stride) + which * load(record + at.pattern_head)
            for j in range(0, value_dim * 4, 64):
                vstore(sums + j, splat(zero))
            pattern, changed = load(record + at.pattern) + place, load(record + at.changed) + place
            if change(tile, pattern, changed, entry, sums) != zero:
                out = load(record + at.out) + place_of(tile, tile.first) * value_dim * 4
                for j in range(0, value_dim * 4, 64):
                    vstore(out + j, vload(out + j) + vload(sums + j))

    return body


def _scale_of(simd: Any, at: Any) -> Any:
    load, load_f32, vload, splat, vmax = simd.load_i64, simd.load_f32, simd.vload, simd.splat, simd.vmax
    vexp, vsum, vmax_lane, lane0, minus_infinity = (
        simd.vexp, simd.vsum, simd.vmax_lane, simd.lane0, np.float32(-np.inf),
    )  # fmt: skip

    @simd.jit
    def scale_of(tile, scores, low, high):
        """The largest of a row's scores, and the sum of exp(score - largest). As in the pattern's kernel."""
        head = tile.kv_head * tile.group + tile.first % tile.group
        top, total, sinks = splat(minus_infinity), splat(np.float32(0)), load(tile.record + at.sinks)
        for t in range(low, high, 16):
            top = vmax(top, vload(scores + t * 4))
        largest = vmax_lane(top)
        if sinks != 0:
            largest = max(largest, load_f32(sinks + 4 * head))
        if largest == minus_infinity:
            largest = np.float32(0)
        for t in range(low, high, 16):
            total = total + vexp(vload(scores + t * 4) - splat(largest))
        share = vsum(total)
        if sinks != 0:
            share += lane0(vexp(splat(load_f32(sinks + 4 * head) - largest)))
        if share == np.float32(0):
            share = np.float32(1)
        return largest, share

    return scale_of
