"""The integer matrix product: near the float64 product, and bit for bit the sum that its contract defines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import integers, packed_matrix, quantised, random_blocks, scale_bytes, scales_and_minima
from support.kernels import TINY, ULP, assert_close, fma32, kinds, numbers, seeds, threads, tokens
from support.products import multiply

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import int8, many_tokens, quantize
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import Format, formats

FORMATS = quantised(dict(formats()))
matrices = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
each_activation_bits = pytest.mark.parametrize("activation_bits", [8, 16, 24])


def product(
    form: Format, raw: np.ndarray, x: np.ndarray, addend: str = "zeros", threads: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Run the kernel on activation blocks and stored weights. Returns the product and the addend, both (T, N)."""
    matrix, activation_bits = packed_matrix(form, raw), 8 * x.dtype["q"].shape[0]
    key = KernelKey("matmul_int8", packed=matrix.packed, activation_bits=activation_bits)
    return multiply(key, matrix, x, 32 * x.shape[1], addend, threads, seed)


def parts(form: Format, raw: np.ndarray, x: np.ndarray) -> tuple[Any, Any, Any]:
    """The terms of the sum by the layout's definition: sums (T, N, P) of integers, scales (N, P), minima or None.

    Sums of 24 bits are float32: ``single`` adds the sums of the top plane and of the other planes.
    """
    fields, packed = form.fields(raw), form.packed
    scale, minimum = scales_and_minima(packed, fields)
    whole, tops = quantize.integer_values(x), x["q"][:, :, 0].astype(np.int64)
    w = integers(packed, fields)
    P = w.shape[1] // packed.sub
    summed = [np.einsum("tps,nps->tnp", q.reshape(len(x), P, -1), w.reshape(len(w), P, -1)) for q in (whole, tops)]
    return (single(*summed) if x["q"].shape[2] == 3 else summed[0].astype(np.float32)), scale, minimum


def single(whole: Any, top: Any) -> np.ndarray:
    """A sum of 24 bits as float32, rounded like in the kernel."""
    others = (whole - quantize.TOP * top).astype(np.float32)
    return fma32(top.astype(np.float32), np.float32(quantize.TOP), others)


def x_sums(form: Format, x: np.ndarray) -> np.ndarray:
    """Sums of activations per sub-block, (T, P) float32. Sums of whole blocks are stored with the activations."""
    if form.packed.sub == 32:
        return np.asarray(x["sum"])
    halves = quantize.integer_values(x).reshape(*x.shape, 2, 16).sum(-1).astype(np.float32)
    return np.asarray(x["scale"][..., None] * halves).reshape(len(x), -1)


def minus_second_half(x: np.ndarray) -> np.ndarray:
    """Minus the sum of the second 16 activations of a block, rounded like in the kernel."""
    if x["q"].shape[-2] < 3:
        return np.asarray(x["minus_sum"][..., 1].astype(np.float32))
    top, others = x["minus_top"][..., 1], x["minus_sum"][..., 1]
    return fma32(top.astype(np.float32), np.float32(quantize.TOP), others.astype(np.float32))


