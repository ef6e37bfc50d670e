"""The exponential and the reciprocal of 16 lanes, and the split of work among threads."""

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
