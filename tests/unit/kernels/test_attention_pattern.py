"""Patterns of selected rows and heads equal attention's patterns, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, call, guarded, numbers, seeds, threads
from support.kv_cache import Cache
from support.positions import positions

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.attention.disentangled import POSITION_BYTES
from pellucid.kernels.core.definitions import KernelKey
from pellucid.model.positions import RelativePositions

SPAN = 32


def reference(q: np.ndarray, k: np.ndarray, past: int, how: dict[str, Any], sinks: np.ndarray | None) -> Any:
    """(scores, patterns), each (T, H, T'), in float64."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thk,shk->ths", q.astype(np.float64), np.repeat(k, group, 1)) * how["scale"]
    if how["softcap"]:
        scores = how["softcap"] * np.tanh(scores / how["softcap"])
    query, key = np.arange(len(q))[:, None] + past, np.arange(len(k))
    seen = np.ones((len(q), len(k)), bool)
    if how["causal"]:
        seen &= key <= query
    if how["window"]:
        start = query // how["window"] * how["window"] if how["chunked"] else query - how["window"] + 1
        seen &= key >= start
    scores = np.where(seen[:, None], scores, -np.inf)
    sink = np.full((1, q.shape[1], 1), -np.inf) if sinks is None else sinks[None, :, None].astype(np.float64)
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    weights = np.exp(scores - top)
    return scores, weights / (weights.sum(-1, keepdims=True) + np.exp(sink - top))


def test_patterns_of_disentangled_attention_are_attentions() -> None:
    """The weighted values of the kernel's patterns are attention's output, over several pieces of tokens."""
    T, H, K, kind = 1100, 2, 32, RelativePositions(span=256, longest=512)
    batch = Batch([T], head_dim=K, positions=POSITION_BYTES)
    q, k, v = (numbers("normal", seed, T, H, K) for seed in range(3))
    cache = Cache(batch, k, v, 1, "f32")
    fields = positions(kind, H, K, "f32", 0.2, T, 5).fields
    how: dict[str, Any] = {"causal": 0, "scale": 0.2, **fields}
    wanted = cache.attend(q, batch, 2, kernel="disentangled_attention", **how)
    rows, length = np.array([0, 3, 511, 512, 700, 1099]), -(-T // SPAN) * SPAN
    out = guarded((len(rows), H, length))
    call(
        KernelKey("trace_disentangled", head_dim=K, kv_dtype="f32"), batch, 2, q=q, heads=H, kv_heads=H,
        keys=cache.places["keys"], group=0, page_bytes=cache.places["page_bytes"], bias=0, bias_stride=0,
        bias_step=0, cross=0, sinks=0, raw=0, first=0, count=H, softcap=0.0, window=0, chunked=0,
        rows=np.array([len(rows), *np.stack([rows, 0 * rows], 1).ravel()], np.int64),
        out=out, out_stride=4 * H * length, out_head=4 * length, **how,
    )  # fmt: skip
    np.testing.assert_allclose(np.einsum("rht,thk->rhk", out[..., :T], v), wanted[rows], atol=1e-5)


@pytest.mark.parametrize("kv_dtype", kv_layout.KV_DTYPES)
@settings(max_examples=25)
@given(seed=seeds, threads=threads, data=st.data())
def test_patterns_are_attentions(kv_dtype: str, seed: int, threads: int, data: st.DataObject) -> None:
    rng, K = np.random.default_rng(seed), 32
    G, group = data.draw(st.sampled_from([(1, 3), (2, 2), (3, 1)]))
    H, counts = G * group, data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=3))
    past = [int(n) for n in rng.integers(0, 200, len(counts))]
    how = {
        "scale": K**-0.5,
        "softcap": data.draw(st.sampled_from([0.0, 5.0])),
        "causal": data.draw(st.sampled_from([1, 1, 0])),
        "window": data.draw(st.sampled_from([0, 0, 40])),
        "chunked": 0,
    }
    if how["window"]:
        how |= {"causal": 1, "chunked": data.draw(st.sampled_from([0, 1]))}
    whole = Batch([p + n for p, n in zip(past, counts)], head_dim=K, seed=seed)
    keys = rng.standard_normal((sum(whole.counts), G, K)).astype(np.float32)
    cache = Cache(whole, keys, keys, 1, kv_dtype)
    batch = Batch(counts, past, head_dim=K, seed=seed)
    batch.keep["pages"][...] = whole.keep["pages"]
    q = rng.standard_normal((sum(counts), H, K)).astype(np.float32)
    sinks = rng.standard_normal(H).astype(np.float32) if data.draw(st.booleans()) else None
    sequence = np.repeat(np.arange(len(counts)), counts)
    rows = rng.permutation(sum(counts))[: rng.integers(1, sum(counts) + 1)]
    first = int(rng.integers(H))
    count = int(rng.integers(1, H - first + 1))
    ends = np.cumsum([p + n for p, n in zip(past, counts)])
    stored = kv_layout.rounded(keys, kv_dtype)
    queries = kv_layout.rounded(q * np.float32(how["scale"]), "bf16") / np.float32(how["scale"])
    queries = queries if kv_dtype == "bf16" else q
    for raw in (1, 0):
        length = -(-max(p + n for p, n in zip(past, counts)) // SPAN) * SPAN
        out = guarded((len(rows), count, length))
        call(
            KernelKey("trace_pattern", head_dim=K, kv_dtype=kv_dtype), batch, threads,
            q=q, heads=H, kv_heads=G, keys=cache.places["keys"], group=0,
            page_bytes=cache.places["page_bytes"], bias=0, bias_stride=0, bias_step=0, cross=0,
            sinks=0 if sinks is None else sinks, raw=raw, first=first, count=count,
            rows=np.array([len(rows), *np.stack([rows, sequence[rows]], 1).ravel()], np.int64),
            out=out, out_stride=4 * count * length, out_head=4 * length, **how,
        )  # fmt: skip
        for i, row in enumerate(rows):
            s = int(sequence[row])
            n, start = past[s] + counts[s], int(ends[s]) - past[s] - counts[s]
            inside = int(row) - int(sum(counts[:s]))
            own = reference(queries[row : row + 1], stored[start : start + n], past[s] + inside, how, sinks)[
                0 if raw else 1
            ]
            got, want = out[i, :, :n], own[0, first : first + count]
            assert np.array_equal(np.isinf(got), np.isinf(want))
            finite = np.isfinite(want)
            assert np.abs(got[finite] - want[finite]).max(initial=0.0) <= 2e-5
            assert (out[i, :, n:] == (-np.inf if raw else 0.0)).all()
