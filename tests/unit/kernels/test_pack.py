"""Packing ("pack_int", "pack_float") loses no bits: unpacking value by value returns the input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import packed_matrix, quantised, random_blocks, unpack
from support.kernels import seeds

from pellucid.kernels.matmul.layouts import ROWS, BitPlane, FileLayout, PackedLayout, half
from pellucid.weights.quant.format import Format, formats

INTEGERS = quantised(dict(formats()))
NEIGHBOURS = Format(  # in no file: successive values share a byte, with adjacent bits
    "neighbours",
    PackedLayout("int", 5, zero_point=16),
    FileLayout(32, 22, (BitPlane(6, 4, 1), BitPlane(2, 1, 1)), (half(0),)),
)
FLOATS = [form for form in formats().values() if form.packed.is_float]


@pytest.mark.parametrize("form", [*INTEGERS, NEIGHBOURS], ids=lambda form: form.name)
@settings(max_examples=20)
@given(seeds, st.integers(1, 70), st.integers(1, 4), st.integers(1, 3))
def test_packed_integers_read_back_as_the_fields_of_the_blocks(
    form: Format, seed: int, rows: int, units: int, threads: int
) -> None:
    columns = units * form.packed.unit
    raw = random_blocks(form, seed, rows, columns // form.block)
    matrix, groups = packed_matrix(form, raw, threads), -(-rows // ROWS)
    assert (matrix.rows, matrix.columns, matrix.groups) == (rows, columns, groups)
    assert matrix.address % 64 == 0
    got = unpack(matrix.packed, matrix.data, rows, columns)
    want = form.fields(raw)
    assert np.array_equal(got.values, want.values)
    assert len(got.scale_fields) == len(want.scale_fields)
    for mine, theirs in zip(got.scale_fields, want.scale_fields):
        assert mine.tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("form", FLOATS, ids=lambda form: form.name)
@settings(max_examples=20)
@given(seeds, st.integers(1, 70), st.integers(1, 64), st.integers(1, 3))
def test_packed_floats_are_columns_of_sixteen_rows_filled_up_with_zeros(
    form: Format, seed: int, rows: int, columns: int, threads: int
) -> None:
    raw, padded = random_blocks(form, seed, rows, columns), -(-columns // ROWS) * ROWS
    data = packed_matrix(form, raw, threads).data.reshape(-1, padded, ROWS, form.block_bytes)
    by_row = data.transpose(0, 2, 1, 3).reshape(-1, padded, form.block_bytes)
    assert np.array_equal(by_row[:rows, :columns], raw)
    assert not by_row[rows:].any()
    assert not by_row[:, columns:].any()


@pytest.mark.parametrize("form", formats().values(), ids=lambda form: form.name)
def test_large_matrices_are_packed_piece_by_piece_to_the_same_bytes(form: Format) -> None:
    columns = 4 * max(form.packed.unit, 64)
    raw = random_blocks(form, 5, 16 * 90, columns // form.block)
    alone = [packed_matrix(form, raw[i : i + 16]).data for i in range(0, len(raw), 16)]
    assert np.array_equal(packed_matrix(form, raw, 2).data, np.concatenate(alone))
