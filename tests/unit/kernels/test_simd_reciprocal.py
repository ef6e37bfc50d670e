"""The reciprocal that activations share is within two units in the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pellucid.kernels.core import definitions, library
from pellucid.kernels.core.definitions import KernelKey


def build(simd: Any) -> Any:
    """A kernel that computes 1 / x of ``count`` numbers, a multiple of 16, from ``x`` to ``out``."""
    reciprocal, load, store = simd.vreciprocal, simd.vload, simd.vstore

    @simd.jit
    def body(x, out, count, unused):  # type: ignore[no-untyped-def]
        for i in range(0, count * 4, 64):
            store(out + i, reciprocal(load(x + i)))

    return body


def test_error_is_below_two_units_in_the_last_place(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setitem(
        definitions._definitions, "reciprocal", definitions.Definition("reciprocal", None, build)
    )
    kernels = library.Library()
    native = kernels.function(KernelKey("reciprocal"))
    x = np.float32(10.0 ** np.random.default_rng(0).uniform(-37, 37.9, 1 << 16))
    out = np.empty_like(x)
    native(x.ctypes.data, out.ctypes.data, x.size, 0)
    exact = 1 / x.astype(np.float64)
    assert (np.abs(out - exact) / np.spacing(np.float32(exact))).max() <= 2
