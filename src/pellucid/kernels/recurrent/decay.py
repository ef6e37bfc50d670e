"""The decay of each head's state at a token, and the token's step size (Dao and Gu 2024, Mamba-2).

    steps = clamp(softplus(x + bias), low, high)        decays = e^(rate * steps)         (T, H) → (T, H), (T, H)

softplus(x) = max(x, 0) + log(1 + e^-|x|); the logarithm is the series 2 atanh(s) with s = u / (2 + u), u = e^-|x|.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record


class DecayRecord(Record):
    x: Address  # (T, H) float32; overwritten with the steps
    width: int  # H, a multiple of 16
    bias: Address  # (H,) float32
    rate: Address  # (H,) float32, negative
    low: float
    high: float
    decays: Address  # (T, H) float32
    rows: Count


def reference(
    x: NDArray[Any], bias: NDArray[Any], rate: NDArray[Any], low: float = 0.0, high: float = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the steps and decays in float64."""
    steps = np.clip(np.logaddexp(0.0, x.astype(np.float64) + bias), low, high)
    return steps, np.exp(rate * steps)


@kernel("decay", DecayRecord)
def build(simd: Any) -> Any:
    """Build the step sizes and decays of a step's tokens."""
    at, load, vload, vstore = DecayRecord.at, simd.load_i64, simd.vload, simd.vstore
    splat, fma, vexp, vmax, vmin, vabs = simd.splat, simd.fma, simd.vexp, simd.vmax, simd.vmin, simd.vabs
    series = [np.float32(1 / n) for n in (15, 13, 11, 9, 7, 5, 3, 1)]
    s15, s13, s11, s9, s7, s5, s3, s1 = series

    @simd.jit
    def softplus(x):
        u = vexp(splat(0.0) - vabs(x))
        s = u / (u + splat(2.0))
        z = s * s
        p = fma(splat(s15), z, splat(s13))
        p = fma(p, z, splat(s11))
        p = fma(p, z, splat(s9))
        p = fma(p, z, splat(s7))
        p = fma(p, z, splat(s5))
        p = fma(p, z, splat(s3))
        p = fma(p, z, splat(s1))
        return vmax(x, splat(0.0)) + (s + s) * p

    @simd.jit
    def body(record, step, thread, threads):
        x, decays = load(record + at.x), load(record + at.decays)
        bias, rate, row = load(record + at.bias), load(record + at.rate), 4 * load(record + at.width)
        low = splat(np.float32(simd.load_f64(record + at.low)))
        high = splat(np.float32(min(simd.load_f64(record + at.high), 3e38)))
        rows = load(step + load(record + at.rows))
        for r in range(*simd.thread_range(rows, thread, threads)):
            for c in range(0, row, 64):
                steps = vmin(vmax(softplus(vload(x + r * row + c) + vload(bias + c)), low), high)
                vstore(x + r * row + c, steps)
                vstore(decays + r * row + c, vexp(steps * vload(rate + c)))

    return body
