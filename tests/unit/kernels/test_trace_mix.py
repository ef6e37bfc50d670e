"""A head with an edited pattern mixes values like attention with this pattern. An equal pattern changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, seeds, threads
from support.kv_cache import Cache

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey

SPAN = 32


@pytest.mark.parametrize("kv_dtype", kv_layout.KV_DTYPES)
@settings(max_examples=25)
@given(seed=seeds, threads=threads, data=st.data())
def test_out_is_that_of_the_changed_pattern(
    kv_dtype: str, seed: int, threads: int, data: st.DataObject
) -> None:
    rng, K = np.random.default_rng(seed), 32
    G, group = data.draw(st.sampled_from([(1, 3), (2, 2)]))
    H, counts = G * group, data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))
    past = [int(n) for n in rng.integers(0, 150, len(counts))]
    window = data.draw(st.sampled_from([0, 0, 40]))
    whole = Batch([p + n for p, n in zip(past, counts)], head_dim=K, seed=seed)
    values = rng.standard_normal((sum(whole.counts), G, K)).astype(np.float32)
    cache = Cache(whole, values, values, 1, kv_dtype)
    batch = Batch(counts, past, head_dim=K, seed=seed)
    batch.keep["pages"][...] = whole.keep["pages"]
    T = sum(counts)
    sequence = np.repeat(np.arange(len(counts)), counts)
    rows = rng.permutation(T)[: rng.integers(1, T + 1)]
    first, ends = int(rng.integers(H)), np.cumsum([p + n for p, n in zip(past, counts)])
    count = int(rng.integers(1, H - first + 1))
    length = -(-max(p + n for p, n in zip(past, counts)) // SPAN) * SPAN
    pattern = rng.random((len(rows), count, length)).astype(np.float32)
    out = guarded((T, H, K))
    out[...] = before = rng.standard_normal((T, H, K)).astype(np.float32)
    expected, keep, words = before.astype(np.float64), [], []
    stored, sizes = kv_layout.rounded(values, kv_dtype).astype(np.float64), np.zeros((T, H))
    for i, row in enumerate(rows):
        s = int(sequence[row])
        n, inside = past[s] + counts[s], int(row) - sum(counts[:s])
        position = past[s] + inside
        start = max(0, position - window + 1) if window else 0
        for which in range(count):
            kind = rng.integers(4)
            if kind == 0:
                continue
            factor = [0.0, 1.0, 0.5][rng.integers(3)]
            given_ = rng.standard_normal(length).astype(np.float32)
            if kind == 1:  # replace the pattern by itself
                factor, given_ = 0.0, pattern[i, which].copy()
            keep.append(given_)
            address = given_.ctypes.data if kind < 3 else 0
            words += [i, which, int(np.float64(factor).view(np.int64)), address]
            delta = (factor - 1) * pattern[i, which].astype(np.float64) + (given_ if address else 0)
            own = stored[ends[s] - n : ends[s], (first + which) // group]
            expected[row, first + which] += delta[start : position + 1] @ own[start : position + 1]
            sizes[row, first + which] = np.abs(delta[start : position + 1]) @ np.abs(
                own[start : position + 1]
            ).max(-1)
            if kind == 1:
                sizes[row, first + which] = 0
    entries = np.array([len(words) // 4, *words], np.int64)
    call(
        KernelKey("trace_mix", value_dim=K, kv_dtype=kv_dtype), batch, threads,
        heads=H, kv_heads=G, values=cache.places["values"], group=0, page_bytes=cache.places["page_bytes"],
        causal=1, window=window, chunked=0, cross=0, first=first,
        rows=np.array([len(rows), *np.stack([rows, sequence[rows]], 1).ravel()], np.int64),
        pattern=pattern, pattern_stride=4 * count * length, pattern_head=4 * length, entries=entries, out=out,
    )  # fmt: skip
    unchanged = sizes == 0
    assert out[unchanged].tobytes() == before[unchanged].tobytes()
    rounding = 2.0**-8 if kv_dtype == "bf16" else 1e-5
    assert (np.abs(out - expected) <= rounding * sizes[..., None] + 1e-5).all()
