"""Block formats: decoded bit for bit like the gguf package (tests/oracles/quant_oracle.py), packed without loss,
multiplied as their decoded values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from support.blocks import packed_matrix, quantised, random_blocks, unpack
from support.kernels import ULP, Batch, call, guarded, numbers, seeds

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from pellucid.weights.gguf_values import TENSOR_TYPES
from pellucid.weights.pack import decode_blocks
from pellucid.weights.quant.format import Format, formats, lookup

GOLDENS = np.load(Path(__file__).parents[2] / "goldens" / "quant" / "blocks.npz")
each_format = pytest.mark.parametrize("form", formats().values(), ids=lambda form: form.name)
each_integer = pytest.mark.parametrize("form", quantised(dict(formats())), ids=lambda form: form.name)


def golden(form: Format) -> np.ndarray:
    """Golden blocks of a format, (blocks, block_bytes)."""
    assert f"{form.name}.raw" in GOLDENS, f"{form.name} has no golden: add it to tests/oracles/quant_oracle.py"
    raw: np.ndarray = GOLDENS[f"{form.name}.raw"]
    return raw


@each_format
def test_blocks_decode_bit_for_bit_as_the_gguf_package_does(form: Format) -> None:
    raw, want = golden(form), GOLDENS[f"{form.name}.values"]
    with np.errstate(over="ignore"):
        got = decode_blocks(form, raw[:, None])
    # Two comparisons: zeros may differ in sign, as q - zero point is an integer here and a difference of floats there.
    assert np.array_equal(got, want)
    assert got[got != 0].tobytes() == want[want != 0].tobytes()


@each_format
def test_a_row_of_blocks_decodes_to_its_blocks_side_by_side(form: Format) -> None:
    raw = golden(form)[: len(golden(form)) // 2 * 2]
    rows = decode_blocks(form, raw.reshape(2, len(raw) // 2, -1))
    assert rows.shape == (2, len(raw) // 2 * form.block)
    assert rows.reshape(-1).tobytes() == decode_blocks(form, raw[:, None]).reshape(-1).tobytes()


@each_format
def test_sizes_are_those_of_the_specification(form: Format) -> None:
    sizes = {kind.name: (kind.values, kind.nbytes) for kind in TENSOR_TYPES.values()}
    assert (form.block, form.block_bytes) == sizes[form.name]
    assert form.row_bytes(form.block * 3) == form.block_bytes * 3


@each_integer
def test_packing_the_golden_blocks_loses_nothing(form: Format) -> None:
    raw, columns = golden(form)[:, None], form.block
    matrix = packed_matrix(form, raw)
    got = unpack(matrix.packed, matrix.data, len(raw), columns)
    want = form.fields(raw)
    assert np.array_equal(got.values, want.values)
    assert [side.tobytes() for side in got.scale_fields] == [
        np.ascontiguousarray(s).tobytes() for s in want.scale_fields
    ]


@each_integer
@settings(max_examples=5)
@given(seeds)
def test_a_product_with_packed_blocks_is_the_product_with_decoded_ones(form: Format, seed: int) -> None:
    columns, N = 2 * max(form.block, form.packed.unit), 24
    raw = random_blocks(form, seed, N, columns // form.block)
    matrix, out = packed_matrix(form, raw), guarded((3, 32))
    x = quantize.reference(numbers("normal", seed, 3, columns), 16)
    call(
        KernelKey("matmul_int8", packed=matrix.packed, activation_bits=16),
        Batch([3]),
        2,
        weights=matrix.data,
        groups=matrix.groups,
        group_bytes=matrix.packed.group_bytes(columns),
        columns=columns,
        x=x,
        x_stride=columns // 32 * x.dtype.itemsize,
        out=out,
        out_stride=128,
        addend=np.zeros(16, np.float32),
        addend_group=0,
        addend_row=0,
        replicated=0,
        rows="tokens",
    )
    w = decode_blocks(form, raw).astype(np.float64)
    size = np.abs(quantize.values(x)) @ np.abs(w).T
    # One rounding per term; the terms of a minimum are as large as the format's largest value.
    largest = np.abs(quantize.values(x)).sum(1, keepdims=True) * np.abs(w).max(1)
    terms = 2 * columns // form.packed.sub + 6
    assert (np.abs(out[:, :N] - quantize.values(x) @ w.T) <= terms * ULP * (size + largest)).all()
    assert not out[:, N:].any()


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"tensor x is stored as Q9_X, .*known: BF16, F16, F32, IQ4_NL"):
        lookup("Q9_X", "tensor x")
