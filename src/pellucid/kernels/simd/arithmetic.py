"""Operations on vectors: lane-wise arithmetic, masks, permutations, reductions, exponentials, reciprocals."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin

from pellucid.kernels.core.compiler import jit
from pellucid.kernels.simd.emitter import (
    LANES,
    F32x16,
    F64x16,
    I32x16,
    VectorType,
    emitted_op,
    f32,
    f64,
    i16,
    i32,
    i64,
    vec,
)

# Lane-wise operations on float32, int32 and float64 vectors, and two operations on 64-bit integers.

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


# Operations that depend on a lane's index or combine lanes: masks, permutations, reductions.
#
# Reductions always combine lane i with lane i+8, then i+4, i+2, i+1.


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


# The exponential and the reciprocal of 16 lanes, sine and cosine of a number, and the split of work among threads.


@jit
def vexp(x):
    """Return e**x for 16 lanes: Cody and Waite's reduction, then a polynomial of degree 6. Relative error 2e-7.

    All float32 kernels use this exponential, so softmax and activations have the same bits everywhere. The result is 0
    below -87.3, where it would no longer be a normal number. x is capped at 88.3, so the result is never infinite.
    """
    clamped = vmin(vmax(x, splat(-87.3)), splat(88.3))
    shifted = fma(clamped, splat(1.44269504), splat(ROUNDING))
    n = shifted - splat(ROUNDING)
    r = fma(n, splat(-0.693359375), clamped)
    r = fma(n, splat(2.12194440e-4), r)
    p = fma(r, splat(1.9875691500e-4), splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, r * r, r + splat(1.0))
    return select_below(x, splat(-87.3), splat(0.0), times_power_of_two(p, bits(shifted)))


@jit
def vexp64(x):
    """Return e**x for 16 float64 lanes with -1400 <= x <= 0. Relative error 2e-15; the result is 0 below -708.

    The reduction is the same as in ``vexp``. The polynomial is 1 + r + r**2 times a polynomial of degree 8, which
    interpolates exp at Chebyshev nodes.
    """
    shifted = fma64(x, splat64(1.4426950408889634), splat64(ROUNDING64))
    n = shifted - splat64(ROUNDING64)
    r = fma64(n, splat64(-6.93145751953125e-1), x)
    r = fma64(n, splat64(-1.42860682030941723212e-6), r)
    p = fma64(splat64(2.761380686153829e-07), r, splat64(2.762511557828763e-06))
    p = fma64(p, r, splat64(2.4801536388690766e-05))
    p = fma64(p, r, splat64(0.00019841208732536384))
    p = fma64(p, r, splat64(0.0013888888905881542))
    p = fma64(p, r, splat64(0.008333333353729397))
    p = fma64(p, r, splat64(0.04166666666665136))
    p = fma64(p, r, splat64(0.1666666666664829))
    p = fma64(p, r, splat64(0.5))
    p = fma64(p, r, splat64(1.0))
    p = fma64(p, r, splat64(1.0))
    return select_below64(x, splat64(-708.0), splat64(0.0), times_power_of_two64(p, shifted))


@jit
def sine_and_cosine(x):
    """Return sin(x) and cos(x) of a float64 with |x| < 2**24. Absolute error 3e-16.

    The mathematical libraries of two systems may round differently, so kernels have their own functions. The reduction
    subtracts multiples of pi/2 in three parts; the first two have 29 bits, so their products are exact. The polynomials
    are those of fdlibm (Sun Microsystems, 1993: ``k_sin.c``, ``k_cos.c``).
    """
    shifted = x * 0.6366197723675814 + ROUNDING64
    n = shifted - ROUNDING64
    r = ((x - n * 1.570796325802803) - n * 9.920935774287987e-10) - n * 2.2517417741562176e-18
    z = r * r
    p = 8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * (
        -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))  # fmt: skip
    sine = r + r * z * (-1.66666666666666324348e-01 + z * p)
    q = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 + z * (
        -2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))))  # fmt: skip
    w = 1.0 - 0.5 * z
    cosine = w + (((1.0 - w) - 0.5 * z) + z * z * q)
    quarter = int(n) & 3
    if quarter & 1:
        sine, cosine = cosine, sine
    if quarter & 2:
        sine = -sine
    if (quarter + 1) & 2:
        cosine = -cosine
    return sine, cosine


def _guess_reciprocal(e, x):
    """Return 1 / x with a relative error of at most 1/8: integer arithmetic on the bits negates the exponent."""
    return e.b.bitcast(e.b.sub(e.fill(i32, 0x7EF127EA), e.b.bitcast(x, vec(i32))), vec(f32))


guess_reciprocal = emitted_op(F32x16, (F32x16,), _guess_reciprocal)


@jit
def vreciprocal(x):
    """Return 1 / x for 16 lanes of 1e-37 to 8e37, within 2 units in the last place.

    Three Newton-Raphson steps refine a guess. A division occupies a pipeline for sixteen cycles, this function for
    four. The result has the same bits on every machine.
    """
    y = guess_reciprocal(x)
    y = fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)
    y = fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)
    return fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)


@jit
def thread_range(total, thread, threads):
    """Return a thread's part of ``total`` units, (first, end): equal and consecutive parts."""
    return total * thread // threads, total * (thread + 1) // threads
