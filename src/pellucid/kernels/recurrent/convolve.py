"""Depthwise convolution: each column is a weighted sum of the same column in the last J tokens.

    out[t, c] = f(bias[c] + sum over j < J of weight[j, c] * x[t - (J - 1) + j, c])          (T, C) → (T, C)

With ``ahead`` A, the sum is over x[t - (J - 1) + j + A, c], with zeros after the last token: the last A of the J tokens
are later tokens. With ``ahead``, a sequence must run in one step (LFM2.5's encoders).

f is SiLU (Mamba-2, Gated DeltaNet) or the identity (LFM2). The state is the last J - 1 inputs, (J - 1, C) float32;
before the first token the state is zeros. The sum runs from the oldest token to the newest, so its bits do not depend
on the split of a sequence into steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, StepRecord
from pellucid.kernels.ops.elementwise import sigmoid_vector
from pellucid.kernels.recurrent.scan import StateRecord, state_sequence


class ConvolveRecord(StateRecord):
    """``state`` is (J - 1, C) float32."""

    x: Address  # (T, C) float32
    width: int  # C, a multiple of 16
    taps: int  # J
    weight: Address  # (J, weight_stride / 4) float32
    weight_stride: int  # bytes
    bias: Address  # (C,) float32, or 0: none
    out: Address  # (T, C) float32; not x


def reference(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | float = 0.0, silu: bool = False, ahead: int = 0
) -> NDArray[np.float64]:
    """Compute in float64 the convolution of a whole sequence, starting from a state of zeros.

    x (T, C), weight (J, C).
    """
    zeros = np.zeros((len(weight) - 1, x.shape[1]))
    padded = np.concatenate([zeros, x.astype(np.float64), zeros])
    out = bias + sum(padded[j + ahead : j + ahead + len(x)] * row for j, row in enumerate(weight.astype(np.float64)))
    return np.asarray(out / (1 + np.exp(-out)) if silu else out, np.float64)


@kernel("convolve", ConvolveRecord)
def build(simd: Any, silu: bool, ahead: int) -> Any:
    """Build the convolution of a step's sequences. With ``silu``, f is SiLU."""
    at, step_at, load = ConvolveRecord.at, StepRecord.at, simd.load_i64
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma
    sequence_of, sigmoid = state_sequence(simd, at), sigmoid_vector(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x, out, bias = load(record + at.x), load(record + at.out), load(record + at.bias)
        weight, stride = load(record + at.weight), load(record + at.weight_stride)
        row, kept = 4 * load(record + at.width), load(record + at.taps) - 1
        # Columns are divided as in matrix products, so that a thread's input is already in its own CPU cache.
        blocks = (row + 127) // 128
        begin, end = blocks * thread // threads * 128, min(row, blocks * (thread + 1) // threads * 128)
        for s in range(load(step + step_at.sequences)):
            before, after, first, count = sequence_of(record, step, s)
            for t in range(count):
                here = x + (first + t) * row
                for c in range(begin, end, 64):
                    total = splat(0.0)
                    if bias != 0:
                        total = vload(bias + c)
                    for j in range(kept + 1):
                        back = kept - j - ahead
                        if back <= t:
                            if t - back < count:
                                total = fma(vload(here - back * row + c), vload(weight + j * stride + c), total)
                        elif before != 0:
                            old = before + (kept + t - back) * row + c
                            total = fma(vload(old), vload(weight + j * stride + c), total)
                    if silu:
                        total = total * sigmoid(total)
                    vstore(out + (first + t) * row + c, total)
            # The state may be updated in place: each of its rows is read before it is written.
            for j in range(kept):
                token = count - kept + j
                for c in range(begin, end, 64):
                    value = splat(0.0)
                    if token >= 0:
                        value = vload(x + (first + token) * row + c)
                    elif before != 0:
                        value = vload(before + (kept + token) * row + c)
                    vstore(after + j * row + c, value)

    return body
