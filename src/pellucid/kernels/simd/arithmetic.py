"""Operations on every lane by itself: float32, int32, and float64 for distributions; and on integers of 64 bits."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from pellucid.kernels.simd.emitter import vector_op
from pellucid.kernels.simd.types import LANES, F32x16, F64x16, I32x16, VectorType, f32, f64, i32, i64, vec

ROUNDING = 12582912.0  # 1.5 * 2**23: a float32 this large has no places behind the point, its low bits count
ROUNDING_BITS = 0x4B400000
ROUNDING64 = 6755399441055744.0  # 1.5 * 2**52

splat = vector_op(F32x16, (types.float32,), lambda e, x: e.splat(x))
fma = vector_op(F32x16, (F32x16, F32x16, F32x16), lambda e, x, y, z: e.fma(x, y, z))


def emit_maximum(e, x, y):
    """One instruction: y where either is not a number. What IEEE 754 wants of a maximum takes three."""
    return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)


vmax = vector_op(F32x16, (F32x16, F32x16), emit_maximum)
vmin = vector_op(F32x16, (F32x16, F32x16), lambda e, x, y: e.b.select(e.b.fcmp_ordered("<", x, y), x, y))
vabs = vector_op(F32x16, (F32x16,), lambda e, x: e.call("llvm.fabs.v16f32", x.type, x))
nearest = vector_op(  # to the nearest integer, ties to even, for |x| < 2**22; two instructions where others take three
    I32x16,
    (F32x16,),
    lambda e, x: e.b.sub(
        e.b.bitcast(e.b.fadd(x, e.fill(f32, ROUNDING)), vec(i32)), e.fill(i32, ROUNDING_BITS)
    ),
)
times_power_of_two = vector_op(  # x * 2**n by adding to the exponent; x and the result must be normal numbers
    F32x16,
    (F32x16, I32x16),
    lambda e, x, n: e.b.bitcast(e.b.add(e.b.bitcast(x, vec(i32)), e.b.shl(n, e.fill(i32, 23))), vec(f32)),
)
bits = vector_op(I32x16, (F32x16,), lambda e, x: e.b.bitcast(x, vec(i32)))
high_plane = vector_op(  # of a whole number w: (w + 64) // 128, so that w - 128 * high is -64 to 63
    I32x16, (I32x16,), lambda e, w: e.b.ashr(e.b.add(w, e.fill(i32, 64)), e.fill(i32, 7))
)
low_plane = vector_op(  # what is left
    I32x16, (I32x16, I32x16), lambda e, w, high: e.b.sub(w, e.b.shl(high, e.fill(i32, 7)))
)
select_below = vector_op(  # where x < limit: a, else b
    F32x16,
    (F32x16, F32x16, F32x16, F32x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)

widen64 = vector_op(F64x16, (F32x16,), lambda e, x: e.b.fpext(x, vec(f64)))
splat64 = vector_op(F64x16, (types.float64,), lambda e, x: e.splat(x))
fma64 = vector_op(
    F64x16, (F64x16, F64x16, F64x16), lambda e, x, y, z: e.call("llvm.fma.v16f64", x.type, x, y, z)
)
times_power_of_two64 = vector_op(  # x * 2**n, where ``shifted`` is n + ROUNDING64; likewise
    F64x16,
    (F64x16, F64x16),
    lambda e, x, shifted: e.b.bitcast(
        e.b.add(
            e.b.bitcast(x, vec(i64)),
            e.b.shl(e.b.bitcast(shifted, vec(i64)), ir.Constant(vec(i64), [52] * LANES)),
        ),
        vec(f64),
    ),
)
select_below64 = vector_op(
    F64x16,
    (F64x16, F64x16, F64x16, F64x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)

# A product of which the low 64 bits are wanted, for hashing: Numba's own lets LLVM take it that none are lost.
times = vector_op(types.int64, (types.int64, types.int64), lambda e, a, b: e.b.mul(a, b))
lowest_bit = vector_op(  # its number; of a word that is not 0
    types.int64, (types.int64,), lambda e, a: e.call("llvm.cttz.i64", i64, a, ir.Constant(ir.IntType(1), 1))
)


def _define_operator(op, float_name, int_name=None):
    """Teach Numba a Python operator on two vectors of one type, as an instruction of the builder."""

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
