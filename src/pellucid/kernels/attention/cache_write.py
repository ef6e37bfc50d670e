"""Writes new keys and values to the pages of their sequences, in the layout of ``attention/kv_layout.py``.

In: keys (T, G, K) and values (T, G, V) float32. Out: the layer's part of the sequences' pages.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.attention.kv_layout import PAGE, SCALED, head_bytes, writer
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, Address, Record, StepRecord


class CacheWriteRecord(Record):
    k: Address  # (T, G * K) float32
    v: Address  # (T, G * V) float32
    kv_heads: int  # G
    head_dim: int  # K, a multiple of kv_layout.unit
    value_dim: int  # V, a multiple of kv_layout.unit
    keys: Address  # G heads of page 0, see kv_layout.py
    values: Address  # G heads of page 0
    group: int  # the layer's group in the cache
    page_bytes: int  # from one page to the next


@kernel("cache_write", CacheWriteRecord)
def build(simd: Any, kv_dtype: str) -> Any:
    """Build the cache write of a step. ``kv_dtype`` is one of ``kv_layout.KV_DTYPES``."""
    at, step_at, load, load_i32 = CacheWriteRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    write_keys, write_values = writer(simd, kv_dtype)
    scaled_bytes = head_bytes(kv_dtype, SCALED)

    @simd.jit
    def bytes_of(width):
        """Return the bytes of one head in a page. ``width`` is known only at run time, from the record."""
        return width * scaled_bytes // SCALED

    @simd.jit
    def body(record, step, thread, threads):
        k, v, heads = load(record + at.k), load(record + at.v), load(record + at.kv_heads)
        head_dim, value_dim = load(record + at.head_dim), load(record + at.value_dim)
        keys, values = load(record + at.keys), load(record + at.values)
        page_bytes = load(record + at.page_bytes)
        tables = load(step + step_at.pages) + load(record + at.group) * load(step + step_at.group_stride)
        spare = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes) + SCRATCH_HEADER
        # The work is divided by (token, head), as in rotary and head norms, so that a thread's input is already in its
        # own CPU cache.
        total = load(step + step_at.tokens) * heads
        begin, end = simd.thread_range(total, thread, threads)
        for s in range(load(step + step_at.sequences)):
            first, count = (
                load_i32(load(step + step_at.first_row) + 4 * s),
                load_i32(load(step + step_at.row_count) + 4 * s),
            )
            start = load_i32(load(step + step_at.length) + 4 * s) - count
            pages = tables + s * load(step + step_at.page_stride) * 4
            for i in range(max(begin, first * heads), min(end, (first + count) * heads)):
                position, head = start + i // heads - first, i % heads
                page, slot = load_i32(pages + position // PAGE * 4) * page_bytes, position % PAGE
                key, value = (keys + page + head * bytes_of(head_dim), values + page + head * bytes_of(value_dim))
                write_keys(k + i * head_dim * 4, head_dim, key, slot, spare)
                write_values(v + i * value_dim * 4, value_dim, value, slot, spare)

    return body
