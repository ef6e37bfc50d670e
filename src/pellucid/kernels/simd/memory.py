"""Loads, stores and prefetches, of scalars and vectors. Addresses are int64."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from pellucid.kernels.simd.emitter import emitted_op
from pellucid.kernels.simd.half import from_half, to_half
from pellucid.kernels.simd.types import LANES, F32x16, F64x16, I32x16, f16, f32, f64, i8, i16, i32, i64, vec


def _scalar_load(stored, result, convert):
    return emitted_op(result, (types.int64,), lambda e, address: convert(e.b, e.load(address, stored, 1)))


load_i64 = _scalar_load(i64, types.int64, lambda b, v: v)
load_i32 = _scalar_load(i32, types.int64, lambda b, v: b.sext(v, i64))
load_u32 = _scalar_load(i32, types.uint32, lambda b, v: v)
load_u8 = _scalar_load(i8, types.int64, lambda b, v: b.zext(v, i64))
load_u16 = _scalar_load(i16, types.int64, lambda b, v: b.zext(v, i64))
load_f64 = _scalar_load(f64, types.float64, lambda b, v: v)
load_f32 = _scalar_load(f32, types.float32, lambda b, v: v)
load_f16 = _scalar_load(f16, types.float32, from_half)


def _scalar_store(kind, convert):
    return emitted_op(
        types.void, (types.int64, kind), lambda e, address, value: e.store(convert(e.b, value), address, 1)
    )


store_f32 = _scalar_store(types.float32, lambda b, v: v)
store_f16 = _scalar_store(types.float32, to_half)
store_f64 = _scalar_store(types.float64, lambda b, v: v)
store_i64 = _scalar_store(types.int64, lambda b, v: v)
store_u32 = _scalar_store(types.uint32, lambda b, v: v)
store_i32 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i32))
store_u8 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i8))

vload = emitted_op(F32x16, (types.int64,), lambda e, a: e.load(a, vec(f32), 2))
vstore = emitted_op(types.void, (types.int64, F32x16), lambda e, a, v: e.store(v, a))
vstore_f16 = emitted_op(types.void, (types.int64, F32x16), lambda e, a, v: e.store(to_half(e.b, v), a, 2))
vstore_i8 = emitted_op(types.void, (types.int64, I32x16), lambda e, a, v: e.store(e.b.trunc(v, vec(i8)), a, 1))
vstore64 = emitted_op(types.void, (types.int64, F64x16), lambda e, a, v: e.store(v, a, 8))
prefetch = emitted_op(types.void, (types.int64,), lambda e, address: e.prefetch(address))


def _gather(e, table, row_bytes, lane_bytes, rows):
    """Load lane i from row rows[i] of a table, ``lane_bytes`` * i bytes after the start of the row."""
    numbers, found = e.load(rows, vec(i32)), ir.Constant(vec(f32), ir.Undefined)
    for lane in range(LANES):
        row = e.b.sext(e.b.extract_element(numbers, ir.Constant(i32, lane)), i64)
        place = e.at(e.at(table, e.b.mul(row, row_bytes)), e.times(lane_bytes, lane))
        found = e.b.insert_element(found, e.load(place, f32), ir.Constant(i32, lane))
    return found


# 16 float32 from a table: (address of row 0, bytes between rows, bytes between lanes, address of 16 int32 rows).
vgather = emitted_op(F32x16, (types.int64,) * 4, _gather)


def stack_memory(nbytes: int):
    """Make an intrinsic that returns the address of ``nbytes`` on the caller's stack, aligned for vectors.

    The bytes are not set to zero. They are valid until the function that calls the intrinsic returns.
    """

    def emit(e):
        with e.b.goto_entry_block():
            place = e.b.alloca(ir.ArrayType(i8, nbytes))
        place.align = 64
        return e.b.ptrtoint(place, i64)

    return emitted_op(types.int64, (), emit)
