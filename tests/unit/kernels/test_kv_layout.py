"""The kernel "cache_write" writes the values of ``kv_layout.rounded`` to their slots in the pages, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, guarded, numbers, seeds
from support.kv_cache import Cache

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.attention.kv_layout import PAGE


@pytest.mark.parametrize("stored", kv_layout.KV_DTYPES)
@given(
    seeds,
    st.lists(st.integers(1, 150), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["normal", "zeros", "outlier", "tiny"]),
)
@settings(max_examples=20)
def test_cache_holds_what_was_written_and_nothing_else(
    stored: str, seed: int, counts: list[int], G: int, threads: int, kind: str
) -> None:
    batch, total, K, V = Batch(counts, seed=seed), sum(counts), 32, 96
    k, v = numbers(kind, seed, total, G, K), numbers("wide", seed + 1, total, G, V)
    cache = Cache(batch, k, v, threads, stored)
    keys, values = cache.part("keys"), cache.part("values")
    written = np.zeros((batch.pool, PAGE), bool)
    for s, first in enumerate(batch.keep["first_row"]):
        for i in range(counts[s]):
            page = batch.keep["pages"][s, i // PAGE]
            written[page, i % PAGE] = True
            assert np.array_equal(keys[page, :, :, i % PAGE], kv_layout.rounded(k[first + i], stored))
            assert np.array_equal(values[page, :, i % PAGE], kv_layout.rounded(v[first + i], stored))
    untouched = guarded((1, 1), np.uint8)[0, 0]
    for page in np.flatnonzero(~written.any(-1)):
        assert (cache.memory[page] == untouched).all()


def test_what_the_cache_rounds_to() -> None:
    """Tests ``kv_layout.rounded``, the oracle of the test above, with numbers that are easy to verify."""
    x = np.float32([1.0, 1 / 3, -70000.0, *[0.0] * 29])
    assert kv_layout.rounded(x, "f16")[:3].tolist() == [1.0, 0.333251953125, -65504.0]
    assert kv_layout.rounded(x, "bf16")[:3].tolist() == [1.0, 0.333984375, -70144.0]
    assert kv_layout.rounded(np.float32([127.0, 63.4, 0.5, *[0.0] * 29]), "q8_0")[:3].tolist() == [127.0, 63.0, 0.0]
