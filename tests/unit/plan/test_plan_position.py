"""Rotary frequencies against transformers' numbers and a float64 form of its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pellucid.errors import UnsupportedModel
from pellucid.model.positions import Rotary, RotaryScaling
from pellucid.plan.position import inverse_frequencies

LINEAR = RotaryScaling("linear", 4.0)
LLAMA3 = RotaryScaling("llama3", 8.0, 1.0, 4.0, 8192)  # Llama 3.1

# From transformers 5.24.0: ROPE_INIT_FUNCTIONS[...](LlamaConfig(head_dim=..., rope_parameters=...)), in float32.
TRANSFORMERS_LINEAR_16 = [0.25, 0.079056941, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05]
TRANSFORMERS_LLAMA3_64 = [
    *(1.0, 0.66360128, 0.44036663, 0.29222783, 0.19392276, 0.12868738, 0.085397102, 0.056669619, 0.037606031),
    *(0.024955409, 0.016560441, 0.010989529, 0.0072926651, 0.0048394212, 0.0032114461, 0.0013718937),
    *(0.00052484602, 0.00017850779, 7.7846555e-05, 5.165907e-05, 3.4281024e-05, 2.2748929e-05, 1.5096218e-05),
    *(1.0017869e-05, 6.6478697e-06, 4.4115345e-06, 2.9274997e-06, 1.9426925e-06, 1.2891732e-06, 8.5549692e-07),
    *(5.6770881e-07, 3.7673226e-07),
]


def test_transformers_numbers() -> None:
    linear = inverse_frequencies(Rotary(10_000.0, 16, "half", LINEAR), 128)
    np.testing.assert_allclose(linear, TRANSFORMERS_LINEAR_16, rtol=2e-6)
    llama3 = inverse_frequencies(Rotary(500_000.0, 64, "half", LLAMA3), 128)
    np.testing.assert_allclose(llama3, TRANSFORMERS_LLAMA3_64, rtol=2e-6)


@pytest.mark.parametrize(("base", "dims"), [(10_000.0, 64), (500_000.0, 128), (1e6, 256), (1000.0, 16)])
def test_formulas_in_float64(base: float, dims: int) -> None:
    plain = 1 / base ** (np.arange(0, dims, 2) / dims)
    wavelength = 2 * math.pi / plain
    smooth = (8192 / wavelength - 1) / (4 - 1)
    blended = (1 - smooth) * plain / 8 + smooth * plain
    llama3 = np.where(wavelength < 8192 / 4, plain, np.where(wavelength > 8192, plain / 8, blended))
    for scaling, wanted in ((None, plain), (LINEAR, plain / 4), (LLAMA3, llama3)):
        got = inverse_frequencies(Rotary(base, dims, "interleaved", scaling), 128)
        np.testing.assert_allclose(got, wanted, rtol=1e-14)


def test_one_border_divides_what_is_beyond_it() -> None:
    """Llama 4 Scout has the same number for both borders. A wavelength on the border counts as beyond."""
    plain = inverse_frequencies(Rotary(500_000.0, 128, "half"), 128)
    trained = round(2 * math.pi / plain[20])
    scaled = inverse_frequencies(Rotary(500_000.0, 128, "half", RotaryScaling("llama3", 16.0, 1.0, 1.0, trained)), 128)
    wanted = [f if 2 * math.pi / f < trained else f / 16 for f in plain]
    assert list(scaled) == wanted
    assert 0 < sum(a == b for a, b in zip(scaled, plain)) < 64


def test_the_files_own_divisors() -> None:
    factors = tuple(float(1 + j) for j in range(8))
    got = inverse_frequencies(Rotary(10_000.0, 16, "half", factors=factors), 128)
    plain = inverse_frequencies(Rotary(10_000.0, 16, "half"), 128)
    np.testing.assert_allclose(got, np.array(plain) / factors, rtol=1e-15)


@pytest.mark.parametrize("factors", [(1.0,) * 7, (1.0,) * 7 + (0.0,), (1.0,) * 7 + (math.nan,), (-1.0,) * 8])
def test_divisors_that_are_none(factors: tuple[float, ...]) -> None:
    with pytest.raises(UnsupportedModel, match="must be 8 positive numbers"):
        inverse_frequencies(Rotary(10_000.0, 16, "half", factors=factors), 128)
