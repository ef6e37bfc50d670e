"""Writes the keys and queries of relative positions for disentangled attention, once when a model is loaded.

In: the projected vectors of R buckets (R, H, K) float32. Out: for each head

    keys      (pages, K, S): pages of S buckets, in the layout of keys in ``attention/kv_layout.py``
    queries   (R, K), times a scale, with R rounded up to whole loops (``tiles.ROWS``)

Numbers are float32, or bfloat16 beside a cache of bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.attention.kv_layout import PAGE, head_bytes, writer
from pellucid.kernels.attention.tiles import ROWS
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, Address, Record, StepRecord


class PositionTableRecord(Record):
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
        from pellucid.kernels.simd import bf16_dot

        store, number_bytes = bf16_dot.store_row, bf16_dot.ROW_BYTES

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
