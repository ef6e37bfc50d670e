"""Rows of packed tables equal the decoded rows exactly, scaled and optionally accumulated; picking is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import integers, packed_matrix, random_blocks, scale_bytes
from support.kernels import Batch, call, guarded, numbers, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.ops import embedding
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import Format, formats

vectors = st.integers(1, 6)
counts_of_rows = st.lists(st.integers(1, 9), min_size=1, max_size=5)
POWERS = [form for form in formats().values() if form.packed.scale == "e8m0"]


@pytest.mark.parametrize("form", formats().values(), ids=lambda form: form.name)
@settings(max_examples=25)
@given(
    seeds,
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.integers(1, 3),
    st.sampled_from([1.0, 0.3]),
    st.booleans(),
    st.sampled_from(["token_ids", "positions", "token_types"]),
    st.sampled_from([0, 0, 7]),
    threads,
)
def test_rows_are_the_decoded_rows(
    form: Format, seed: int, ids: list[int], units: int, factor: float, add: bool, by: str, limit: int, threads: int
) -> None:
    D = units * max(form.packed.unit, 16)
    raw = random_blocks(form, seed, 41, D // form.block)
    batch = Batch([len(ids)], token_ids=ids, token_types=[token % 2 for token in ids])
    out = guarded((len(ids), D))
    out[...] = before = numbers("normal", seed, *out.shape)
    at = getattr(StepRecord.at, by)
    matrix = packed_matrix(form, raw)
    fields = {"weights": matrix.data, "width": D, "index": at, "factor": factor, "accumulate": int(add)}
    fields["limit"] = limit
    call(KernelKey("embedding", packed=matrix.packed), batch, threads, out=out, **fields)
    index = batch.keep[by]
    index = np.where(index >= limit, 0, index) if limit else index
    rows = decode_blocks(form, raw)
    scaled = rows[index] * np.float32(factor)
    assert np.array_equal(out, before + scaled if add else scaled)
    if not add:
        want = embedding.reference(rows, index, factor)
        assert np.abs(out - want).max() <= np.abs(want).max() * 2.0**-23


@pytest.mark.parametrize("form", POWERS, ids=lambda form: form.name)
def test_every_power_of_two_is_exact(form: Format) -> None:
    D = form.packed.unit
    raw = random_blocks(form, 3, 256, D // form.block)
    raw[..., scale_bytes(form)] = np.arange(256, dtype=np.uint8)[:, None, None]
    out = guarded((256, D))
    fields = {"width": D, "index": StepRecord.at.token_ids, "factor": 1.0, "accumulate": 0, "limit": 0}
    batch = Batch([256], token_ids=range(256))
    call(KernelKey("embedding", packed=form.packed), batch, 1, weights=packed_matrix(form, raw).data, out=out, **fields)
    with np.errstate(all="ignore"):
        rows = decode_blocks(form, raw)
    exact = integers(form.packed, form.fields(raw)) * 2.0 ** (np.arange(256)[:, None] - 128)
    held = np.abs(exact[:255]) < 2.0**128
    assert np.array_equal(rows[:255][held], exact[:255][held])
    assert np.array_equal(out, rows, equal_nan=True)
    assert not np.isfinite(out[255]).any()  # byte 255 of a scale means NaN


@settings(max_examples=25)
@given(
    seeds,
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.integers(1, 3),
    st.sampled_from([1.0, 0.3]),
    st.booleans(),
    st.sampled_from([0, 7]),
    threads,
)
def test_rows_of_a_table_have_the_bits_of_rows_of_a_packed_table(
    seed: int, ids: list[int], vectors: int, factor: float, add: bool, limit: int, threads: int
) -> None:
    form, D = formats()["F32"], 16 * vectors
    table = numbers("normal", seed, 41, D)
    raw = table.view(np.uint8).reshape(41, D, 4)
    matrix, batch = packed_matrix(form, raw), Batch([len(ids)], token_ids=ids)
    fields = {"width": D, "index": StepRecord.at.token_ids, "factor": factor, "accumulate": int(add)}
    fields["limit"] = limit
    packed, by_row = guarded((len(ids), D)), guarded((len(ids), D))
    packed[...] = by_row[...] = numbers("normal", seed + 1, *packed.shape)
    call(
        KernelKey("embedding", packed=matrix.packed), batch, threads,
        weights=matrix.data, out=packed, **fields,
    )  # fmt: skip
    call(KernelKey("embedding_rows"), batch, threads, weights=table, out=by_row, **fields)
    assert np.array_equal(by_row, packed)


@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=12), vectors, threads)
def test_pick_copies_the_wanted_rows(seed: int, rows: list[int], vectors: int, threads: int) -> None:
    x, out = numbers("normal", seed, 10, 16 * vectors), guarded((len(rows), 16 * vectors))
    batch = Batch([10], output_rows=rows)
    fields = {"x": x, "width": 16 * vectors, "index": StepRecord.at.output_rows, "out": out, "rows": "outputs"}
    call(KernelKey("pick"), batch, threads, **fields)
    assert np.array_equal(out, x[rows])


@given(seeds, counts_of_rows, vectors, threads)
def test_pick_copies_the_first_row_of_each_sequence(seed: int, counts: list[int], vectors: int, threads: int) -> None:
    x, out = numbers("normal", seed, sum(counts), 16 * vectors), guarded((len(counts), 16 * vectors))
    fields = {"x": x, "width": 16 * vectors, "index": StepRecord.at.first_row, "out": out, "rows": "sequences"}
    call(KernelKey("pick"), Batch(counts), threads, **fields)
    assert np.array_equal(out, x[np.cumsum([0, *counts[:-1]])])
