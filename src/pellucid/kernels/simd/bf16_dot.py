"""Products of bfloat16 numbers in pairs, added up in float32.

A lane of a vector holds two numbers, the first in its lower half, and gets both products, the second one's first:

    total = fma(x1, y1, total)    then    total = fma(x0, y0, total)

AVX-512 BF16 does that in one instruction (vdpbf16ps; Intel's manual gives this order, and Zen 4 keeps to it);
elsewhere it is these two, with the same bits but for numbers so small (below 1.2e-38) that the instruction takes them
for 0. One of the operands, "the rows'", is broadcast to all lanes: it is stored as pairs where the instruction takes
them, as float32 where it would only be taken apart again.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pellucid.kernels.simd.emitter import vector_op
from pellucid.kernels.simd.types import LANES, TARGET, F32x16, f32, i16, i32, vec

NATIVE = TARGET.isa.lanes == LANES and TARGET.has("avx512bf16")
ROW_BYTES = 2 if NATIVE else 4  # of a number of the rows' operand


def spread(e: Any, row: Any, pair: Any) -> Any:
    """A pair of the rows' operand, in all lanes, from the address of its numbers and the pair's number."""
    place = e.at(row, e.times(pair, 2 * ROW_BYTES))
    if NATIVE:
        return e.splat(e.load(place, i32))
    return tuple(e.splat(e.load(e.at(place, 4 * i), f32)) for i in range(2))


def add(e: Any, total: Any, row: Any, pairs: Any) -> Any:
    """total + the products of what ``spread`` gave with the pairs of 16 lanes (16 x i32)."""
    if NATIVE:
        kind = ir.FunctionType(total.type, [total.type, pairs.type, pairs.type])
        return e.b.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, pairs, row])
    first = e.b.bitcast(e.b.shl(pairs, e.fill(i32, 16)), total.type)
    second = e.b.bitcast(e.b.and_(pairs, e.fill(i32, -65536)), total.type)
    return e.fma(row[0], first, e.fma(row[1], second, total))


def first_only(e: Any, pairs: Any) -> Any:
    """The pairs with 0 for the second number."""
    return e.b.and_(pairs, e.fill(i32, 65535))


def _to_bf16(e: Any, x: Any) -> Any:
    """16 float32 to the nearest bfloat16, ties to even: the upper halves of the bits."""
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


# 16 numbers of the rows' operand, rounded: (address, numbers).
store_row = vector_op(types.void, (types.int64, F32x16), _keep)


def _store_apart(e: Any, address: Any, stride: Any, lanes: Any) -> None:
    for lane in range(lanes.type.count):
        value = e.b.extract_element(lanes, ir.Constant(i32, lane))
        e.store(value, e.at(address, e.b.mul(stride, e.const(lane))), 2)


# 16 neighbouring numbers as 8 pairs, ``stride`` bytes from one to the next: (address, stride, numbers).
store_pairs = vector_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(
        e, address, stride, e.b.bitcast(_to_bf16(e, x), vec(i32, LANES // 2))
    ),
)
# The same numbers as one half of 16 pairs.
store_halves = vector_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(e, address, stride, _to_bf16(e, x)),
)
