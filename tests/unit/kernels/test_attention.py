"""The kernel "attention" and its cache: near float64, and the same bits for any division into steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import ULP, VEXP, Batch, assert_close, numbers, seeds
from support.kv_cache import Cache

from pellucid.kernels.attention import attention, kv_layout
from pellucid.kernels.core.record import StepRecord


def bias_table(kind: str, H: int, most: int, seed: int) -> tuple[np.ndarray, Any]:
    """Biases for distances from -most on, as a table (H, 2 * most + 15) padded with NaN, and as a function."""
    table = np.full((H, 2 * most + 15), np.nan, np.float32)
    if kind == "alibi":
        slopes = np.float32(2.0 ** (-8 * np.arange(1, H + 1) / H))
        table[:, : 2 * most] = slopes[:, None] * np.arange(-most, most, dtype=np.float32)
    else:
        table[:, : 2 * most] = numbers("normal", seed + 9, H, 2 * most)
    if kind == "key":
        return table, lambda query, key: table[:, key + most + 0 * query].astype(np.float64)
    return table, lambda query, key: table[:, key - query + most].astype(np.float64)


heads = st.sampled_from([(1, 1), (3, 3), (8, 1), (6, 2), (4, 2), (5, 1), (7, 1)])  # H, G: groups of 1 to 8
pasts = st.integers(0, 140) | st.sampled_from([500, 511, 512, 513, 1030])  # around the borders of pieces
sequences = st.lists(st.tuples(pasts, st.integers(1, 20)), min_size=1, max_size=3)  # past, new


FORMS = [
    (16, 16, "f16", 8), (64, 64, "f16", 16), (96, 96, "f16", 8), (256, 256, "f16", 16),
    (48, 32, "f16", 8), (32, 64, "bf16", 8), (64, 64, "q8_0", 16), (192, 128, "q8_0", 8),
    (64, 32, "f32", 16),
]  # fmt: skip


@pytest.mark.parametrize(("K", "V", "kv_dtype", "activation_bits"), FORMS)
@settings(max_examples=25)
@given(
    seeds,
    sequences,
    heads,
    st.booleans(),
    st.sampled_from([0, 0, 1, 8, 33, 64, 100, 600]),
    st.sampled_from([0.0, 0.0, 2.0, 50.0]),
    st.sampled_from([("normal", "normal"), ("outlier", "normal"), ("equal", "wide"), ("zeros", "normal")]),
    st.sampled_from(["", "", "alibi", "any", "key"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
)
def test_attention_is_within_rounding_of_float64(
    K: int,
    V: int,
    kv_dtype: str,
    activation_bits: int,
    seed: int,
    sequences: list[tuple[int, int]],
    heads: tuple[int, int],
    causal: bool,
    window: int,
    softcap: float,
    kinds: tuple[str, str],
    biased: str,
    sink: bool,
    chunked: bool,
    threads: int,
) -> None:
    (H, G), scale = heads, K**-0.5
    window = window if causal else 0
    lengths = [past + new for past, new in sequences]
    whole = Batch(lengths, seed=seed, head_dim=K, value_dim=V)
    k = numbers("normal", seed, sum(lengths), G, K)
    v = numbers(kinds[1], seed + 1, sum(lengths), G, V)
    q = numbers(kinds[0], seed + 2, sum(new for _, new in sequences), H, K)
    cache = Cache(whole, k, v, threads, kv_dtype)
    batch = Batch([n for _, n in sequences], [p for p, _ in sequences], seed=seed, head_dim=K, value_dim=V)
    how: dict[str, Any] = {"scale": scale, "softcap": softcap, "causal": int(causal), "window": window}
    chunked = chunked and window > 0
    how["chunked"] = int(chunked)
    more: dict[str, Any] = {}
    if biased:
        table, more["bias"] = bias_table(biased, H, max(lengths), seed)
        how |= {"bias": table[:, max(lengths) :].ctypes.data, "bias_stride": table.strides[0]}
        how["bias_step"] = 0 if biased == "key" else 4
    if sink:
        how["sinks"] = more["sinks"] = numbers("normal", seed + 3, H) * np.float32(3)
    got = cache.attend(q, batch, threads, activation_bits, **how)
    kept = [kv_layout.rounded(x, kv_dtype).astype(np.float64) for x in (k, v)]
    if kv_dtype == "bf16":  # scaled queries are rounded too
        q, scale = kv_layout.rounded(q * np.float32(scale), kv_dtype), 1.0
    row = token = 0
    for past, new in sequences:
        mine, (keys, values) = q[row : row + new], (x[token : token + past + new] for x in kept)
        said = {"scale": scale, "softcap": softcap, "causal": causal, "window": window, "chunked": chunked, **more}
        want = attention.reference(mine, keys, values, past, **said)
        # A score has K + 2 roundings of partial sums no larger than the sum of |products|. With a cap, tanh adds a few
        # roundings of a number up to the cap. Errors of scores are relative errors of weights.
        products = np.einsum("thk,shk->hts", np.abs(mine), np.repeat(np.abs(keys), H // G, 1)) * scale
        score = (K + 3) * ULP * products.max() + 8 * ULP * min(softcap, products.max() + 1)
        if biased:  # adds one sum; |bias| is at most this
            score += 2 * ULP * (products.max() + np.abs(table[:, : 2 * max(lengths)]).max())
        # A weight adds the error of its exponential; numerator and denominator are sums as long as the past.
        relative = 2 * (score + VEXP) + (past + new + 20) * ULP + (2 * VEXP + 8 * ULP) * sink
        if kv_dtype == "bf16":  # weights are rounded too
            relative += 2.0**-8
        size = attention.reference(mine, keys, np.abs(values), past, **said)
        assert_close(got[row : row + new], want, relative * size + 1e-30)
        row, token = row + new, token + past + new


@pytest.mark.parametrize("kv_dtype", kv_layout.KV_DTYPES)
@settings(max_examples=15)
@given(
    seeds,
    st.lists(st.integers(1, 90) | st.sampled_from([520, 1100]), min_size=1, max_size=3),
    heads,
    st.sampled_from([0, 5, 40, 530]),
    st.integers(0, 1),
    st.lists(st.integers(1, 40) | st.just(300), min_size=4, max_size=12),
    st.integers(1, 4),
)
def test_a_row_has_the_same_bits_however_steps_are_cut(
    kv_dtype: str,
    seed: int,
    lengths: list[int],
    heads: tuple[int, int],
    window: int,
    chunked: int,
    cuts: list[int],
    threads: int,
) -> None:
    (H, G), K = heads, 32
    whole = Batch(lengths, seed=seed, head_dim=K)
    k, v = (numbers("normal", seed + i, sum(lengths), G, K) for i in range(2))
    q = numbers("normal", seed + 2, sum(lengths), H, K)
    cache = Cache(whole, k, v, 1, kv_dtype)
    how = {"window": window, "chunked": chunked}
    together = cache.attend(q, whole, threads, **how)
    for s, first in enumerate(whole.keep["first_row"]):
        done = 0
        while done < lengths[s]:
            n = min(cuts[(s + done) % len(cuts)], lengths[s] - done)
            part = Batch([n], [done], head_dim=K)
            pages = np.ascontiguousarray(whole.keep["pages"][s : s + 1])
            part.keep["pages"], part.record[StepRecord.at.pages // 8] = pages, pages.ctypes.data
            rows = slice(first + done, first + done + n)
            alone = cache.attend(np.ascontiguousarray(q[rows]), part, 1, **how)
            assert np.array_equal(alone, together[rows])
            done += n


def test_pieces_far_apart_leave_the_largest_alone() -> None:
    """The largest score is in the first, second or last of three pieces."""
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
    assert (cache.part("keys")[page, 0, :, 5] == sign * 65504).all()
    assert (cache.part("values")[page, 0, 5] == sign * 65504).all()
    out = cache.attend(q, batch, 1)
    assert np.array_equal(out[:5], before[:5])
    assert np.isfinite(out).all()


def test_cross_attention_reads_the_memory_and_not_the_sequence_itself() -> None:
    """Two sequences with memories of 90 and 7 tokens, and with their own keys and values."""
    K, H, G = 32, 4, 2
    whole = Batch([90, 7, 3, 5], seed=1, head_dim=K)
    k, v = (numbers("normal", seed, 105, G, K) for seed in (1, 2))
    cache = Cache(whole, k, v, 1)
    q = numbers("normal", 3, 8, H, K)
    batch = Batch([3, 5], head_dim=K)
    for name, rows in (("pages", (2, 3)), ("encoder_pages", (0, 1))):
        batch.keep[name] = np.ascontiguousarray(whole.keep["pages"][list(rows)])
        batch.record[getattr(StepRecord.at, name) // 8] = batch.keep[name].ctypes.data
    batch.record[StepRecord.at.page_stride // 8] = whole.keep["pages"].shape[1]
    batch.keep["encoder_length"][:] = 90, 7
    got = cache.attend(q, batch, 2, causal=0, cross=1)
    kept = [kv_layout.rounded(x, "f16") for x in (k, v)]
    for rows, tokens in ((slice(0, 3), slice(0, 90)), (slice(3, 8), slice(90, 97))):
        want = attention.reference(q[rows], *(x[tokens] for x in kept), scale=K**-0.5, causal=False)
        assert np.abs(got[rows] - want).max() < 1e-5
