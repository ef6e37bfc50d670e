"""Attention over the paged key/value cache (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    out = softmax(mask(softcap(scale * q Kᵀ) + bias)) V

In: queries (T, H, K) float32; the layer's pages of keys (G, K) and values (G, V) a token, as ``attention/kv_layout.py``
lays them out. Out: (T, H, V) float32, perhaps as activation blocks too.

``bias`` depends on a head and on how far a token is away (ALiBi: Press et al. 2022; relative positions: Raffel et al.
2020). A head may have a *sink*, the score of a token that is not there: it takes part of the weight and gives nothing
(Xiao et al. 2023). The keys may be those of the sequence itself or of its encoder (cross attention).

A *row* is one query head of one token. Rows that share a key/value head (heads of its group, or neighbouring tokens)
walk the pages together in *tiles* (``attention/walk.py``): each key and value is loaded once for eight rows, and
widened to float32 once for a whole tile.

The past is cut into *pieces* of 512 tokens, counted from the sequence's first. A piece has a softmax of its own,
unnormalised, and is then joined to the pieces before it, as in Milakov and Gimelshein (2018):

    M' = max(M, m)    sum = sum e^(M - M') + s e^(m - M')    out = out e^(M - M') + o e^(m - M')

A row's result depends only on its own position: its pieces and the blocks of a piece are aligned to the cache and
summed in a fixed order, whatever rows walk beside it, however the step was cut, whoever runs it.

Each thread takes as much of the work as the others. Where that cuts a tile of few rows and many pieces in two, each of
its threads puts its pieces apart, and the one that is done last joins all of them, in their order: no thread waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.attention.walk import PIECE, ROWS, SPAN, TOGETHER, Space, walk
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record, StepRecord


class AttentionRecord(Record):
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
    # Float32, or 0: none. What is added to head 0's score of the token itself; behind it that of the tokens after it,
    # before it that of those before. 15 numbers behind the last token's may be read, not used.
    bias: Address
    bias_stride: int  # bytes from one head to the next
    sinks: Address  # (H,) float32, or 0: none
    cross: int  # 1: keys and values are those of the sequence's encoder (cross attention)
    out: Address  # (T, H * V) float32
    quantized: Address  # (T, H * V / 32) activation blocks, or 0: not wanted


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


@kernel("attention", AttentionRecord)
def build(simd: Any, head_dim: int, value_dim: int, kv_dtype: str, activation_bits: int) -> Any:
    """``head_dim`` is K, ``value_dim`` V; ``kv_dtype`` one of kv_layout.KV_DTYPES; ``activation_bits`` those of the
    activation blocks.
    """
    at, step_at, load, load_i32 = AttentionRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    seen_by, begin, piece, join, finish = walk(simd, at, head_dim, value_dim, kv_dtype, activation_bits)
    space = Space(head_dim, value_dim)
    in_piece, in_apart, piece_bytes = space.piece, space.apart, space.piece_bytes(ROWS)

    @simd.jit
    def scratch_of(step, thread):
        return load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes)

    @simd.jit
    def extent(record, step, s, first, rows):
        """Of a tile: its first piece, how many there are, how many units can go to different threads, its cost.

        Its units are its pieces or, if it has more of them and is small, its rows.
        """
        start, stop = seen_by(record, step, s, first, rows)
        first_piece = start // PIECE * PIECE
        pieces = (max(stop, start + 1) - first_piece + PIECE - 1) // PIECE
        units = 1
        if rows <= ROWS:
            units = max(rows, pieces)
        # Loading a piece takes as long as some rows' arithmetic.
        return first_piece, pieces, units, (max(stop - start, 0) + SPAN) * (rows + ROWS)

    @simd.jit
    def bound(work, cost, units):
        """Which of a tile's units comes first for a thread whose share begins at ``work`` of the tile's cost."""
        if work <= 0:
            return 0
        if work >= cost:
            return units
        return (work * units + cost // 2) // cost

    @simd.jit
    def part(thread, threads, total, work, cost, units):
        """A thread's units, first and behind the last, of a tile that begins at ``work`` of the total."""
        return (
            bound(total * thread // threads - work, cost, units),
            bound(total * (thread + 1) // threads - work, cost, units),
        )

    @simd.jit
    def whole(record, step, s, kv_head, first, rows, first_piece, pieces, scratch):
        begin(record, step, s, kv_head, first, rows, scratch)
        for i in range(pieces):
            piece(record, step, s, kv_head, first, rows, scratch, first_piece + i * PIECE, scratch + in_piece)
            join(rows, scratch, scratch + in_piece)
        finish(record, step, s, kv_head, first, rows, scratch)

    @simd.jit
    def apart(thread, low, pieces, number, step):
        """Where a thread whose pieces of a tile begin with number ``low`` puts piece ``number`` apart.

        It has a place for the tile that it begins, and one for the tile that it goes on with.
        """
        which = 0
        if low == 0:
            which = pieces
        return scratch_of(step, thread) + in_apart + (which + number - low) * piece_bytes

    @simd.jit
    def some(record, step, s, kv_head, first, rows, first_piece, pieces, thread, threads, total, work, cost):
        """A thread's pieces of a tile; then all of them, if it is the last to be done with its own."""
        scratch = scratch_of(step, thread)
        low, high = part(thread, threads, total, work, cost, pieces)
        begin(record, step, s, kv_head, first, rows, scratch)
        for i in range(low, high):
            to = apart(thread, low, pieces, i, step)
            piece(record, step, s, kv_head, first, rows, scratch, first_piece + i * PIECE, to)
        starter, involved = 0, 0
        for t in range(threads - 1, -1, -1):
            begins, ends = part(t, threads, total, work, cost, pieces)
            if begins < ends:
                starter, involved = t, involved + 1
        counter = scratch_of(step, starter)
        if simd.atomic_add(counter, 1) + 1 < involved:
            return
        simd.atomic_store(counter, 0)
        for t in range(threads):
            begins, ends = part(t, threads, total, work, cost, pieces)
            for i in range(begins, ends):
                join(rows, scratch, apart(t, begins, pieces, i, step))
        finish(record, step, s, kv_head, first, rows, scratch)

    @simd.jit
    def body(record, step, thread, threads):
        kv_heads = load(record + at.kv_heads)
        group = load(record + at.heads) // kv_heads
        scratch = scratch_of(step, thread)
        sequences = load(step + step_at.sequences)
        rows_in_all = load(step + step_at.tokens) * group * kv_heads
        together = max(ROWS, min(TOGETHER, rows_in_all // (8 * threads) // ROWS * ROWS))
        total = 0
        for s in range(sequences):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for first in range(0, rows, together):
                _, _, _, cost = extent(record, step, s, first, min(together, rows - first))
                total += kv_heads * cost
        work = 0
        for s in range(sequences):
            rows = load_i32(load(step + step_at.row_count) + 4 * s) * group
            for kv_head in range(kv_heads):
                for first in range(0, rows, together):
                    count = min(together, rows - first)
                    first_piece, pieces, units, cost = extent(record, step, s, first, count)
                    low, high = part(thread, threads, total, work, cost, units)
                    if low < high and (units == 1 or high - low == units):
                        whole(record, step, s, kv_head, first, count, first_piece, pieces, scratch)
                    elif low < high and units == pieces:
                        some(
                            record, step, s, kv_head, first, count, first_piece, pieces,
                            thread, threads, total, work, cost,
                        )  # fmt: skip
                    elif low < high:
                        whole(record, step, s, kv_head, first + low, high - low, first_piece, pieces, scratch)
                    work += cost

    return body
