"""The functions of the feed-forward against float64, gated and plain, in place and with their activation blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kernels import ULP, VEXP, Batch, assert_close, call, guarded, kinds, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from pellucid.kernels.ops import elementwise

BITS = {kind: 8 + 8 * (i % 2) for i, kind in enumerate(elementwise.KINDS)}

# |error| <= relative |f(x)| + absolute |x|. A sigmoid has the error of e^x (VEXP), a sum, a reciprocal (two units);
# below the cap of its argument, -87, it leaves e^-87 instead of zero. gelu_tanh passes it an argument with four
# roundings, and an argument a has a relative effect of a on e^a; its float64 form computes 1 - 1 and so has an error of
# 2^-52 itself. gelu: the error of erf, and the same.
ERROR = {
    "silu": lambda x: (VEXP + 6 * ULP, 1.7e-38),
    "gelu_tanh": lambda x: (VEXP + (6 + 8 * np.minimum(np.abs(1.6 * (x + 0.05 * x**3)), 90)) * ULP, 2.0**-52),
    # 1 - 2 / (e^2x + 1): near zero the error is absolute.
    "tanh": lambda x: (4 * ULP + (VEXP + 6 * ULP) / np.maximum(np.abs(np.tanh(x)), 1e-30), 0),
    "gelu": lambda x: (8 * ULP, 0.75e-7 + 4 * ULP),
    "relu": lambda x: (0, 0),
    "relu2": lambda x: (ULP, 0),
    "clamped_silu": lambda x: (VEXP + (6 + 8 * np.minimum(np.abs(1.702 * x), 90)) * ULP, 1.7e-38),
    "sigmoid": lambda x: (VEXP + 6 * ULP, 1.7e-38),
    "none": lambda x: (0, 0),
}


def run(kind: str, x: np.ndarray, up: np.ndarray | None, threads: int, in_place: bool) -> np.ndarray:
    T, F = x.shape
    source = guarded(x.shape)
    source[...] = x
    out = source if in_place else guarded(x.shape)
    blocks = guarded((T, F // 32), quantize.block_dtype(BITS[kind]))
    fields: dict[str, Any] = {"x": source, "up": 0 if up is None else up, "out": out, "quantized": blocks}
    call(
        KernelKey("activation", kind=kind, activation_bits=BITS[kind]),
        Batch([T]),
        threads,
        width=F,
        limit=7.0,
        sharpness=1.702,
        rows="tokens",
        **fields,
    )
    assert blocks.tobytes() == quantize.reference(out, BITS[kind]).tobytes()
    return out


@pytest.mark.parametrize("kind", elementwise.KINDS)
@given(kinds, seeds, tokens, st.integers(1, 6), st.booleans(), st.booleans(), threads)
def test_activation_is_within_rounding_of_float64(
    kind: str, values: str, seed: int, T: int, blocks: int, gated: bool, in_place: bool, threads: int
) -> None:
    x = numbers(values, seed, T, 32 * blocks) * np.float32(3)
    if kind == "relu2":  # keep the square within the range of float32
        x = np.clip(x, np.float32(-1e15), np.float32(1e15))
    up = numbers("normal", seed + 1, T, 32 * blocks) if gated else None
    factor = np.float64(1) if up is None else up.astype(np.float64)
    if up is not None and kind == "clamped_silu":
        factor = np.clip(factor, -7, 7) + 1
    got = run(kind, x, up, threads, in_place)
    with np.errstate(over="ignore"):
        want = elementwise.activation_reference(kind, x)
        relative, absolute = ERROR[kind](x.astype(np.float64))
    tolerance = (relative * np.abs(want) + absolute * np.abs(x, dtype=np.float64)) * np.abs(factor)
    assert_close(got, want * factor, tolerance + ULP * np.abs(want * factor) + 1e-44)


@pytest.mark.parametrize("kind", elementwise.KINDS)
def test_activation_over_the_whole_range_is_finite_and_right_at_the_ends(kind: str) -> None:
    most = 1e15 if kind == "relu2" else 1e30
    x = np.concatenate([np.linspace(-200, 200, 4096), [-most, -1e4, 0, 1e-38, 1e4, most] + [0] * 26])
    x = x.astype(np.float32).reshape(1, -1)
    got = run(kind, x, None, 1, False)
    with np.errstate(over="ignore"):
        want = elementwise.activation_reference(kind, x)
        relative, absolute = ERROR[kind](x.astype(np.float64))
    assert_close(
        got, want, relative * np.abs(want) + absolute * np.abs(x, dtype=np.float64) + ULP * np.abs(want) + 1e-44
    )
    if kind not in ("clamped_silu", "sigmoid", "tanh"):
        assert (got[x >= 30] == (x[x >= 30] ** 2 if kind == "relu2" else x[x >= 30])).all()