@matrices
@each_activation_bits
@settings(max_examples=25)
@given(
    kinds, seeds, tokens, st.integers(1, 40), st.integers(1, 3), st.sampled_from(["zeros", "bias", "residual"]), threads
)
def test_product_is_within_rounding_of_float64(
    form: Format, activation_bits: int, kind: str, seed: int, T: int, N: int, units: int, addend: str, threads: int
) -> None:
    raw = random_blocks(form, seed, N, units * form.packed.unit // form.block)
    blocks = quantize.reference(numbers(kind, seed, T, units * form.packed.unit), activation_bits)
    got, before = product(form, raw, blocks, addend, threads, seed)
    want = int8.reference(blocks, decode_blocks(form, raw).astype(np.float64), before)
    # A term is rounded on conversion to float32 and when scales are multiplied; the total is rounded once per term.
    sums, scale, minimum = parts(form, raw, blocks)
    x_scale = np.repeat(blocks["scale"].astype(np.float64), 32 // form.packed.sub, 1)
    size = np.einsum("tnp,np,tp->tn", np.abs(sums), np.abs(scale, dtype=np.float64), x_scale) + np.abs(before)
    terms = sums.shape[-1]
    if minimum is not None:
        size += np.abs(x_sums(form, blocks)).astype(np.float64) @ np.abs(minimum, dtype=np.float64).T
        terms *= 2
    # decode_blocks rounds each weight that has a minimum, and a product with the scale, to float32.
    weights = np.abs(quantize.values(blocks)) @ np.abs(decode_blocks(form, raw).astype(np.float64)).T
    size_of_decoded = weights + (size if minimum is not None else 0)
    assert_close(got, want, (terms + 4) * (ULP * size + TINY) + 2 * ULP * size_of_decoded)


@matrices
@each_activation_bits
@settings(max_examples=15)
@given(seeds, tokens, st.integers(1, 33), st.integers(1, 5))
def test_blocks_add_up_in_ascending_order_by_fused_multiply_adds(
    form: Format, activation_bits: int, seed: int, T: int, N: int, units: int
) -> None:
    raw = random_blocks(form, seed, N, units * form.packed.unit // form.block)
    blocks = quantize.reference(numbers("normal", seed, T, units * form.packed.unit), activation_bits)
    sums, scale, minimum = parts(form, raw, blocks)
    total, per_block = np.zeros((T, N), np.float32), 32 // form.packed.sub
    for b in range(blocks.shape[1]):
        x, p = blocks[:, b, None], per_block * b
        if per_block == 1:
            total = fma32(sums[..., p], scale[:, p] * x["scale"], total)
        else:
            first = sums[..., p] * scale[:, p]
            scaled = fma32(sums[..., p + 1], scale[:, p + 1], first)
            if minimum is not None:
                minus = minus_second_half(x)
                scaled = fma32(minimum[:, p] - minimum[:, p + 1], minus, scaled)
            total = fma32(scaled, x["scale"], total)
        if minimum is not None:
            total = fma32(minimum[:, p], x["sum"], total)
    assert np.array_equal(product(form, raw, blocks)[0], total)


@matrices
@each_activation_bits
def test_largest_integers_do_not_overflow(form: Format, activation_bits: int) -> None:
    raw = random_blocks(form, 1, 16, form.packed.unit // form.block)
    for fill in (0, 255):
        full = np.full_like(raw, fill)
        halves = random_blocks(form, 2, 16, raw.shape[1])
        where = scale_bytes(form)
        full[..., where] = halves[..., where]
        for sign in (1, -1):
            x = quantize.reference(np.full((1, form.packed.unit), sign * 3.0, np.float32), activation_bits)
            got, _ = product(form, full, x)
            want = int8.reference(x, decode_blocks(form, full).astype(np.float64))
            size = np.abs(quantize.values(x)) @ np.abs(decode_blocks(form, full).astype(np.float64)).T
            assert_close(got, want, 64 * ULP * size)


@pytest.mark.slow
@matrices
@settings(max_examples=10)
@given(seeds)
def test_a_token_has_the_same_bits_whatever_stands_beside_it(form: Format, seed: int) -> None:
    raw = random_blocks(form, seed, 32, 2 * form.packed.unit // form.block)
    blocks = quantize.reference(numbers("normal", seed, 15, 2 * form.packed.unit), quantize.MAX_ACTIVATION_BITS)
    alone = np.concatenate([product(form, raw, blocks[t : t + 1])[0] for t in range(15)])
    for T in range(1, 16):  # every tile shape: 8, 4, 2, 1
        assert np.array_equal(product(form, raw, blocks[:T], threads=T % 4 + 1)[0], alone[:T])


@matrices
@each_activation_bits
@settings(max_examples=4)
@given(seeds, st.sampled_from([16, 23, 32, 33, 48, 61, 79]), st.integers(1, 70), st.integers(1, 20), threads)
def test_many_tokens_have_the_bits_of_few(
    form: Format, activation_bits: int, seed: int, T: int, N: int, blocks: int, threads: int
) -> None:
    """Many tokens use separate kernels: full and partial tiles, chunks of 16 blocks, odd numbers of groups."""
    units = -(-blocks * 32 // form.packed.unit)
    raw = random_blocks(form, seed, N, units * form.packed.unit // form.block)
    x = quantize.reference(numbers("normal", seed, T, units * form.packed.unit), activation_bits)
    for addend in ("zeros", "bias", "residual"):
        got, before = product(form, raw, x, addend, threads, seed)
        few = np.concatenate([product(form, raw, x[t : t + 8])[0] for t in range(0, T, 8)])
        assert np.array_equal(got, few + before)


def test_the_totals_of_more_tokens_than_are_kept_at_a_time() -> None:
    form = dict(formats())["Q4_1"]
    raw = random_blocks(form, 7, 48, 3)
    x = quantize.reference(numbers("normal", 7, many_tokens.BATCH + 45, 96), 8)
    got, before = product(form, raw, x, "residual", 2)
    few = np.concatenate([product(form, raw, x[t : t + 8])[0] for t in range(0, len(x), 8)])
    assert np.array_equal(got, few + before)
