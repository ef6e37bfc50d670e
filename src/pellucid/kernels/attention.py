"""Attention over the paged key/value cache (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    out = softmax(mask(softcap(scale * q Kᵀ))) V

In: queries (T, H, K) float32; the layer's pages of keys and values. Out: (T, H, K) float32,
perhaps as activation blocks too.

A page holds S tokens of every key/value head in float16: keys as (G, K, S), so that 16 tokens' scores are one
vector and need no horizontal sum; values as (G, S, K). A *row* is one query head of one token. Up to eight
rows that share a key/value head (heads of its group, or neighbouring tokens) walk the pages together, so each
key and value is loaded once for them.

A row's result depends only on its own position: scores are taken over the whole of its past in blocks aligned
to the cache, summed in a fixed order, whatever rows walk beside it, however the step was cut, whoever runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.elementwise import tanh_vector
from pellucid.kernels.library import kernel
from pellucid.kernels.quantize import block_bytes, quantize_block
from pellucid.kernels.record import Address, Record, Step

PAGE = 64  # S, tokens of a page
ROWS = 8  # rows that walk the pages together
SPAN = 32  # tokens whose scores are taken at once
REGISTERS = 16  # vectors of sums that a tile may have


class CacheWrite(Record):
    k: Address  # (T, G * K) float32
    v: Address  # (T, G * K) float32
    kv_heads: int  # G
    head_dim: int  # K, a multiple of 16
    keys: Address  # (G, K, S) float16 of page 0
    values: Address  # (G, S, K) float16 of page 0
    page_bytes: int  # from one page to the next


class Attention(Record):
    q: Address  # (T, H * K) float32
    heads: int  # H
    kv_heads: int  # G
    keys: Address  # (G, K, S) float16 of page 0
    values: Address  # (G, S, K) float16 of page 0
    page_bytes: int  # from one page to the next
    scale: float
    softcap: float  # 0: none
    causal: int  # 1: a token sees itself and what is before it; 0: all of its sequence
    window: int  # a token sees no further back than window - 1 tokens; 0: no limit
    out: Address  # (T, H * K) float32
    quantized: Address  # (T, H * K / 32) activation blocks, or 0: not wanted


def scratch_bytes(context: int, head_dim: int) -> int:
    """Work space that a thread needs for sequences of up to ``context`` tokens."""
    return ROWS * 4 * (2 * head_dim + score_stride(context))


def score_stride(context: int) -> int:
    """Floats that a row of scores takes: the context, rounded up to spans, and one more of slack."""
    return (context + SPAN - 1) // SPAN * SPAN + SPAN


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
) -> NDArray[np.float64]:
    """The same in float64, for one sequence: q (T, H, K), k and v (T', G, K), T' >= T."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, 1) for a in (k, v))
    scores = np.einsum("thk,shk->hts", q.astype(np.float64), k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    query, key = np.arange(len(q))[:, None] + first_position, np.arange(len(k))
    seen = np.ones((len(q), len(k)), bool)
    if causal:
        seen &= key <= query
    if window:
        seen &= key > query - window
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray(np.einsum("hts,shk->thk", weights, v), np.float64)


@kernel("cache_write", CacheWrite)
def build_write(simd: Any) -> Any:
    at, step_at, load, load_i32 = CacheWrite.at, Step.at, simd.load_i64, simd.load_i32
    splat, vmin, vmax = simd.splat, simd.vmin, simd.vmax
    # Beyond float16 a number is kept at the largest: infinity times a weight of 0 would be NaN in the rows before it.
    largest = np.float32(65504)

    @simd.jit
    def body(record, step, thread, threads):
        k, v, heads = load(record + at.k), load(record + at.v), load(record + at.kv_heads)
        width, keys, values = load(record + at.head_dim), load(record + at.keys), load(record + at.values)
        head_bytes, page_bytes = width * PAGE * 2, load(record + at.page_bytes)
        # Split over all tokens' heads, as rotary and norms of heads are: a thread finds what it wrote itself.
        total = load(step + step_at.tokens) * heads
        begin, end = total * thread // threads, total * (thread + 1) // threads
        for s in range(load(step + step_at.sequences)):
            first, count = (
                load_i32(load(step + step_at.first_row) + 4 * s),
                load_i32(load(step + step_at.row_count) + 4 * s),
            )
            start = load_i32(load(step + step_at.length) + 4 * s) - count
            pages = load(step + step_at.pages) + s * load(step + step_at.page_stride) * 4
            for i in range(max(begin, first * heads), min(end, (first + count) * heads)):
                row, head = i // heads, i % heads
                position = start + row - first
                page, slot = load_i32(pages + position // PAGE * 4), position % PAGE
                source = i * width * 4
                base = page * page_bytes + head * head_bytes
                for j in range(width):
                    key = min(max(simd.load_f32(k + source + 4 * j), -largest), largest)
                    simd.store_f16(keys + base + (j * PAGE + slot) * 2, key)
                for j in range(0, width, 16):
                    value = vmin(vmax(simd.vload(v + source + 4 * j), splat(-largest)), splat(largest))
                    simd.vstore_f16(values + base + (slot * width + j) * 2, value)

    return body


def _scores_tile(simd: Any, rows: int) -> Any:
    """Scores of ``rows`` queries with 32 tokens: (queries, K, keys, out, bytes from one row of out to the next)."""
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        queries, width, keys, out, stride = args
        totals = [
            [cgutils.alloca_once_value(builder, e.fill(simd.f32, 0.0)) for _ in range(2)] for _ in range(rows)
        ]
        row_bytes = e.times(width, 4)
        starts = [e.at(queries, builder.mul(row_bytes, e.const(r))) for r in range(rows)]
        with cgutils.for_range(builder, width) as loop:
            key = e.at(keys, e.times(loop.index, PAGE * 2))
            halves = [e.widen(e.load(e.at(key, 32 * h), simd.vec(simd.f16), 2), "f16") for h in range(2)]
            for row, start in zip(totals, starts):
                q = e.splat(e.load(e.at(start, e.times(loop.index, 4)), simd.f32))
                for total, half in zip(row, halves):
                    builder.store(e.fma(q, half, builder.load(total)), total)
        for r, row in enumerate(totals):
            where = e.at(out, builder.mul(stride, e.const(r)))
            for h, total in enumerate(row):
                e.store(builder.load(total), e.at(where, 64 * h))
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, queries, width, keys, out, stride):
        return t.void(*[t.int64] * 5), emit

    return tile


def _values_tile(simd: Any, rows: int, head_dim: int) -> Any:
    """Add tokens' values, weighted: (weights, bytes between their rows, values, tokens, out)."""
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    vectors = head_dim // 16
    widest = REGISTERS // rows  # sums are kept in registers, so more rows take fewer columns at once
    chunk = next(c for c in (4, 3, 2, 1) if vectors % c == 0 and c <= widest)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        weights, stride, values, tokens, out = args
        starts = [e.at(weights, builder.mul(stride, e.const(r))) for r in range(rows)]
        for first in range(0, vectors, chunk):
            places = [[e.at(out, (r * vectors + first + c) * 64) for c in range(chunk)] for r in range(rows)]
            kind = simd.vec(simd.f32)
            totals = [[cgutils.alloca_once_value(builder, e.load(p, kind)) for p in row] for row in places]
            with cgutils.for_range(builder, tokens) as loop:
                value = e.at(values, e.times(loop.index, head_dim * 2))
                loaded = [
                    e.widen(e.load(e.at(value, (first + c) * 32), simd.vec(simd.f16), 2), "f16")
                    for c in range(chunk)
                ]
                for row, start in zip(totals, starts):
                    weight = e.splat(e.load(e.at(start, e.times(loop.index, 4)), simd.f32))
                    for total, v in zip(row, loaded):
                        builder.store(e.fma(weight, v, builder.load(total)), total)
            for row, where in zip(totals, places):
                for total, place in zip(row, where):
                    e.store(builder.load(total), place)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, weights, stride, values, tokens, out):
        return t.void(*[t.int64] * 5), emit

    return tile


def _softmax(simd: Any) -> Any:
    """Of one row of scores, in place, unnormalised; returns the sum. See the body for what is masked."""
    vload, vstore, splat, vmax, vmax_lane = simd.vload, simd.vstore, simd.splat, simd.vmax, simd.vmax_lane
    keep, vexp, vsum, tanh = simd.keep, simd.vexp, simd.vsum, tanh_vector(simd)
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def softmax(scores, base, end, first, last, cap):
        """Tokens base <= t < end have scores; first <= t < last are seen, the rest gets weight 0."""
        top = splat(minus_infinity)
        for t in range(base, end, 16):
            x = vload(scores + (t - base) * 4)
            if cap != np.float32(0):
                x = splat(cap) * tanh(x / splat(cap))
            if t < first or t + 16 > last:
                x = keep(x, first - t, last - t, minus_infinity)
            vstore(scores + (t - base) * 4, x)
            top = vmax(top, x)
        largest, total = splat(vmax_lane(top)), splat(0.0)
        for t in range(base, end, 16):
            weight = vexp(vload(scores + (t - base) * 4) - largest)
            vstore(scores + (t - base) * 4, weight)
            total = total + weight
        return vsum(total)

    return softmax


def _walk(simd: Any, head_dim: int, planes: int) -> Any:
    """The whole of attention for up to eight rows; see ``walk``."""
    load, load_i32, vload, vstore, splat = simd.load_i64, simd.load_i32, simd.vload, simd.vstore, simd.splat
    scores8, scores4, scores3, scores2, scores1 = (_scores_tile(simd, n) for n in (8, 4, 3, 2, 1))
    values8, values4, values3, values2, values1 = (_values_tile(simd, n, head_dim) for n in (8, 4, 3, 2, 1))
    softmax, quantize = _softmax(simd), quantize_block(simd, planes)
    at, step_at = Attention.at, Step.at
    row_bytes, page_head, q_bytes = head_dim * 4, head_dim * PAGE * 2, block_bytes(planes)

    @simd.jit
    def scores(rows, queries, keys, out, stride):
        while rows > 0:
            if rows >= 8:
                scores8(queries, head_dim, keys, out, stride)
                done = 8
            elif rows >= 4:
                scores4(queries, head_dim, keys, out, stride)
                done = 4
            elif rows == 3:
                scores3(queries, head_dim, keys, out, stride)
                done = 3
            elif rows == 2:
                scores2(queries, head_dim, keys, out, stride)
                done = 2
            else:
                scores1(queries, head_dim, keys, out, stride)
                done = 1
            rows, queries, out = rows - done, queries + done * row_bytes, out + done * stride

    @simd.jit
    def values(rows, weights, stride, start, tokens, out):
        while rows > 0:
            if rows >= 8:
                values8(weights, stride, start, tokens, out)
                done = 8
            elif rows >= 4:
                values4(weights, stride, start, tokens, out)
                done = 4
            elif rows == 3:
                values3(weights, stride, start, tokens, out)
                done = 3
            elif rows == 2:
                values2(weights, stride, start, tokens, out)
                done = 2
            else:
                values1(weights, stride, start, tokens, out)
                done = 1
            rows, weights, out = rows - done, weights + done * stride, out + done * row_bytes

    @simd.jit
    def walk(record, step, s, kv_head, first, rows, scratch):
        """Rows ``first`` .. ``first + rows`` of sequence s and one key/value head."""
        heads, kv_heads = load(record + at.heads), load(record + at.kv_heads)
        group = heads // kv_heads
        length = load_i32(load(step + step_at.length) + 4 * s)
        past = length - load_i32(load(step + step_at.row_count) + 4 * s)
        token0 = load_i32(load(step + step_at.first_row) + 4 * s)
        pages = load(step + step_at.pages) + s * load(step + step_at.page_stride) * 4
        causal, window = load(record + at.causal), load(record + at.window)
        stride = load(step + step_at.scratch_bytes) // ROWS - 2 * row_bytes  # bytes of a row of scores
        queries, sums = scratch, scratch + ROWS * row_bytes
        weights = sums + ROWS * row_bytes

        scale = splat(np.float32(simd.load_f64(record + at.scale)))
        for r in range(rows):
            row = first + r
            q = (
                load(record + at.q)
                + ((token0 + row // group) * heads + kv_head * group + row % group) * row_bytes
            )
            for i in range(0, row_bytes, 64):
                vstore(queries + r * row_bytes + i, vload(q + i) * scale)
                vstore(sums + r * row_bytes + i, splat(0.0))

        end = length
        if causal != 0:
            end = past + (first + rows - 1) // group + 1
        base = 0
        if window != 0:
            base = max(0, past + first // group - window + 1) // SPAN * SPAN
        head, page_bytes = kv_head * page_head, load(record + at.page_bytes)
        keys, stored = load(record + at.keys) + head, load(record + at.values) + head
        for t in range(base, end, SPAN):
            page = load_i32(pages + t // PAGE * 4) * page_bytes
            scores(rows, queries, keys + page + t % PAGE * 2, weights + (t - base) * 4, stride)

        cap = np.float32(simd.load_f64(record + at.softcap))
        for r in range(rows):
            position = past + (first + r) // group
            last, earliest = length, 0
            if causal != 0:
                last = position + 1
            if window != 0:
                earliest = max(0, position - window + 1)
            total = softmax(weights + r * stride, base, end, earliest, last, cap)
            simd.store_f32(queries + r * row_bytes, total)  # the query is no longer needed

        t = base
        while t < end:
            page = load_i32(pages + t // PAGE * 4) * page_bytes
            count = min(end, t // PAGE * PAGE + PAGE) - t
            start = stored + page + t % PAGE * row_bytes // 2
            values(rows, weights + (t - base) * 4, stride, start, count, sums)
            t += count

        quantized = load(record + at.quantized)
        for r in range(rows):
            row = first + r
            place = (token0 + row // group) * heads + kv_head * group + row % group
            out = load(record + at.out) + place * row_bytes
            share = splat(np.float32(1) / simd.load_f32(queries + r * row_bytes))
            for i in range(0, row_bytes, 64):
                vstore(out + i, vload(sums + r * row_bytes + i) * share)
            if quantized != 0:
                for block in range(head_dim // 32):
                    quantize(out + block * 128, quantized + (place * (head_dim // 32) + block) * q_bytes)

    return walk


@kernel("attention", Attention)
def build(simd: Any, head_dim: int, planes: int) -> Any:
    """``head_dim`` is K, a multiple of 16; ``planes`` of the activation blocks."""
    at, step_at, load, load_i32 = Attention.at, Step.at, simd.load_i64, simd.load_i32
    walk = _walk(simd, head_dim, planes)

    @simd.jit
    def body(record, step, thread, threads):
        kv_heads = load(record + at.kv_heads)
        group = load(record + at.heads) // kv_heads
        scratch = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes)
        total = load(step + step_at.tokens) * group * kv_heads
        # Many rows: tiles go round the threads, since later tokens see more. Few: each takes its share of rows.
        many = total >= 2 * ROWS * threads
        low, high = total * thread // threads, total * (thread + 1) // threads
        seen, tile = 0, 0
        for s in range(load(step + step_at.sequences)):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for kv_head in range(kv_heads):
                if many:
                    for first in range(0, rows, ROWS):
                        if tile % threads == thread:
                            walk(record, step, s, kv_head, first, min(ROWS, rows - first), scratch)
                        tile += 1
                else:
                    first, last = max(0, low - seen), min(rows, high - seen)
                    while first < last:
                        count = min(ROWS, last - first)
                        walk(record, step, s, kv_head, first, count, scratch)
                        first += count
                seen += rows

    return body
