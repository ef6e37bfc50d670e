"""The layout of keys and values in a page of the cache, and helpers for kernels that write and read pages.

A page holds S = ``PAGE`` tokens of every key/value head. A head's keys are stored by columns, (K, S), so that the
scores of 16 tokens are one vector and need no horizontal sum. A head's values are stored by tokens, (S, V).

    f16, f32    the numbers in this type
    bf16        the numbers in pairs, as ``simd/dot.py`` multiplies them: two columns of a key, (K/2, S, 2), or
                two tokens' values, (S/2, V, 2)
    q8_0        int8, with a scale for 32 columns of a token: a number is scale * q. The float16 scales follow all
                numbers of a head: (K/32, S) for keys, (S, V/32) for values. scale = max |x| / 127.

Stored numbers convert to float32 exactly, so every kernel that widens them gets the same bits. "f32" is also the form
of a page that is widened for a tile of many rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, Address, Record, StepRecord

PAGE = 64  # S, tokens of a page
KV_DTYPES = ("f16", "bf16", "q8_0", "f32")
SIZE = {"f16": 2, "bf16": 2, "q8_0": 1, "f32": 4}  # bytes of a number
SCALED = 32  # columns that share a scale in q8_0
# Largest magnitudes. Numbers are clamped to these magnitudes, because infinity times a weight of 0 would be NaN in rows
# that do not attend to the token.
MAX_VALUE = {
    "f16": 65504.0, "bf16": 3.3895313892515355e38, "q8_0": 127 * 65504.0, "f32": 3.4028234663852886e38,
}  # fmt: skip


def unit(kv_dtype: str) -> int:
    """Return the unit of head widths. The width of a head must be a multiple of the unit."""
    return SCALED if kv_dtype == "q8_0" else 16


def token_bytes(kv_dtype: str, width: int) -> int:
    """Bytes of ``width`` numbers of a token's key or value, with their scales."""
    return width * SIZE[kv_dtype] + (width // SCALED * 2 if kv_dtype == "q8_0" else 0)


def head_bytes(kv_dtype: str, width: int) -> int:
    """Bytes of one head's keys or values in a page, with ``width`` numbers for each token."""
    return PAGE * token_bytes(kv_dtype, width)


def rounded(x: NDArray[np.float32], kv_dtype: str) -> NDArray[np.float32]:
    """Round numbers (..., width) in the same way as the cache stores them."""
    x = np.clip(x, -np.float32(MAX_VALUE[kv_dtype]), np.float32(MAX_VALUE[kv_dtype]))
    if kv_dtype == "f32":
        return x
    if kv_dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    if kv_dtype == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    blocks = x.reshape(*x.shape[:-1], -1, SCALED)
    scale = (np.abs(blocks).max(-1, keepdims=True) * np.float32(1 / 127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray(np.clip(np.rint(blocks * inverse), -127, 127) * scale).reshape(x.shape)


def blocks(kv_dtype: str, width: int) -> tuple[int, int]:
    """Return the number of column blocks of a head and the columns of a block. A block has one scale in q8_0."""
    return (width // SCALED, SCALED) if kv_dtype == "q8_0" else (1, width)


def key_scales(e: Any, simd: Any, kv_dtype: str, width: int, keys: Any, block: Any, token: Any) -> list[Any]:
    """Load a column block's scales for 16 tokens from ``token`` on, then for the next 16 tokens.

    Types without scales return None in place of each vector.
    """
    if kv_dtype != "q8_0":
        return [None, None]
    place = e.at(e.at(keys, width * PAGE), e.times(e.at(e.times(block, PAGE), token), 2))
    return [e.widen(e.load(e.at(place, 32 * half), simd.vec(simd.f16), 2), "f16") for half in range(2)]


def value_scale(e: Any, simd: Any, kv_dtype: str, width: int, values: Any, token: Any, column: int) -> Any:
    """Load and broadcast the scale of a token's columns from ``column`` on. None for types without scales."""
    if kv_dtype != "q8_0":
        return None
    place = e.at(e.at(values, width * PAGE), e.times(token, width // SCALED * 2))
    return e.splat(e.widen(e.load(e.at(place, column // SCALED * 2), simd.f16, 2), "f16"))


def load16(e: Any, simd: Any, kv_dtype: str, address: Any, scale: Any) -> Any:
    """Load sixteen numbers stored as "f16", "q8_0" or "f32" and widen them to float32."""
    if kv_dtype == "q8_0":
        q = e.b.sext(e.load(address, simd.vec(simd.i8), 1), simd.vec(simd.i32))
        return e.b.fmul(e.b.sitofp(q, simd.vec(simd.f32)), scale)
    return e.widen(e.load(address, simd.vec(simd.STORED[kv_dtype]), SIZE[kv_dtype]), kv_dtype)


def writer(simd: Any, kv_dtype: str) -> tuple[Any, Any]:
    """Make the helpers (keys, values) that write one token of one head.

    Both take (x, its width, the head in the page, the token's slot in the page, 32 spare bytes).
    """
    limit = np.float32(MAX_VALUE[kv_dtype])

    @simd.jit
    def clamp(x):
        return simd.vmin(simd.vmax(x, simd.splat(-limit)), simd.splat(limit))

    if kv_dtype == "q8_0":
        return _scaled_writer(simd, clamp)
    if kv_dtype == "bf16":
        return _paired_writer(simd, clamp)
    return _float_writer(simd, clamp, kv_dtype)


def _scaled_writer(simd: Any, clamp: Any) -> tuple[Any, Any]:
    """Make the helpers for "q8_0"."""
    vload, splat, vmin, vmax, vabs = simd.vload, simd.splat, simd.vmin, simd.vmax, simd.vabs

    @simd.jit
    def to_int8(x):
        return simd.nearest(vmin(vmax(x, splat(-127.0)), splat(127.0)))

    @simd.jit
    def quantize(x, scale, out):
        """Quantize 32 numbers to 32 bytes at ``out``, and store their scale at ``scale``."""
        first, second = clamp(vload(x)), clamp(vload(x + 64))
        simd.store_f16(scale, simd.vmax_lane(vmax(vabs(first), vabs(second))) * np.float32(1 / 127))
        step, inverse = simd.load_f16(scale), np.float32(0)
        if step > np.float32(0):
            inverse = np.float32(1) / step
        simd.vstore_i8(out, to_int8(first * splat(inverse)))
        simd.vstore_i8(out + 16, to_int8(second * splat(inverse)))

    @simd.jit
    def keys(x, width, to, slot, spare):
        for block in range(width // SCALED):
            quantize(x + block * 128, to + width * PAGE + (block * PAGE + slot) * 2, spare)
            for j in range(SCALED):
                simd.store_u8(to + (block * SCALED + j) * PAGE + slot, simd.load_u8(spare + j))

    @simd.jit
    def values(x, width, to, slot, spare):
        for block in range(width // SCALED):
            scale = to + width * PAGE + (slot * (width // SCALED) + block) * 2
            quantize(x + block * 128, scale, to + slot * width + block * SCALED)

    return keys, values


def _paired_writer(simd: Any, clamp: Any) -> tuple[Any, Any]:
    """Make the helpers for "bf16"."""
    from pellucid.kernels.simd.dot import store_halves, store_pairs

    @simd.jit
    def keys(x, width, to, slot, spare):
        for j in range(0, width, 16):
            store_pairs(to + (j // 2 * PAGE + slot) * 4, PAGE * 4, clamp(simd.vload(x + 4 * j)))

    @simd.jit
    def values(x, width, to, slot, spare):
        for j in range(0, width, 16):
            place = to + (slot // 2 * width + j) * 4 + slot % 2 * 2
            store_halves(place, 4, clamp(simd.vload(x + 4 * j)))

    return keys, values


def _float_writer(simd: Any, clamp: Any, kv_dtype: str) -> tuple[Any, Any]:
    """Make the helpers for "f16" and "f32"."""
    size, limit = SIZE[kv_dtype], np.float32(MAX_VALUE[kv_dtype])
    store, vstore = (simd.store_f32, simd.vstore) if kv_dtype == "f32" else (simd.store_f16, simd.vstore_f16)

    @simd.jit
    def keys(x, width, to, slot, spare):
        for j in range(width):
            key = min(max(simd.load_f32(x + 4 * j), -limit), limit)
            store(to + (j * PAGE + slot) * size, key)

    @simd.jit
    def values(x, width, to, slot, spare):
        for j in range(0, width, 16):
            vstore(to + (slot * width + j) * size, clamp(simd.vload(x + 4 * j)))

    return keys, values


class CacheWriteRecord(Record):
    """Writes new keys and values to the pages of their sequences, in the layout of ``attention/kv_layout.py``.

    In: keys (T, G, K) and values (T, G, V) float32. Out: the layer's part of the sequences' pages.
    """

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
def build_cache_write(simd: Any, kv_dtype: str) -> Any:
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
