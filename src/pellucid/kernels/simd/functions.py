"""The exponential and the reciprocal of 16 lanes, sine and cosine of a number, and the split of work among threads."""

from __future__ import annotations

from pellucid.kernels.core.compiler import jit
from pellucid.kernels.simd.arithmetic import (
    ROUNDING,
    ROUNDING64,
    bits,
    fma,
    fma64,
    select_below,
    select_below64,
    splat,
    splat64,
    times_power_of_two,
    times_power_of_two64,
    vmax,
    vmin,
)
from pellucid.kernels.simd.emitter import emitted_op
from pellucid.kernels.simd.types import F32x16, f32, i32, vec


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
