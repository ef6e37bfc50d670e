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
def test_out_is_that_of_the_changed_pattern(kv_dtype: str, seed: int, threads: int, data: st.DataObject) -> None:
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
            factors = np.full(length, factor, np.float32)
            keep.append(factors)
            words += [i, which, factors.ctypes.data, address]
            delta = (factor - 1) * pattern[i, which].astype(np.float64) + (given_ if address else 0)
            own = stored[ends[s] - n : ends[s], (first + which) // group]
            expected[row, first + which] += delta[start : position + 1] @ own[start : position + 1]
            sizes[row, first + which] = np.abs(delta[start : position + 1]) @ np.abs(own[start : position + 1]).max(-1)
            if kind == 1:
                sizes[row, first + which] = 0
    entries = np.array([len(words) // 4, *words], np.int64)
    call(
        KernelKey("trace_mix", value_dim=K, kv_dtype=kv_dtype), batch, threads,
        heads=H, kv_heads=G, values=cache.places["values"], group=0, page_bytes=cache.places["page_bytes"],
        causal=1, window=window, chunked=0, cross=0, first=first, sinks=0, raw=0, changed=pattern,
        rows=np.array([len(rows), *np.stack([rows, sequence[rows]], 1).ravel()], np.int64),
        pattern=pattern, pattern_stride=4 * count * length, pattern_head=4 * length, entries=entries, out=out,
    )  # fmt: skip
    unchanged = sizes == 0
    assert out[unchanged].tobytes() == before[unchanged].tobytes()
    rounding = 2.0**-8 if kv_dtype == "bf16" else 1e-5
    assert (np.abs(out - expected) <= rounding * sizes[..., None] + 1e-5).all()


@pytest.mark.parametrize("kv_dtype", kv_layout.KV_DTYPES)
@settings(max_examples=25)
@given(seed=seeds, threads=threads, data=st.data())
def test_out_is_that_of_the_softmax_of_changed_scores(
    kv_dtype: str, seed: int, threads: int, data: st.DataObject
) -> None:
    rng, K, G, group = np.random.default_rng(seed), 32, 2, 2
    H, tokens, past = G * group, data.draw(st.integers(1, 40)), data.draw(st.integers(0, 100))
    window, total = data.draw(st.sampled_from([0, 0, 40])), tokens + past
    with_sinks = data.draw(st.booleans())
    whole = Batch([total], head_dim=K, seed=seed)
    values = rng.standard_normal((total, G, K)).astype(np.float32)
    cache = Cache(whole, values, values, 1, kv_dtype)
    batch = Batch([tokens], [past], head_dim=K, seed=seed)
    batch.keep["pages"][...] = whole.keep["pages"]
    length, rows = -(-total // SPAN) * SPAN, np.arange(tokens)
    sinks = rng.standard_normal(H).astype(np.float32)
    position, key = past + rows[:, None, None], np.arange(length)
    seen = (key <= position) & ((position - key < window) if window else True)
    scores = np.where(seen, rng.standard_normal((tokens, H, length)) * 4, -np.inf).astype(np.float32)
    factors = rng.uniform(0, 2, (tokens, H, length)).astype(np.float32)
    addends = rng.standard_normal((tokens, H, length)).astype(np.float32)
    addends[rng.random(addends.shape) < 0.3] = -np.inf
    addends[0, 0] = -np.inf  # all keys masked
    kind = rng.integers(3, size=(tokens, H))  # 0: scores stay as they are
    words = [
        [i, head, factors[i, head].ctypes.data * (chosen == 1), addends[i, head].ctypes.data * (chosen > 0)]
        for i in range(tokens) for head in range(H) for chosen in [int(kind[i, head])]
    ]  # fmt: skip
    with np.errstate(invalid="ignore"):
        changed = np.where(kind[..., None] == 1, factors * scores + addends, scores + addends)
    changed = np.where((kind[..., None] > 0) & seen, changed, scores).astype(np.float32)
    given_, patterns = scores.copy(), np.zeros_like(scores)
    out = guarded((tokens, H, K))
    out[...] = before = rng.standard_normal((tokens, H, K)).astype(np.float32)
    call(
        KernelKey("trace_mix", value_dim=K, kv_dtype=kv_dtype), batch, threads,
        heads=H, kv_heads=G, values=cache.places["values"], group=0, page_bytes=cache.places["page_bytes"],
        causal=1, window=window, chunked=0, cross=0, first=0, sinks=sinks if with_sinks else 0, raw=1,
        rows=np.array([tokens, *np.stack([rows, 0 * rows], 1).ravel()], np.int64), pattern=given_, changed=patterns,
        pattern_stride=4 * H * length, pattern_head=4 * length,
        entries=np.array([len(words), *np.ravel(words)], np.int64), out=out,
    )  # fmt: skip
    old, new = (_softmax(x, sinks if with_sinks else None) for x in (scores, changed))
    stored = np.repeat(kv_layout.rounded(values, kv_dtype).astype(np.float64), group, 1)
    delta = (new - old)[:, :, :total]
    expected = before + np.einsum("nht,thk->nhk", delta, stored)
    assert out[kind == 0].tobytes() == before[kind == 0].tobytes()
    size = np.einsum("nht,th->nh", np.abs(delta), np.abs(stored).max(-1))
    rounding = 2.0**-8 if kv_dtype == "bf16" else 1e-5
    assert (np.abs(out - expected) <= rounding * size[..., None] + 1e-5).all()
    np.testing.assert_allclose(patterns[:, :, :total], new[:, :, :total], rtol=1e-5, atol=1e-7)
    finite = np.isfinite(changed[:, :, :total])
    assert np.array_equal(np.isfinite(given_[:, :, :total]), finite)
    np.testing.assert_allclose(given_[:, :, :total][finite], changed[:, :, :total][finite], rtol=1e-5, atol=1e-5)


def _softmax(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    x = scores.astype(np.float64)
    if sinks is not None:
        x = np.concatenate([x, np.broadcast_to(sinks[None, :, None], (*x.shape[:2], 1))], -1)
    x = np.exp(x - np.maximum(x.max(-1, keepdims=True), -1e30))
    x /= np.maximum(x.sum(-1, keepdims=True), 1e-300)
    return x[..., : scores.shape[-1]]
