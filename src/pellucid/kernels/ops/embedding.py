"""Rows by their index: of a matrix (token embeddings, learned positions, token types), or of a step (``pick``).

In: indices (T,) int32, a matrix (V, D). Out: (T, D) float32. Each row is ``factor`` times the row of the matrix,
optionally added to the values of ``out``.

``embedding`` reads a packed matrix, which matrix products may read too. A row of a packed matrix is scattered over 16
times its bytes. ``embedding_rows`` reads a float32 matrix whose rows are contiguous. Both compute the same bits.

``pick`` copies rows of the step: (T, D) -> (R, D), or the first rows of sequences (B, D).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record, StepRecord
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, PackedLayout


class EmbeddingRecord(Record):
    weights: Address  # packed (V, D); for embedding_rows: (V, D) float32, row by row
    width: int  # D, a multiple of 16
    index: int  # offset, in the step's record, of the address of the indices
    factor: float
    accumulate: int  # 1: add to out
    limit: int  # indices from ``limit`` on are replaced by 0; 0: no limit
    out: Address  # (T, D) float32


class PickRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 16
    index: int  # offset, in the step's record, of the address of the row numbers
    out: Address  # (R, D) or (B, D) float32
    rows: Count


def reference(weights: NDArray[Any], index: NDArray[Any], factor: float = 1.0) -> NDArray[np.float64]:
    """Compute the embedding in float64 from dequantized weights (V, D)."""
    return np.asarray(weights.astype(np.float64)[index] * factor, np.float64)


def _row(simd: Any, packed: PackedLayout) -> Any:
    """Make the helper that dequantizes a row of a group: (address of the group, lane, D, factor, out, accumulate)."""
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as t

    from pellucid.kernels.matmul import packing

    def write(e: Any, value: Any, factor: Any, out: Any, accumulate: Any) -> None:
        value = e.b.fmul(value, factor)
        before = e.b.select(accumulate, e.load(out, simd.f32), ir.Constant(simd.f32, 0.0))
        e.store(e.b.fadd(before, value), out)

    def emit_float(e: Any, group: Any, lane: Any, width: Any, factor: Any, out: Any, accumulate: Any) -> None:
        add = e.b.icmp_signed("!=", accumulate, e.const(0))
        size = packed.bits // 8
        with cgutils.for_range(e.b, width) as loop:
            where = e.at(group, e.times(e.at(e.times(loop.index, ROWS), lane), size))
            raw = e.load(where, simd.STORED[packed.kind], size)
            if packed.kind == "bf16":
                raw = e.b.bitcast(e.b.shl(e.b.zext(raw, simd.i32), ir.Constant(simd.i32, 16)), simd.f32)
            elif packed.kind == "f16":
                raw = e.widen(raw, "f16")
            write(e, raw, factor, e.at(out, e.times(loop.index, 4)), add)

    def emit_int(e: Any, group: Any, lane: Any, width: Any, factor: Any, out: Any, accumulate: Any) -> None:
        add = e.b.icmp_signed("!=", accumulate, e.const(0))
        lane32 = e.b.trunc(lane, simd.i32)
        blocks, per_unit = e.b.sdiv(width, e.const(BLOCK)), packed.unit // BLOCK
        scales_start = e.at(group, e.times(blocks, packed.plane_bytes))
        with cgutils.for_range(e.b, blocks) as loop:
            unit = e.at(scales_start, e.times(e.b.sdiv(loop.index, e.const(per_unit)), packed.scale_bytes))
            in_unit = e.b.srem(loop.index, e.const(per_unit))
            values = packing.planes(e, packed, e.at(group, e.times(loop.index, packed.plane_bytes)))
            scales = packing.block_scales(e, packed, unit, packing.unit_scales(e, packed, unit), in_unit)
            for i, four in enumerate(values):
                scale, minimum = scales[i * len(scales) // 8]
                word = e.b.extract_element(four, lane32)
                for byte in range(4):
                    shifted = e.b.lshr(word, ir.Constant(simd.i32, 8 * byte))
                    q = e.b.and_(shifted, ir.Constant(simd.i32, 255))
                    q = e.b.sub(q, ir.Constant(simd.i32, packed.zero_point))
                    value = e.b.fmul(e.b.sitofp(q, simd.f32), e.b.extract_element(scale, lane32))
                    if minimum is not None:
                        value = e.b.fadd(value, e.b.extract_element(minimum, lane32))
                    column = e.at(e.times(loop.index, BLOCK), 4 * i + byte)
                    write(e, value, factor, e.at(out, e.times(column, 4)), add)

    kinds = (t.int64, t.int64, t.int64, t.float32, t.int64, t.int64)
    return simd.emitted_op(t.void, kinds, emit_float if packed.is_float else emit_int)


@kernel("embedding", EmbeddingRecord)
def build(simd: Any, packed: PackedLayout) -> Any:
    at, step_at, load, load_i32 = EmbeddingRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    row = _row(simd, packed)
    plane_bytes, scale_bytes, unit = packed.plane_bytes, packed.scale_bytes, packed.unit
    is_float, size = packed.is_float, packed.bits // 8

    @simd.jit
    def body(record, step, thread, threads):
        weights, width, out = load(record + at.weights), load(record + at.width), load(record + at.out)
        factor = simd.load_f64(record + at.factor)
        accumulate, index_at = load(record + at.accumulate), load(record + at.index)
        tokens, limit = load(step + step_at.tokens), load(record + at.limit)
        if is_float:
            group_bytes = ROWS * width * size
        else:
            group_bytes = width // BLOCK * plane_bytes + (width // unit * scale_bytes + 63) // 64 * 64
        for token in range(thread, tokens, threads):
            index = load_i32(load(step + index_at) + 4 * token)
            if limit > 0 and index >= limit:
                index = 0
            row(weights + index // ROWS * group_bytes, index % ROWS, width, factor,
                out + token * width * 4, accumulate)  # fmt: skip

    return body


@kernel("embedding_rows", EmbeddingRecord)
def build_rows(simd: Any) -> Any:
    at, step_at, load, load_i32 = EmbeddingRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    vload, vstore, splat = simd.vload, simd.vstore, simd.splat

    @simd.jit
    def body(record, step, thread, threads):
        table, row_bytes, out = load(record + at.weights), 4 * load(record + at.width), load(record + at.out)
        factor = splat(np.float32(simd.load_f64(record + at.factor)))
        accumulate, index_at = load(record + at.accumulate), load(record + at.index)
        limit = load(record + at.limit)
        first, last = simd.thread_range(load(step + step_at.tokens), thread, threads)
        for token in range(first, last):
            index = load_i32(load(step + index_at) + 4 * token)
            if limit > 0 and index >= limit:
                index = 0
            row, to = table + index * row_bytes, out + token * row_bytes
            for i in range(0, row_bytes, 64):
                before = splat(0.0)
                if accumulate != 0:
                    before = vload(to + i)
                vstore(to + i, before + vload(row + i) * factor)

    return body


@kernel("pick", PickRecord)
def build_pick(simd: Any) -> Any:
    at, load, vload, vstore = PickRecord.at, simd.load_i64, simd.vload, simd.vstore

    @simd.jit
    def body(record, step, thread, threads):
        x, width, out = load(record + at.x), load(record + at.width), load(record + at.out)
        index = load(step + load(record + at.index))
        for r in range(thread, load(step + load(record + at.rows)), threads):
            source = x + simd.load_i32(index + 4 * r) * width * 4
            for i in range(0, width * 4, 64):
                vstore(out + r * width * 4 + i, vload(source + i))

    return body
