"""The kernel "disentangled_attention": near float64, and the same bits beside other rows and on other threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import ULP, VEXP, Batch, assert_close, numbers, seeds
from support.kv_cache import Cache
from support.positions import positions

from pellucid.kernels.attention import disentangled, kv_layout
from pellucid.kernels.attention.disentangled import POSITION_BYTES
from pellucid.kernels.core.record import StepRecord
from pellucid.model.positions import RelativePositions

KINDS = [
    RelativePositions(span=16, longest=64),
    RelativePositions(span=256, longest=512),
    RelativePositions(span=24),
    RelativePositions(span=700),
    RelativePositions(span=16, longest=64, queries=False),
    RelativePositions(span=5, keys=False),
]
FORMS = [(16, 16, "f32", 16), (64, 64, "f16", 8), (32, 32, "bf16", 8), (64, 64, "q8_0", 16), (48, 32, "f16", 8)]


def attend(
    q: np.ndarray, cache: Cache, batch: Batch, threads: int, fields: dict[str, Any], scale: float, bits: int = 8
) -> np.ndarray:
    kernel = "disentangled_attention"
    return cache.attend(q, batch, threads, bits, kernel, causal=0, scale=scale, **fields)


@pytest.mark.parametrize(("K", "V", "kv_dtype", "activation_bits"), FORMS)
@settings(max_examples=25)
@given(
    seeds,
    st.lists(st.integers(1, 140) | st.sampled_from([512, 600, 1030]), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(KINDS),
    st.integers(1, 4),
)
def test_disentangled_attention_is_within_rounding_of_float64(
    K: int,
    V: int,
    kv_dtype: str,
    activation_bits: int,
    seed: int,
    lengths: list[int],
    H: int,
    kind: RelativePositions,
    threads: int,
) -> None:
    scale, total = (3 * K) ** -0.5, sum(lengths)
    batch = Batch(lengths, seed=seed, head_dim=K, value_dim=V, positions=POSITION_BYTES)
    q, k = (numbers("normal", seed + i, total, H, K) for i in range(2))
    v = numbers("normal", seed + 2, total, H, V)
    cache = Cache(batch, k, v, threads, kv_dtype)
    tables = positions(kind, H, K, kv_dtype, scale, max(lengths), seed)
    got = attend(q, cache, batch, threads, tables.fields, scale, activation_bits)
    k, v = (kv_layout.rounded(x, kv_dtype).astype(np.float64) for x in (k, v))
    keys, queries = tables.keys, tables.queries
    if kv_dtype == "bf16":  # scaled queries are rounded too
        q = kv_layout.rounded(q * np.float32(scale), kv_dtype) / np.float64(scale)
        keys = None if keys is None else kv_layout.rounded(keys, kv_dtype)
        if queries is not None:
            queries = kv_layout.rounded(queries * np.float32(scale), kv_dtype) / np.float64(scale)
    middle, first = max(lengths) - 1, 0
    for length in lengths:
        rows = slice(first, first + length)
        buckets = tables.buckets[middle - length + 1 : middle + length]
        mine = (q[rows], k[rows], v[rows], buckets, keys, queries)
        want = disentangled.reference(*mine, scale=scale)
        # As in test_attention.py, with three products instead of one, and their two sums.
        score = 3 * (K + 5) * ULP * 3 * np.abs(q[rows]).max() * np.abs(k).max() * K * scale
        relative = 2 * (score + VEXP) + (length + 20) * ULP + (2.0**-8 if kv_dtype == "bf16" else 0)
        size = disentangled.reference(*mine[:2], np.abs(v[rows]), *mine[3:], scale=scale)
        assert_close(got[rows], want, relative * size + 1e-30)
        first += length


@pytest.mark.parametrize("kv_dtype", kv_layout.KV_DTYPES)
@settings(max_examples=15)
@given(
    seeds,
    st.lists(st.integers(1, 90) | st.sampled_from([520, 1100]), min_size=2, max_size=4),
    st.integers(1, 3),
    st.sampled_from(KINDS),
    st.integers(1, 4),
)
def test_a_text_has_the_same_bits_beside_other_texts(
    kv_dtype: str, seed: int, lengths: list[int], H: int, kind: RelativePositions, threads: int
) -> None:
    K, scale = 32, 0.1
    whole = Batch(lengths, seed=seed, head_dim=K, positions=POSITION_BYTES)
    q, k, v = (numbers("normal", seed + i, sum(lengths), H, K) for i in range(3))
    cache = Cache(whole, k, v, 1, kv_dtype)
    fields = positions(kind, H, K, kv_dtype, scale, max(lengths), seed).fields
    together = attend(q, cache, whole, threads, fields, scale)
    for s, first in enumerate(whole.keep["first_row"]):
        rows = slice(first, first + lengths[s])
        part = Batch([lengths[s]], head_dim=K, positions=POSITION_BYTES)
        pages = np.ascontiguousarray(whole.keep["pages"][s : s + 1])
        part.keep["pages"], part.record[StepRecord.at.pages // 8] = pages, pages.ctypes.data
        alone = attend(np.ascontiguousarray(q[rows]), cache, part, 1, fields, scale)
        assert np.array_equal(alone, together[rows])


def test_positions_change_the_order_of_equal_tokens() -> None:
    """All tokens are equal; the key of one bucket alone decides that a query attends to the token before it."""
    T, K, kind = 40, 16, RelativePositions(span=64, queries=False)
    batch = Batch([T], head_dim=K, positions=POSITION_BYTES)
    q, k = np.ones((T, 1, K), np.float32), np.zeros((T, 1, K), np.float32)
    v = numbers("normal", 1, T, 1, K)
    cache = Cache(batch, k, v, 1, "f32")
    tables = positions(kind, 1, K, "f32", 1.0, T, 0)
    keys = tables.fields["position_keys"].view(np.float32).reshape(2, K, kv_layout.PAGE)
    keys[...] = 0
    bucket = kind.bucket(1)
    keys[bucket // kv_layout.PAGE, :, bucket % kv_layout.PAGE] = 10
    out = attend(q, cache, batch, 2, tables.fields, 1.0)
    np.testing.assert_allclose(out[1:], v[:-1], atol=1e-6)
