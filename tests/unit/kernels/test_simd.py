"""The exponential and the reciprocal that kernels share: their errors are the basis of tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernels import VEXP, declared

from pellucid.kernels.core import library
from pellucid.kernels.core.definitions import KernelKey


def builder(operation: str) -> Callable[[Any], Any]:
    """The builder of a kernel: apply an operation to ``count`` numbers, a multiple of 16, from ``x`` to ``out``."""

    def build(simd: Any) -> Any:
        apply, load, store = getattr(simd, operation), simd.vload, simd.vstore

        @simd.jit
        def body(x, out, count, unused):  # type: ignore[no-untyped-def]
            for i in range(0, count * 4, 64):
                store(out + i, apply(load(x + i)))

        return body

    return build


@contextmanager
def native(operation: str, home: Path) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """A function that applies an operation to an array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_HOME", str(home))
        kernels = library.Library()
        function = kernels.function(KernelKey(declared(builder(operation))))

    def call(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        out = np.empty_like(x)
        function(x.ctypes.data, out.ctypes.data, x.size, 0)
        return out

    yield call
    del kernels  # frees the code, which must live until the last test


@pytest.fixture(scope="module")
def vexp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that computes vexp of an array."""
    with native("vexp", tmp_path_factory.mktemp("home")) as call:
        yield call


def test_relative_error_is_below_what_the_kernels_tests_rest_on(vexp: Any) -> None:
    x = np.linspace(-87.3, 88.3, 1 << 21).astype(np.float32)
    x = x[(x >= np.float32(-87.3)) & (x <= np.float32(88.3))]
    x = x[: len(x) // 16 * 16]
    exact = np.exp(x.astype(np.float64))
    assert np.abs(vexp(x) / exact - 1).max() < VEXP


def test_error_is_below_one_and_a_third_units_in_the_last_place(vexp: Any) -> None:
    x = np.linspace(-87, 88, 1 << 20).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(vexp(x) - exact) / np.spacing(exact.astype(np.float32))).max() < 4 / 3


def test_below_the_smallest_normal_number_it_is_exactly_zero(vexp: Any) -> None:
    below = np.nextafter(np.float32(-87.3), np.float32(-100))
    assert not vexp(np.array([below, -87.4, -88, -100, -1e4, -1e30, -3e38, -np.inf] * 2)).any()


def test_it_never_overflows_and_nothing_becomes_nan(vexp: Any) -> None:
    got = vexp(np.array([88.3, 88.4, 89, 100, 1e4, 1e30, 3e38, np.inf] * 2))
    assert np.isfinite(got).all()
    assert (got == got[0]).all()


def test_zero_gives_exactly_one(vexp: Any) -> None:
    assert (vexp(np.array([0.0, -0.0] * 8)) == 1).all()


def test_it_never_falls_as_its_argument_grows_by_more_than_its_error(vexp: Any) -> None:
    y = vexp(np.linspace(-20, 5, 1 << 16))
    assert (np.diff(y) >= -2 * VEXP * y[1:]).all()


def test_error_of_a_reciprocal_is_below_two_units_in_the_last_place(tmp_path: Path) -> None:
    """Activations share the reciprocal."""
    x = np.float32(10.0 ** np.random.default_rng(0).uniform(-37, 37.9, 1 << 16))
    exact = 1 / x.astype(np.float64)
    with native("vreciprocal", tmp_path) as reciprocal:
        out = reciprocal(x)
    assert (np.abs(out - exact) / np.spacing(np.float32(exact))).max() <= 2
