"""Emits the quantization of four blocks of activations to 8 bits (``quantize.py``).

The four blocks share the shuffles of their maxima and sums, and the division. The results have the same bits as the
results of a block alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from pellucid.kernels.simd.arithmetic import ROUNDING, ROUNDING_BITS, emit_maximum
from pellucid.kernels.simd.types import LANES, f32, i8, i32, vec


def emit(e: Any, x: Any, out: Any, factors: Any | None, size: int, max_integer: int, min_largest: float) -> None:
    """Emit the quantization. ``x`` is the address of 128 float32, ``out`` of four blocks of ``size`` bytes.

    The 128 float32 at ``factors``, unless it is None, multiply the values first.

    ``max_integer`` and ``min_largest`` are constants of ``quantize.py``. Integers are summed as float32, which holds
    them exactly.
    """
    b, lanes = e.b, range(LANES)

    def mixed(one: Any, other: Any, order: list[int]) -> Any:
        """Return 16 lanes of two vectors; lanes 16 to 31 belong to the second."""
        return b.shuffle_vector(one, other, ir.Constant(vec(i32), order))

    def within_four(order: tuple[int, ...]) -> list[int]:
        return [lane // 4 * 4 + order[lane % 4] for lane in lanes]

    def by_block(four: list[Any], combine: Any) -> Any:
        """Combine the lanes of four vectors to four partial results each: lanes 4i to 4i+3 belong to vector i."""
        evens, odds = list(range(0, 32, 2)), list(range(1, 32, 2))
        while len(four) > 1:
            pairs = zip(four[::2], four[1::2])
            four = [combine(mixed(a, c, evens), mixed(a, c, odds)) for a, c in pairs]
        return four[0]

    def values(place: int) -> Any:
        loaded = e.load(e.at(x, place), vec(f32), 4)
        return loaded if factors is None else b.fmul(loaded, e.load(e.at(factors, place), vec(f32), 4))

    halves = [[values(128 * i + 64 * half) for half in (0, 1)] for i in range(4)]
    sizes = [[e.call("llvm.fabs.v16f32", one.type, one) for one in both] for both in halves]
    largest = by_block([emit_maximum(e, *both) for both in sizes], lambda one, other: emit_maximum(e, one, other))
    for order in ((1, 0, 3, 2), (2, 3, 0, 1)):
        largest = emit_maximum(e, largest, mixed(largest, largest, within_four(order)))
    times = b.fdiv(
        e.fill(f32, float(max_integer)), emit_maximum(e, largest, e.fill(f32, float(np.float32(min_largest))))
    )
    scale = b.fmul(largest, e.fill(f32, float(np.float32(1 / max_integer))))
    sums, seconds = [], []
    for i, both in enumerate(halves):
        time = mixed(times, times, [4 * i] * LANES)
        shifted = [b.fadd(b.fmul(one, time), e.fill(f32, ROUNDING)) for one in both]
        for half, one in enumerate(shifted):
            integers = b.sub(b.bitcast(one, vec(i32)), e.fill(i32, ROUNDING_BITS))
            e.store(b.trunc(integers, vec(i8)), e.at(out, size * i + 16 * half), 1)
        low, high = (b.fsub(one, e.fill(f32, ROUNDING)) for one in shifted)
        sums.append(b.fadd(low, high))
        seconds.append(high)

    def halved(partial: Any) -> Any:
        return b.fadd(partial, mixed(partial, partial, within_four((1, 0, 3, 2))))

    whole, second = halved(by_block(sums, b.fadd)), halved(by_block(seconds, b.fadd))
    # Lanes 4i to 4i+3: the sum of the block three times, then the sum of its second half.
    first, last = ([base + lane // 4 * 4 + 16 * (lane % 4 == 3) for lane in lanes] for base in (0, 2))
    both = b.fadd(mixed(whole, second, first), mixed(whole, second, last))
    minus = b.sub(b.bitcast(b.fsub(e.fill(f32, ROUNDING), both), vec(i32)), e.fill(i32, ROUNDING_BITS))
    # A block ends with its scale, scale times sum, and both sums negated as int32.
    tails = mixed(scale, b.fmul(scale, both), [lane + 16 * (lane % 4 > 0) for lane in lanes])
    tails = mixed(tails, b.bitcast(minus, vec(f32)), [lane + 16 * (lane % 4 > 1) for lane in lanes])
    for i in range(4):
        e.store(e.lanes(tails, range(4 * i, 4 * i + 4)), e.at(out, size * i + 32), 4)
