"""Half precision, with the instructions of the processor and with integers, and the kernels' own sine and cosine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernels import declared

from pellucid.kernels.core import library
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.simd import emitter


def build_from_half(simd: Any) -> Any:
    load, store = simd.load_f16, simd.store_f32

    @simd.jit
    def body(x, out, count, unused):  # type: ignore[no-untyped-def]
        for i in range(count):
            store(out + 4 * i, load(x + 2 * i))

    return body


def build_to_half(simd: Any) -> Any:
    load, store = simd.vload, simd.vstore_f16

    @simd.jit
    def body(x, out, count, unused):  # type: ignore[no-untyped-def]
        for i in range(0, count, 16):
            store(out + 2 * i, load(x + 4 * i))

    return body


def build_sine_and_cosine(simd: Any) -> Any:
    load, store, both = simd.load_f64, simd.store_f64, simd.sine_and_cosine

    @simd.jit
    def body(x, out, count, unused):  # type: ignore[no-untyped-def]
        for i in range(count):
            sine, cosine = both(load(x + 8 * i))
            store(out + 16 * i, sine)
            store(out + 16 * i + 8, cosine)

    return body


def run(
    build: Callable[[Any], Any], home: Path, patch: pytest.MonkeyPatch, x: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """Compile a kernel, call it on all numbers of ``x``, and return ``out``."""
    patch.setenv("PELLUCID_HOME", str(home))
    kernels = library.Library()
    kernels.function(KernelKey(declared(build)))(x.ctypes.data, out.ctypes.data, x.size, 0)
    return out


@pytest.fixture(params=["instructions", "integers"])
def converts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "integers":
        monkeypatch.setattr(emitter, "CONVERTS", False)
    elif not emitter.CONVERTS:
        pytest.skip("this processor has no instructions for half precision")


def test_every_half_is_converted_exactly(converts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    found = run(build_from_half, tmp_path, monkeypatch, every, np.empty(every.size, np.float32))
    exact = every.view(np.float16).astype(np.float32)
    assert (np.isnan(found) == np.isnan(exact)).all()
    numbers = ~np.isnan(exact)
    assert (found.view(np.uint32)[numbers] == exact.view(np.uint32)[numbers]).all()


def test_numbers_are_rounded_to_the_nearest_half(
    converts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers of all magnitudes, all halves, the middle between each two, and its neighbours."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    near = [np.nextafter(middles, np.float32(way)) for way in (-np.inf, np.inf)]
    edges = np.float32([65519.996, 65520, 65536, 1e30, np.inf, -np.inf, np.nan, 0.0, -0.0, 2**-25, 2**-26])
    x = np.concatenate([halves, middles, *near, bits.view(np.float32), edges])
    x = np.resize(x, -(-x.size // 16) * 16)
    found = run(build_to_half, tmp_path, monkeypatch, x, np.empty(x.size, np.uint16)).view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = x.astype(np.float16)
    assert (np.isnan(found) == np.isnan(x)).all()
    numbers = ~np.isnan(x)
    assert (found.view(np.uint16)[numbers] == exact.view(np.uint16)[numbers]).all()


def test_sine_and_cosine_have_the_stated_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    x = np.concatenate([numbers.uniform(-most, most, 1 << 16) for most in (1, 1e3, 1e6, 2.0**24)])
    x = np.concatenate([x, np.arange(-64, 65) * np.pi / 4, [0.0]])
    out = run(build_sine_and_cosine, tmp_path, monkeypatch, x, np.empty((x.size, 2)))
    assert np.abs(out - np.stack([np.sin(x), np.cos(x)], axis=1)).max() < 3e-16
