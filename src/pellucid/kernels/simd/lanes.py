"""Operations that depend on a lane's index or combine lanes: masks, permutations, reductions.

Reductions always combine lane i with lane i+8, then i+4, i+2, i+1.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from pellucid.kernels.simd.arithmetic import emit_maximum
from pellucid.kernels.simd.emitter import emitted_op
from pellucid.kernels.simd.types import LANES, F32x16, F64x16, I32x16, i16, i32, i64, vec


def _keep(e, x, first, count, other):
    """Return x in the lanes first <= lane < count, and ``other`` elsewhere."""
    lane = ir.Constant(vec(i64), list(range(LANES)))
    inside = e.b.and_(e.b.icmp_signed(">=", lane, e.splat(first)), e.b.icmp_signed("<", lane, e.splat(count)))
    return e.b.select(inside, x, e.splat(other))


keep = emitted_op(F32x16, (F32x16, types.int64, types.int64, types.float32), _keep)
# x in the lanes whose bit is set, y in the other lanes; lane 0 is the lowest bit.
select_bits = emitted_op(
    F32x16,
    (types.int64, F32x16, F32x16),
    lambda e, bits, x, y: e.b.select(e.b.bitcast(e.b.trunc(bits, i16), vec(ir.IntType(1))), x, y),
)


def _lanes_of_two(order):
    """Make an intrinsic that picks 16 lanes of two vectors; lanes 16 to 31 belong to the second vector."""
    return emitted_op(F32x16, (F32x16, F32x16), lambda e, x, y: e.b.shuffle_vector(x, y, ir.Constant(vec(i32), order)))


lane0 = emitted_op(types.float32, (F32x16,), lambda e, x: e.b.extract_element(x, ir.Constant(i32, 0)))
evens = _lanes_of_two(list(range(0, 32, 2)))
odds = _lanes_of_two(list(range(1, 32, 2)))
zipped_low = _lanes_of_two([lane // 2 + 16 * (lane % 2) for lane in range(16)])  # undoes evens and odds
zipped_high = _lanes_of_two([8 + lane // 2 + 16 * (lane % 2) for lane in range(16)])


def _reduce(combine):
    def emit(e, x):
        half = LANES // 2
        while half:
            x = combine(e, x, e.lanes(x, [(lane + half) % LANES for lane in range(LANES)]))
            half //= 2
        return e.b.extract_element(x, ir.Constant(i32, 0))

    return emit


vsum = emitted_op(types.float32, (F32x16,), _reduce(lambda e, x, y: e.b.fadd(x, y)))
vsum64 = emitted_op(types.float64, (F64x16,), _reduce(lambda e, x, y: e.b.fadd(x, y)))
vmax_lane = emitted_op(types.float32, (F32x16,), _reduce(emit_maximum))


def _minus_sums(e, first, second):
    """Return minus the sum of all 32 integers and minus the sum of the second 16, as the halves of an i64."""
    half = LANES // 2

    def folded(x):
        return e.b.add(e.lanes(x, range(half)), e.lanes(x, range(half, LANES)))

    sums = e.joined([folded(e.b.add(first, second)), folded(second)])
    step = half // 2
    while step:
        sums = e.b.add(sums, e.lanes(sums, [lane ^ step for lane in range(LANES)]))
        step //= 2
    return e.b.bitcast(e.lanes(e.b.neg(sums), [0, half]), i64)


minus_sums = emitted_op(types.int64, (I32x16, I32x16), _minus_sums)
