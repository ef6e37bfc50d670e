"""Attention over the paged key/value cache (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    out = softmax(mask(softcap(scale * q Kᵀ) + bias)) V

In: queries (T, H, K) float32; the layer's pages of keys (G, K) and values (G, V) a token, as ``cached.py`` lays them
out. Out: (T, H, V) float32, perhaps as activation blocks too.

``bias`` depends on a head and on how far a token is away (ALiBi: Press et al. 2022; relative positions: Raffel et al.
2020). A head may have a *sink*, the score of a token that is not there: it takes part of the weight and gives nothing
(Xiao et al. 2023). The keys may be those of the sequence itself or of another, its *memory* (cross attention).

A *row* is one query head of one token. Rows that share a key/value head (heads of its group, or neighbouring tokens)
walk the pages together in tiles of eight, up to eight tiles at once: each key and value is loaded once for a tile, and
widened to float32 once for all tiles.

The past is cut into *pieces* of 512 tokens, counted from the sequence's first. A piece has a softmax of its own,
unnormalised, and is then joined to the pieces before it, as in Milakov and Gimelshein (2018):

    M' = max(M, m)    sum = sum e^(M - M') + s e^(m - M')    out = out e^(M - M') + o e^(m - M')

A row's result depends only on its own position: its pieces and the blocks of a piece are aligned to the cache and
summed in a fixed order, whatever rows walk beside it, however the step was cut, whoever runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.attention_tiles import (
    scores_tile,
    softmax_of_rows,
    values_tile,
    widen_keys,
    widen_values,
)
from pellucid.kernels.cached import PAGE, SCALED, head_bytes, writer
from pellucid.kernels.library import kernel
from pellucid.kernels.quantize import block_bytes, quantize_block
from pellucid.kernels.record import Address, Record, Step

ROWS = 8  # rows of a tile
TOGETHER = 64  # rows that walk the pages together at most
SPAN = 32  # tokens whose scores are taken at once
PIECE = 512  # tokens that have a softmax of their own
STATE = 16  # bytes a row: largest score and sum so far, then the piece's
SCORES = (
    PIECE * 4 + 64
)  # bytes from one row of scores to the next: no power of two, which would crowd the cache


class CacheWrite(Record):
    k: Address  # (T, G * K) float32
    v: Address  # (T, G * V) float32
    kv_heads: int  # G
    head_dim: int  # K, a multiple of cached.unit
    value_dim: int  # V, too
    keys: Address  # G heads of page 0, see cached.py
    values: Address  # G heads of page 0
    page_bytes: int  # from one page to the next


class Attention(Record):
    q: Address  # (T, H * K) float32
    heads: int  # H
    kv_heads: int  # G
    keys: Address  # G heads of page 0, see cached.py
    values: Address  # G heads of page 0
    page_bytes: int  # from one page to the next
    scale: float
    softcap: float  # 0: none
    causal: int  # 1: a token sees itself and what is before it; 0: all of its sequence
    window: int  # a token sees no further back than window - 1 tokens; 0: no limit
    biased: int  # 1: there is a bias
    bias: Address  # float32: what is added to head 0's score of the token itself; of those after it, and before it
    bias_stride: (
        int  # bytes from one head to the next; 15 numbers behind the last token's may be read, not used
    )
    sinks: Address  # (H,) float32, or 0: none
    memory: int  # 1: keys and values are those of the sequence's memory
    out: Address  # (T, H * V) float32
    quantized: Address  # (T, H * V / 32) activation blocks, or 0: not wanted


def scratch_bytes(head_dim: int, value_dim: int) -> int:
    """Work space that a thread needs."""
    page = PAGE * 4 * max(head_dim, value_dim)
    return TOGETHER * (4 * (head_dim + 2 * value_dim) + SCORES + STATE) + page


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
    bias: Callable[[NDArray[np.int64]], NDArray[Any]] | None = None,
    sinks: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The same in float64, for one sequence: q (T, H, K), k (T', G, K), v (T', G, V).

    ``bias`` gives for distances, key minus query, (T, T'), what is added: (H, T, T').
    """
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(a.astype(np.float64), group, 1) for a in (k, v))
    scores = np.einsum("thk,shk->hts", q.astype(np.float64), k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    query, key = np.arange(len(q))[:, None] + first_position, np.arange(len(k))
    if bias is not None:
        scores = scores + bias(key - query)
    seen = np.ones((len(q), len(k)), bool)
    if causal:
        seen &= key <= query
    if window:
        seen &= key > query - window
    scores = np.where(seen, scores, -np.inf)
    sink = np.full((q.shape[1], 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    weights = np.exp(scores - top)
    weights /= weights.sum(-1, keepdims=True) + np.exp(sink - top)
    return np.asarray(np.einsum("hts,shk->thk", weights, v), np.float64)


@kernel("cache_write", CacheWrite)
def build_write(simd: Any, stored: str) -> Any:
    """``stored`` is one of cached.FORMS."""
    at, step_at, load, load_i32 = CacheWrite.at, Step.at, simd.load_i64, simd.load_i32
    write_keys, write_values = writer(simd, stored)
    some = head_bytes(stored, SCALED)

    @simd.jit
    def bytes_of(width):
        """Of one head, whose width is known only here."""
        return width * some // SCALED

    @simd.jit
    def body(record, step, thread, threads):
        k, v, heads = load(record + at.k), load(record + at.v), load(record + at.kv_heads)
        head_dim, value_dim = load(record + at.head_dim), load(record + at.value_dim)
        keys, values = load(record + at.keys), load(record + at.values)
        page_bytes = load(record + at.page_bytes)
        spare = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes)
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
                position, head = start + i // heads - first, i % heads
                page, slot = load_i32(pages + position // PAGE * 4) * page_bytes, position % PAGE
                key, value = (
                    keys + page + head * bytes_of(head_dim),
                    values + page + head * bytes_of(value_dim),
                )
                write_keys(k + i * head_dim * 4, head_dim, key, slot, spare)
                write_values(v + i * value_dim * 4, value_dim, value, slot, spare)

    return body


def _walk(simd: Any, head_dim: int, value_dim: int, stored: str, planes: int) -> Any:
    """The whole of attention for up to ``TOGETHER`` rows; see ``walk``."""
    load, load_i32, load_f32, store_f32 = simd.load_i64, simd.load_i32, simd.load_f32, simd.store_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    vexp, lane0 = simd.vexp, simd.lane0
    scores8, scores4, scores3, scores2, scores1 = (
        scores_tile(simd, n, head_dim, stored) for n in (8, 4, 3, 2, 1)
    )
    values8, values4, values3, values2, values1 = (
        values_tile(simd, n, value_dim, stored) for n in (8, 4, 3, 2, 1)
    )
    wide_scores, wide_values = (
        scores_tile(simd, ROWS, head_dim, "f32"),
        values_tile(simd, ROWS, value_dim, "f32"),
    )
    wider_keys, wider_values = widen_keys(simd, head_dim, stored), widen_values(simd, value_dim, stored)
    softmax, quantize = softmax_of_rows(simd), quantize_block(simd, planes)
    at, step_at = Attention.at, Step.at
    row_bytes, out_bytes, q_bytes = head_dim * 4, value_dim * 4, block_bytes(planes)
    key_head, value_head = head_bytes(stored, head_dim), head_bytes(stored, value_dim)
    minus_infinity = np.float32(-np.inf)

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

    @simd.jit
    def next_page(pages, t0, end, page_bytes):
        """Bytes from the page of t0 to the one after it; 0 if that is not wanted."""
        if t0 + PAGE >= end:
            return 0
        return (load_i32(pages + t0 // PAGE * 4 + 4) - load_i32(pages + t0 // PAGE * 4)) * page_bytes

    @simd.jit
    def join(state, totals, sums):
        """A row's piece, joined to those before it; nothing if no token of it is seen."""
        top, largest = load_f32(state), load_f32(state + 8)
        if largest == minus_infinity:
            return
        highest = max(top, largest)
        old, new = vexp(splat(top - highest)), vexp(splat(largest - highest))
        store_f32(state, highest)
        store_f32(state + 4, lane0(fma(splat(load_f32(state + 12)), new, splat(load_f32(state + 4)) * old)))
        for i in range(0, out_bytes, 64):
            vstore(totals + i, fma(vload(sums + i), new, vload(totals + i) * old))

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
    def seen(earliest, latest, length, causal, window):
        """Which tokens any of the queries at positions ``earliest`` to ``latest`` sees, from a whole span on."""
        begin, end = 0, length
        if causal != 0:
            end = latest + 1
        if window != 0:
            begin = max(0, earliest - window + 1) // SPAN * SPAN
        return begin, end

    @simd.jit
    def walk(record, step, s, kv_head, first, rows, scratch):
        """Rows ``first`` .. ``first + rows`` of sequence s and one key/value head."""
        heads, kv_heads = load(record + at.heads), load(record + at.kv_heads)
        group = heads // kv_heads
        length = load_i32(load(step + step_at.length) + 4 * s)
        past = length - load_i32(load(step + step_at.row_count) + 4 * s)
        token0 = load_i32(load(step + step_at.first_row) + 4 * s)
        pages = load(step + step_at.pages)
        if load(record + at.memory) != 0:
            length, pages = (
                load_i32(load(step + step_at.memory_length) + 4 * s),
                load(step + step_at.memory_pages),
            )
        pages += s * load(step + step_at.page_stride) * 4
        causal, window = load(record + at.causal), load(record + at.window)
        queries, sums = scratch, scratch + TOGETHER * row_bytes
        totals, page = sums + TOGETHER * out_bytes, sums + 2 * TOGETHER * out_bytes
        weights = page + PAGE * max(row_bytes, out_bytes)
        states = weights + TOGETHER * SCORES

        scale = splat(np.float32(simd.load_f64(record + at.scale)))
        for r in range(rows):
            row = first + r
            q = (
                load(record + at.q)
                + ((token0 + row // group) * heads + kv_head * group + row % group) * row_bytes
            )
            for i in range(0, row_bytes, 64):
                vstore(queries + r * row_bytes + i, vload(q + i) * scale)
            for i in range(0, out_bytes, 64):
                vstore(totals + r * out_bytes + i, splat(0.0))
            store_f32(states + r * STATE, minus_infinity)
            store_f32(states + r * STATE + 4, np.float32(0))

        cap = np.float32(simd.load_f64(record + at.softcap))
        page_bytes = load(record + at.page_bytes)
        keys, stored = (
            load(record + at.keys) + kv_head * key_head,
            load(record + at.values) + kv_head * value_head,
        )
        bias, bias_stride = load(record + at.bias), load(record + at.bias_stride)
        begin, end = seen(past + first // group, past + (first + rows - 1) // group, length, causal, window)
        for piece in range(begin // PIECE * PIECE, end, PIECE):
            start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
            for t0 in range(start, stop, PAGE):
                here = keys + load_i32(pages + t0 // PAGE * 4) * page_bytes
                ahead = next_page(pages, t0, end, page_bytes)
                if rows > ROWS:
                    wider_keys(here, page)
                for sub in range(0, rows, ROWS):
                    count, row = min(ROWS, rows - sub), first + sub
                    low, high = seen(
                        past + row // group, past + (row + count - 1) // group, length, causal, window
                    )
                    for t in range(max(low, t0), min(high, t0 + PAGE), SPAN):
                        q, to = queries + sub * row_bytes, weights + sub * SCORES + (t - piece) * 4
                        if rows > ROWS and count == ROWS:
                            wide_scores(q, page, t - t0, 0, to, SCORES)
                        else:
                            scores(count, q, here, t - t0, ahead, to)

            for sub in range(0, rows, ROWS):
                count, row = min(ROWS, rows - sub), first + sub
                low, high = seen(
                    past + row // group, past + (row + count - 1) // group, length, causal, window
                )
                low, high = max(low, piece), min(high, piece + PIECE)
                for r in range(sub, sub + count):
                    position = past + (first + r) // group
                    last, earliest = length, 0
                    if causal != 0:
                        last = position + 1
                    if window != 0:
                        earliest = max(0, position - window + 1)
                    row_weights, row_bias = weights + r * SCORES + (low - piece) * 4, 0
                    if load(record + at.biased) != 0:
                        row_bias = bias + (kv_head * group + (first + r) % group) * bias_stride - position * 4
                    softmax(row_weights, low, high, earliest, last, cap, row_bias, states + r * STATE + 8)
                    for i in range(0, out_bytes, 64):
                        vstore(sums + r * out_bytes + i, splat(0.0))

            for t0 in range(start, stop, PAGE):
                here = stored + load_i32(pages + t0 // PAGE * 4) * page_bytes
                ahead = next_page(pages, t0, end, page_bytes)
                if rows > ROWS:
                    wider_values(here, page)
                for sub in range(0, rows, ROWS):
                    count, row = min(ROWS, rows - sub), first + sub
                    low, high = seen(
                        past + row // group, past + (row + count - 1) // group, length, causal, window
                    )
                    low, high = max(low, t0), min(high, t0 + PAGE)
                    if low < high:
                        w, to = weights + sub * SCORES + (low - piece) * 4, sums + sub * out_bytes
                        if rows > ROWS and count == ROWS:
                            wide_values(w, SCORES, page, low - t0, 0, high - low, to)
                        else:
                            values(count, w, here, low - t0, ahead, high - low, to)

            for r in range(rows):
                join(states + r * STATE, totals + r * out_bytes, sums + r * out_bytes)

        quantized = load(record + at.quantized)
        for r in range(rows):
            row = first + r
            place = (token0 + row // group) * heads + kv_head * group + row % group
            out = load(record + at.out) + place * out_bytes
            share = splat(share_of(states + r * STATE, load(record + at.sinks), place % heads))
            for i in range(0, out_bytes, 64):
                vstore(out + i, vload(totals + r * out_bytes + i) * share)
            if quantized != 0:
                for block in range(value_dim // 32):
                    quantize(out + block * 128, quantized + (place * (value_dim // 32) + block) * q_bytes)

    return walk


@kernel("attention", Attention)
def build(simd: Any, head_dim: int, value_dim: int, stored: str, planes: int) -> Any:
    """``head_dim`` is K, ``value_dim`` V; ``stored`` one of cached.FORMS; ``planes`` of the activation blocks."""
    at, step_at, load, load_i32 = Attention.at, Step.at, simd.load_i64, simd.load_i32
    walk = _walk(simd, head_dim, value_dim, stored, planes)

    @simd.jit
    def body(record, step, thread, threads):
        kv_heads = load(record + at.kv_heads)
        group = load(record + at.heads) // kv_heads
        scratch = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes)
        total = load(step + step_at.tokens) * group * kv_heads
        # Many rows: they go round the threads and back, since later tokens see more. Few: each takes its share.
        many = total >= 2 * ROWS * threads
        together = max(ROWS, min(TOGETHER, total // (8 * threads) // ROWS * ROWS))
        low, high = total * thread // threads, total * (thread + 1) // threads
        seen, turn = 0, 0
        for s in range(load(step + step_at.sequences)):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for kv_head in range(kv_heads):
                if many:
                    for first in range(0, rows, together):
                        whose = turn % (2 * threads)
                        if whose == thread or whose == 2 * threads - 1 - thread:
                            walk(record, step, s, kv_head, first, min(together, rows - first), scratch)
                        turn += 1
                else:
                    first, last = max(0, low - seen), min(rows, high - seen)
                    while first < last:
                        count = min(ROWS, last - first)
                        walk(record, step, s, kv_head, first, count, scratch)
                        first += count
                seen += rows

    return body
