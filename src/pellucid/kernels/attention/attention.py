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
do not change this order. ``attention/work_split.py`` distributes the tiles over the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.attention.rows import ScoresRecord, Tile, rows_of
from pellucid.kernels.attention.tiles import ROWS
from pellucid.kernels.attention.walk import MAX_TILE_ROWS, ScratchLayout, walk
from pellucid.kernels.attention.work_split import WorkSplit, split_work
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, StepRecord


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
