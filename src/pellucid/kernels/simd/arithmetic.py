"""Lane-wise operations on float32, int32 and float64 vectors, and two operations on 64-bit integers."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from pellucid.kernels.simd.emitter import emitted_op
from pellucid.kernels.simd.types import LANES, F32x16, F64x16, I32x16, VectorType, f32, f64, i32, i64, vec

ROUNDING = 12582912.0  # 1.5 * 2**23: adding it rounds a float32 to an integer, held in the low bits
ROUNDING_BITS = 0x4B400000
ROUNDING64 = 6755399441055744.0  # 1.5 * 2**52

splat = emitted_op(F32x16, (types.float32,), lambda e, x: e.splat(x))
fma = emitted_op(F32x16, (F32x16, F32x16, F32x16), lambda e, x, y, z: e.fma(x, y, z))


def emit_maximum(e, x, y):
    """Return the larger of x and y, or y if one is NaN. This is one instruction; IEEE 754's maximum takes three."""
    return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)


vmax = emitted_op(F32x16, (F32x16, F32x16), emit_maximum)
vmin = emitted_op(F32x16, (F32x16, F32x16), lambda e, x, y: e.b.select(e.b.fcmp_ordered("<", x, y), x, y))
vabs = emitted_op(F32x16, (F32x16,), lambda e, x: e.call("llvm.fabs.v16f32", x.type, x))
# The nearest integer, ties to even, for |x| < 2**22: two instructions instead of three.
nearest = emitted_op(
    I32x16,
    (F32x16,),
    lambda e, x: e.b.sub(e.b.bitcast(e.b.fadd(x, e.fill(f32, ROUNDING)), vec(i32)), e.fill(i32, ROUNDING_BITS)),
)
# x * 2**n by adding n to the exponent; x and the result must be normal numbers.
times_power_of_two = emitted_op(
    F32x16,
    (F32x16, I32x16),
    lambda e, x, n: e.b.bitcast(e.b.add(e.b.bitcast(x, vec(i32)), e.b.shl(n, e.fill(i32, 23))), vec(f32)),
)
bits = emitted_op(I32x16, (F32x16,), lambda e, x: e.b.bitcast(x, vec(i32)))
# (w + 64) // 128 of an integer w, so that w - 128 * high is in -64 to 63.
high_plane = emitted_op(I32x16, (I32x16,), lambda e, w: e.b.ashr(e.b.add(w, e.fill(i32, 64)), e.fill(i32, 7)))
low_plane = emitted_op(  # w - 128 * high
    I32x16, (I32x16, I32x16), lambda e, w, high: e.b.sub(w, e.b.shl(high, e.fill(i32, 7)))
)
# (w + 2**13) // 2**14 of an integer w, so that the rest is in -2**13 to 2**13 - 1.
top_plane = emitted_op(I32x16, (I32x16,), lambda e, w: e.b.ashr(e.b.add(w, e.fill(i32, 1 << 13)), e.fill(i32, 14)))
below_top = emitted_op(  # w - 2**14 * top
    I32x16, (I32x16, I32x16), lambda e, w, top: e.b.sub(w, e.b.shl(top, e.fill(i32, 14)))
)
select_below = emitted_op(  # a where x < limit, else b
    F32x16,
    (F32x16, F32x16, F32x16, F32x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)

widen64 = emitted_op(F64x16, (F32x16,), lambda e, x: e.b.fpext(x, vec(f64)))
splat64 = emitted_op(F64x16, (types.float64,), lambda e, x: e.splat(x))
fma64 = emitted_op(F64x16, (F64x16, F64x16, F64x16), lambda e, x, y, z: e.call("llvm.fma.v16f64", x.type, x, y, z))
# x * 2**n by adding n to the exponent; ``shifted`` is n + ROUNDING64.
times_power_of_two64 = emitted_op(
    F64x16,
    (F64x16, F64x16),
    lambda e, x, shifted: e.b.bitcast(
        e.b.add(e.b.bitcast(x, vec(i64)), e.b.shl(e.b.bitcast(shifted, vec(i64)), ir.Constant(vec(i64), [52] * LANES))),
        vec(f64),
    ),
)
select_below64 = emitted_op(
    F64x16,
    (F64x16, F64x16, F64x16, F64x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)

# The low 64 bits of a product. Numba's own operator promises LLVM that products do not overflow, but hashes overflow.
mul64 = emitted_op(types.int64, (types.int64, types.int64), lambda e, a, b: e.b.mul(a, b))
# The index of the lowest bit that is set, in a word that is not 0.
lowest_bit = emitted_op(
    types.int64, (types.int64,), lambda e, a: e.call("llvm.cttz.i64", i64, a, ir.Constant(ir.IntType(1), 1))
)


def _define_operator(op, float_name, int_name=None):
    """Define a Python operator on two vectors of the same type as an instruction of LLVM's builder."""

    @infer_global(op)
    class VectorArithmetic(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, F32x16, F32x16)
    @lower_builtin(op, F64x16, F64x16)
    def lower_float(context, builder, sig, args):
        return getattr(builder, float_name)(*args)

    if int_name:

        @lower_builtin(op, I32x16, I32x16)
        def lower_int(context, builder, sig, args):
            return getattr(builder, int_name)(*args)


_define_operator(operator.add, "fadd", "add")
_define_operator(operator.sub, "fsub", "sub")
_define_operator(operator.mul, "fmul", "mul")
_define_operator(operator.truediv, "fdiv")
