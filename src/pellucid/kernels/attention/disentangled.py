"""Disentangled attention (He et al. 2021, DeBERTa): the relative position of query and key has vectors of its own.

    out = softmax(mask(scale * (q Kᵀ + c2p + p2c))) V

    c2p[i, j] = q_i · position key of bucket(i - j)          content to position
    p2c[i, j] = position query of bucket(i - j) · k_j        position to content

``bucket`` maps the distance i - j to one of R buckets; a larger distance has the same or the next bucket. The keys and
queries of the buckets are constants of the weights (``PositionTableRecord``).

A tile multiplies its queries with the keys of the buckets between its queries and a piece's tokens, and the queries of
the buckets between its queries and a page's tokens with the page's keys. It then adds, for each query and key, the two
products of their bucket to their score. Every product sums over the columns in the same order, so a row's result
depends only on its own sequence and position, as in ``attention/attention.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.attention import attention, inner_loops
from pellucid.kernels.attention.attention import AttentionRecord, body_of, split_work
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes, writer
from pellucid.kernels.attention.rows import MAX_TILE_ROWS, PIECE, ROWS, SCORES, SPAN, RowHelpers, ScratchLayout, rows_of
from pellucid.kernels.attention.walk import page_of, walk
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, Address, Record, StepRecord


class PositionTableRecord(Record):
    """Writes the keys and queries of relative positions for disentangled attention, once when a model is loaded.

    In: the projected vectors of R buckets (R, H, K) float32. Out: for each head

        keys      (pages, K, S): pages of S buckets, in the layout of keys in ``attention/kv_layout.py``
        queries   (R, K), times a scale, with R rounded up to whole loops (``rows.ROWS``)

    Numbers are float32, or bfloat16 beside a cache of bfloat16.
    """

    x: Address  # (R, H * K) float32; R is the number of tokens of the step
    heads: int  # H
    head_dim: int  # K, a multiple of 16
    scale: float  # multiplies the queries
    out: Address


def table_dtype(kv_dtype: str) -> str:
    """The dtype of the tables beside a cache of ``kv_dtype``."""
    return "bf16" if kv_dtype == "bf16" else "f32"


def key_bytes(kv_dtype: str, buckets: int, heads: int, head_dim: int) -> int:
    """Bytes of the keys of all heads."""
    return heads * -(-buckets // PAGE) * head_bytes(table_dtype(kv_dtype), head_dim)


def query_bytes(buckets: int, heads: int, head_dim: int) -> int:
    """Bytes of the queries of all heads, at most 4 for each number."""
    return heads * -(-buckets // ROWS) * ROWS * head_dim * 4


@kernel("position_keys", PositionTableRecord)
def build_keys(simd: Any, kv_dtype: str) -> Any:
    """Build the writer of keys beside a cache of ``kv_dtype``."""
    at, step_at, load = PositionTableRecord.at, StepRecord.at, simd.load_i64
    stored = table_dtype(kv_dtype)
    write, _ = writer(simd, stored)
    column_bytes = head_bytes(stored, 16) // 16

    @simd.jit
    def body(record, step, thread, threads):
        buckets, heads = load(step + step_at.tokens), load(record + at.heads)
        head_dim, x, out = load(record + at.head_dim), load(record + at.x), load(record + at.out)
        pages = (buckets + PAGE - 1) // PAGE
        spare = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes) + SCRATCH_HEADER
        # A thread writes whole pages, so that no two threads write to the same cache line.
        for i in range(*simd.thread_range(heads * pages, thread, threads)):
            head, first = i // pages, i % pages * PAGE
            page = out + i * head_dim * column_bytes
            for bucket in range(first, min(first + PAGE, buckets)):
                write(x + (bucket * heads + head) * head_dim * 4, head_dim, page, bucket - first, spare)

    return body


@kernel("position_queries", PositionTableRecord)
def build_queries(simd: Any, kv_dtype: str) -> Any:
    """Build the writer of queries beside a cache of ``kv_dtype``."""
    at, step_at, load, vload, splat = (
        PositionTableRecord.at, StepRecord.at, simd.load_i64, simd.vload, simd.splat,
    )  # fmt: skip
    store, number_bytes = simd.vstore, 4
    if table_dtype(kv_dtype) == "bf16":
        from pellucid.kernels.simd import dot

        store, number_bytes = dot.store_row, dot.ROW_BYTES

    @simd.jit
    def body(record, step, thread, threads):
        buckets, heads = load(step + step_at.tokens), load(record + at.heads)
        head_dim, x, out = load(record + at.head_dim), load(record + at.x), load(record + at.out)
        scale = splat(np.float32(simd.load_f64(record + at.scale)))
        rows = (buckets + ROWS - 1) // ROWS * ROWS
        for head in range(*simd.thread_range(heads, thread, threads)):
            for row in range(rows):
                # The last loop reads rows after the last bucket: they repeat the last bucket.
                source = x + (min(row, buckets - 1) * heads + head) * head_dim * 4
                for j in range(0, head_dim, 16):
                    place = out + ((head * rows + row) * head_dim + j) * number_bytes
                    store(place, vload(source + 4 * j) * scale)

    return body


# Bytes between the rows of c2p. A row has the buckets of PIECE + MAX_TILE_ROWS distances, rounded to whole spans.
CONTENT_ROW = (PIECE + MAX_TILE_ROWS + 2 * SPAN) * 4 + 64
BUCKET_ROW = PAGE * 4  # bytes between the rows of p2c: a row has the tokens of a page
# The rows of p2c are the buckets of PAGE + MAX_TILE_ROWS distances, rounded to whole loops.
POSITION_BYTES = MAX_TILE_ROWS * CONTENT_ROW + (PAGE + MAX_TILE_ROWS + 2 * ROWS) * BUCKET_ROW


class PositionRecord(Record):
    """Fields that define the scores of positions. There are as many key/value heads as heads."""

    position_keys: Address  # H heads of R keys, see PositionTableRecord; 0: no c2p
    position_queries: Address  # H heads of R scaled queries, see PositionTableRecord; 0: no p2c
    bucket_count: int  # R
    # Address of the int32 bucket of a query and a key at the same position. The buckets for keys at the next positions
    # follow. The kernel may read 15 numbers after the last token's bucket, which must be buckets too.
    buckets: Address


class DisentangledRecord(AttentionRecord, PositionRecord):
    """The fields of attention and of the scores of positions."""


def reference(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    buckets: NDArray[np.int64],
    position_keys: NDArray[Any] | None,
    position_queries: NDArray[Any] | None,
    *,
    scale: float,
) -> NDArray[np.float64]:
    """Compute attention of one sequence in float64, from q, k (T, H, K), v (T, H, V), and the (R, H, K) of positions.

    ``buckets`` (2 T - 1,) are the buckets of the distances from -(T - 1) to T - 1. Positions that are None have no
    scores.
    """

    def bias(query: NDArray[np.int64], key: NDArray[np.int64]) -> NDArray[Any]:
        bucket = buckets[query - key + len(k) - 1]
        scores = np.zeros((q.shape[1], len(q), len(k)))
        if position_keys is not None:
            found = np.einsum("thk,rhk->htr", q.astype(np.float64), position_keys)
            scores += np.take_along_axis(found, bucket[None], 2)
        if position_queries is not None:
            found = np.einsum("shk,rhk->hrs", k.astype(np.float64), position_queries)
            scores += np.take_along_axis(found, bucket[None], 1)
        return scale * scores

    return attention.reference(q, k, v, scale=scale, causal=False, bias=bias)


def position_scores(simd: Any, at: Any, rows: RowHelpers, space: ScratchLayout, kv_dtype: str) -> Any:
    """Make the helper that adds the scores of positions: (tile, context, scratch, start, stop, out).

    It adds to the scores of tokens start <= t < stop, at most PIECE tokens from the beginning of a page on. The score
    of row r and token t is at out + r * SCORES + t * 4. The tile's queries are in the scratch memory.
    """
    load, load_i32, vload, vstore, vgather = (
        simd.load_i64, simd.load_i32, simd.vload, simd.vstore, simd.vgather,
    )  # fmt: skip
    head_dim, queries_at, page_at = space.head_dim, space.queries, space.page
    content_at, position_at = space.position_scores, space.position_scores + MAX_TILE_ROWS * CONTENT_ROW
    keys_of = page_of(simd, at.keys, at.page_bytes, head_bytes(kv_dtype, head_dim))
    stored = table_dtype(kv_dtype)
    table_bytes = head_bytes(stored, head_dim)
    multiply, number_bytes = inner_loops.scores_tile(simd, ROWS, head_dim, stored), 4
    if stored == "bf16":
        from pellucid.kernels.simd.dot import ROW_BYTES

        number_bytes = ROW_BYTES
    row_bytes, opened = head_dim * number_bytes, _opened(simd, head_dim, kv_dtype)

    @simd.jit
    def bucket_of(tile, query, key):
        return load_i32(load(tile.record + at.buckets) + (key - query) * 4)

    @simd.jit
    def multiply_keys(tile, scratch, first, last):
        """Multiply the queries of a tile with the keys of the buckets from ``first`` to ``last``."""
        pages = (load(tile.record + at.bucket_count) + PAGE - 1) // PAGE
        keys = load(tile.record + at.position_keys) + tile.kv_head * pages * table_bytes
        for bucket in range(first, last + 1, SPAN):
            page, place = keys + bucket // PAGE * table_bytes, bucket % PAGE
            out = scratch + content_at + (bucket - first) * 4
            for row in range(0, tile.rows, ROWS):
                queries = scratch + queries_at + row * row_bytes
                multiply(queries, page, place, 0, 0, out + row * CONTENT_ROW, CONTENT_ROW)

    @simd.jit
    def multiply_page(tile, scratch, page, tokens, first, last):
        """Multiply the queries of the buckets from ``first`` to ``last`` with the first ``tokens`` keys of a page."""
        count = (load(tile.record + at.bucket_count) + ROWS - 1) // ROWS * ROWS
        queries = load(tile.record + at.position_queries) + tile.kv_head * count * row_bytes
        for bucket in range(first, last + 1, ROWS):
            out = scratch + position_at + (bucket - first) * BUCKET_ROW
            for token in range(0, tokens, SPAN):
                multiply(queries + bucket * row_bytes, page, token, 0, 0, out + token * 4, BUCKET_ROW)

    @simd.jit
    def add_scores(tile, context, scratch, start, stop, out):
        first = context.position + tile.first // tile.group
        last = context.position + (tile.first + tile.rows - 1) // tile.group
        keys, queries = load(tile.record + at.position_keys), load(tile.record + at.position_queries)
        end, low = (stop + 15) // 16 * 16, 0
        if keys != 0:
            low = bucket_of(tile, first, end - 1) // SPAN * SPAN
            multiply_keys(tile, scratch, low, bucket_of(tile, last, start))
        for page in range(start, end, PAGE):
            tokens, lowest = min(PAGE, end - page), 0
            if queries != 0:
                lowest = bucket_of(tile, first, page + tokens - 1) // ROWS * ROWS
                here = opened(keys_of(tile, context, page), scratch + page_at)
                multiply_page(tile, scratch, here, tokens, lowest, bucket_of(tile, last, page))
            for row in range(tile.rows):
                position = context.position + (tile.first + row) // tile.group
                buckets = load(tile.record + at.buckets) + (page - position) * 4
                place = out + row * SCORES + page * 4
                by_content = scratch + content_at + row * CONTENT_ROW - low * 4
                by_position = scratch + position_at - lowest * BUCKET_ROW
                for i in range(0, tokens * 4, 64):
                    x = vload(place + i)
                    if keys != 0:
                        x = x + vgather(by_content, 4, 0, buckets + i)
                    if queries != 0:
                        x = x + vgather(by_position + i, BUCKET_ROW, 4, buckets + i)
                    vstore(place + i, x)

    return add_scores


def _opened(simd: Any, head_dim: int, kv_dtype: str) -> Any:
    """Make the helper that returns the address of a head's keys in a page, as the loop over buckets reads them."""
    if kv_dtype in ("bf16", "f32"):

        @simd.jit
        def as_stored(here, page):
            return here

        return as_stored
    widen = inner_loops.widen_keys(simd, head_dim, kv_dtype)

    @simd.jit
    def widened(here, page):
        widen(here, page)
        return page

    return widened


@kernel("disentangled_attention", DisentangledRecord, quantizes="value_dim")
def build(simd: Any, head_dim: int, value_dim: int, kv_dtype: str, activation_bits: int) -> Any:
    """Build disentangled attention. The parameters are as for attention."""
    at, space = DisentangledRecord.at, ScratchLayout(head_dim, value_dim, POSITION_BYTES)
    rows = rows_of(simd, at)
    seen, weights_at = rows.seen, space.weights
    add_position_scores = position_scores(simd, at, rows, space, kv_dtype)

    @simd.jit
    def add_scores(tile, context, scratch, piece):
        begin, end = seen(tile, context, tile.first, tile.rows)
        start, stop = max(begin, piece) // PAGE * PAGE, min(end, piece + PIECE)
        if start < stop:
            add_position_scores(tile, context, scratch, start, stop, scratch + weights_at - piece * 4)

    plain = walk(simd, at, rows, space, kv_dtype, activation_bits)
    return body_of(simd, at, split_work(simd, rows, plain._replace(add_scores=add_scores), space))
