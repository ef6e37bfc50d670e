"""Attention and the cache that it reads: near float64, and the same bits however a step is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import ULP, VEXP, Batch, assert_close, call, guarded, numbers, seeds

from pellucid.kernels import attention, quantize
from pellucid.kernels.attention import PAGE
from pellucid.kernels.library import KernelKey
from pellucid.kernels.record import Step


class Cache:
    """Pages of one layer, full of NaN until written, and the sequences' keys and values as rows."""

    def __init__(self, batch: Batch, k: np.ndarray, v: np.ndarray, threads: int) -> None:
        _, G, K = k.shape
        self.batch = batch
        self.keys = guarded((batch.pool, G, K, PAGE), np.float16)
        self.values = guarded((batch.pool, G, PAGE, K), np.float16)
        self.stored = {"keys": self.keys, "values": self.values, "page_bytes": G * K * PAGE * 2}
        call(KernelKey("cache_write"), batch, threads, k=k, v=v, kv_heads=G, head_dim=K, **self.stored)

    def attend(self, q: np.ndarray, batch: Batch, threads: int, planes: int = 1, **how: Any) -> np.ndarray:
        T, H, K = q.shape
        out = guarded(q.shape)
        blocks = guarded((T, H * K // 32), quantize.block_dtype(planes)) if K % 32 == 0 else 0
        how = {"scale": K**-0.5, "softcap": 0.0, "causal": 1, "window": 0} | how
        heads = {"heads": H, "kv_heads": self.keys.shape[1]}
        fields = {"q": q, "out": out, "quantized": blocks, **heads, **self.stored, **how}
        call(KernelKey("attention", (K, planes)), batch, threads, **fields)
        if isinstance(blocks, np.ndarray):
            assert blocks.tobytes() == quantize.reference(out.reshape(T, H * K), planes).tobytes()
        return out


@given(seeds, st.lists(st.integers(1, 150), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=30)
def test_cache_holds_float16_of_what_was_written_and_nothing_else(
    seed: int, counts: list[int], G: int, threads: int
) -> None:
    batch, total, K = Batch(counts, seed=seed), sum(counts), 16
    k, v = numbers("normal", seed, total, G, K), numbers("wide", seed + 1, total, G, K)
    cache = Cache(batch, k, v, threads)
    want_keys = np.full(cache.keys.shape, np.nan, np.float16)
    want_values = np.full(cache.values.shape, np.nan, np.float16)
    for s, first in enumerate(batch.keep["first_row"]):
        for i in range(counts[s]):
            page = batch.keep["pages"][s, i // PAGE]
            want_keys[page, :, :, i % PAGE] = k[first + i]
            want_values[page, :, i % PAGE] = v[first + i]
    assert np.array_equal(cache.keys, want_keys, equal_nan=True)
    assert np.array_equal(cache.values, want_values, equal_nan=True)


heads = st.sampled_from([(1, 1), (3, 3), (8, 1), (6, 2), (4, 2), (5, 1), (7, 1)])  # H, G: groups of 1 to 8
pasts = st.integers(0, 140) | st.sampled_from([500, 511, 512, 513, 1030])  # around the borders of pieces
sequences = st.lists(st.tuples(pasts, st.integers(1, 20)), min_size=1, max_size=3)  # past, new


@pytest.mark.parametrize(("K", "planes"), [(16, 1), (64, 2), (96, 1), (256, 2)])
@settings(max_examples=40)
@given(
    seeds,
    sequences,
    heads,
    st.booleans(),
    st.sampled_from([0, 0, 1, 8, 33, 64, 100, 600]),
    st.sampled_from([0.0, 0.0, 2.0, 50.0]),
    st.sampled_from([("normal", "normal"), ("outlier", "normal"), ("equal", "wide"), ("zeros", "normal")]),
    st.integers(1, 4),
)
def test_attention_is_within_rounding_of_float64(
    K: int,
    planes: int,
    seed: int,
    sequences: list[tuple[int, int]],
    heads: tuple[int, int],
    causal: bool,
    window: int,
    softcap: float,
    kinds: tuple[str, str],
    threads: int,
) -> None:
    (H, G), scale = heads, K**-0.5
    window = window if causal else 0
    lengths = [past + new for past, new in sequences]
    whole = Batch(lengths, seed=seed, head_dim=K)
    k = numbers("normal", seed, sum(lengths), G, K)
    v = numbers(kinds[1], seed + 1, sum(lengths), G, K)
    q = numbers(kinds[0], seed + 2, sum(new for _, new in sequences), H, K)
    cache = Cache(whole, k, v, threads)
    batch = Batch([n for _, n in sequences], [p for p, _ in sequences], seed=seed, head_dim=K)
    how = {"scale": scale, "softcap": softcap, "causal": int(causal), "window": window}
    got = cache.attend(q, batch, threads, planes, **how)
    stored = [x.astype(np.float16).astype(np.float64) for x in (k, v)]
    row = token = 0
    for past, new in sequences:
        mine, (keys, values) = q[row : row + new], (x[token : token + past + new] for x in stored)
        said = {"scale": scale, "softcap": softcap, "causal": causal, "window": window}
        want = attention.reference(mine, keys, values, past, **said)
        # A score: K + 2 roundings of partial sums no larger than the sum of |products|. With a cap, tanh adds its
        # own, a few roundings of a number up to the cap. Errors of scores are relative errors of weights.
        products = np.einsum("thk,shk->hts", np.abs(mine), np.repeat(np.abs(keys), H // G, 1)) * scale
        score = (K + 3) * ULP * products.max() + 8 * ULP * min(softcap, products.max() + 1)
        # A weight: also its exponential's; then a sum as long as the past, above and below the line.
        relative = 2 * (score + VEXP) + (past + new + 20) * ULP
        size = attention.reference(mine, keys, np.abs(values), past, **said)
        assert_close(got[row : row + new], want, relative * size + 1e-30)
        row, token = row + new, token + past + new


@settings(max_examples=25)
@given(
    seeds,
    st.lists(st.integers(1, 90) | st.sampled_from([520, 1100]), min_size=1, max_size=3),
    heads,
    st.sampled_from([0, 5, 40, 530]),
    st.lists(st.integers(1, 40) | st.just(300), min_size=4, max_size=12),
    st.integers(1, 4),
)
def test_a_row_has_the_same_bits_however_steps_are_cut(
    seed: int, lengths: list[int], heads: tuple[int, int], window: int, cuts: list[int], threads: int
) -> None:
    (H, G), K = heads, 16
    whole = Batch(lengths, seed=seed)
    k, v = (numbers("normal", seed + i, sum(lengths), G, K) for i in range(2))
    q = numbers("normal", seed + 2, sum(lengths), H, K)
    cache = Cache(whole, k, v, 1)
    together = cache.attend(q, whole, threads, window=window)
    for s, first in enumerate(whole.keep["first_row"]):
        done = 0
        while done < lengths[s]:
            n = min(cuts[(s + done) % len(cuts)], lengths[s] - done)
            part = Batch([n], [done])
            pages = np.ascontiguousarray(whole.keep["pages"][s : s + 1])
            part.keep["pages"], part.record[Step.at.pages // 8] = pages, pages.ctypes.data
            rows = slice(first + done, first + done + n)
            alone = cache.attend(np.ascontiguousarray(q[rows]), part, 1, window=window)
            assert np.array_equal(alone, together[rows])
            done += n


def test_pieces_far_apart_leave_the_largest_alone() -> None:
    """The largest score in the first piece of three, in the second, in the last."""
    T, v = 1100, numbers("normal", 1, 1100, 1, 16)
    for where in (3, 700, 1090):
        q, k = np.full((T, 1, 16), 100, np.float32), np.zeros((T, 1, 16), np.float32)
        k[where] = 100
        batch = Batch([T])
        out = Cache(batch, k, v, 1).attend(q, batch, 1)
        assert np.array_equal(out[where:], np.repeat(v[where : where + 1].astype(np.float16), T - where, 0))


def test_scores_far_apart_leave_the_largest_alone() -> None:
    q, k = np.zeros((40, 1, 16), np.float32), np.zeros((40, 1, 16), np.float32)
    q[...], k[7] = 100, 100
    v = numbers("normal", 1, 40, 1, 16)
    batch = Batch([40])
    out = Cache(batch, k, v, 1).attend(q, batch, 1)
    assert np.array_equal(out[7:], np.repeat(v[7:8].astype(np.float16).astype(np.float32), 33, 0))


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_beyond_float16_are_kept_at_its_largest_and_leave_earlier_tokens_alone(sign: int) -> None:
    q, k, v = (numbers("normal", seed, 6, 1, 16) for seed in range(3))
    before = Cache(Batch([6]), k, v, 1).attend(q, Batch([6]), 1)
    k[5], v[5] = sign * 1e6, sign * 1e30
    batch = Batch([6])
    cache = Cache(batch, k, v, 1)
    page = batch.keep["pages"][0, 0]
    assert (cache.keys[page, 0, :, 5] == sign * 65504).all()
    assert (cache.values[page, 0, 5] == sign * 65504).all()
    out = cache.attend(q, batch, 1)
    assert np.array_equal(out[:5], before[:5])
    assert np.isfinite(out).all()
