"""Products of pairs of bfloat16 numbers, summed in float32.

A 32-bit lane holds two numbers, the first in its lower half. The product of the second numbers is added first:

    total = fma(x1, y1, total)    then    total = fma(x0, y0, total)

AVX-512 BF16 does this in one instruction (vdpbf16ps; Intel's manual specifies this order, and Zen 4 follows it).
Other sets use two multiply-adds. Their bits are the same except for numbers below 1.2e-38, which the instruction treats
as 0. The numbers of attention's rows (queries or weights), the *rows' operand*, are broadcast to all lanes. They are
stored as bfloat16 pairs for the instruction, and as float32 otherwise, so that they need not be unpacked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pellucid.kernels.simd.emitter import LANES, TARGET, F32x16, emitted_op, f32, i16, i32, vec

NATIVE = TARGET.isa.lanes == LANES and TARGET.has("avx512bf16")
ROW_BYTES = 2 if NATIVE else 4  # bytes of a number of the rows' operand
# The halves of a pair in the order of their products: both together (None), or the second (1), then the first (0).
HALVES = (None,) if NATIVE else (1, 0)


def spread(e: Any, row: Any, pair: Any, half: int | None) -> Any:
    """Broadcast a half (one of HALVES) of pair ``pair`` of the rows' operand, whose numbers are at address ``row``."""
    place = e.at(row, e.times(pair, 2 * ROW_BYTES))
    if half is None:
        return e.splat(e.load(place, i32))
    return e.splat(e.load(e.at(place, 4 * half), f32))


def half_of(e: Any, pairs: Any, half: int | None) -> Any:
    """Return a half (one of HALVES) of 16 lanes of pairs (16 x i32), in the form that ``add`` takes."""
    if half is None:
        return pairs
    bits = e.b.and_(pairs, e.fill(i32, -65536)) if half else e.b.shl(pairs, e.fill(i32, 16))
    return e.b.bitcast(bits, vec(f32))


def add(e: Any, total: Any, row: Any, numbers: Any) -> Any:
    """Add the products of a half from ``spread`` with 16 lanes from ``half_of`` to ``total``."""
    if NATIVE:
        kind = ir.FunctionType(total.type, [total.type, numbers.type, numbers.type])
        return e.b.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, numbers, row])
    return e.fma(row, numbers, total)


def first_only(e: Any, pairs: Any) -> Any:
    """Return the pairs with their second numbers set to 0."""
    return e.b.and_(pairs, e.fill(i32, 65535))


def _to_bf16(e: Any, x: Any) -> Any:
    """Round 16 float32 to bfloat16, ties to even: the upper halves of the bits, as i16."""
    bits = e.b.bitcast(x, vec(i32))
    odd = e.b.and_(e.b.lshr(bits, e.fill(i32, 16)), e.fill(i32, 1))
    rounded = e.b.add(bits, e.b.add(odd, e.fill(i32, 0x7FFF)))
    return e.b.trunc(e.b.lshr(rounded, e.fill(i32, 16)), vec(i16))


def _keep(e: Any, address: Any, x: Any) -> None:
    if NATIVE:
        kind = ir.FunctionType(vec(i16), [x.type])
        e.store(e.b.call(ir.InlineAsm(kind, "vcvtneps2bf16 $1, $0", "=v,v"), [x]), address, 2)
    else:
        e.store(e.widen(_to_bf16(e, x), "bf16"), address)


# Round 16 numbers and store them as the rows' operand: (address, numbers).
store_row = emitted_op(types.void, (types.int64, F32x16), _keep)


def _store_apart(e: Any, address: Any, stride: Any, lanes: Any) -> None:
    for lane in range(lanes.type.count):
        value = e.b.extract_element(lanes, ir.Constant(i32, lane))
        e.store(value, e.at(address, e.b.mul(stride, e.const(lane))), 2)


# Store 16 consecutive numbers as 8 pairs, ``stride`` bytes apart: (address, stride, numbers).
store_pairs = emitted_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(e, address, stride, e.b.bitcast(_to_bf16(e, x), vec(i32, LANES // 2))),
)
# Store 16 numbers as the same half of 16 pairs, ``stride`` bytes apart: (address, stride, numbers).
store_halves = emitted_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(e, address, stride, _to_bf16(e, x)),
)
