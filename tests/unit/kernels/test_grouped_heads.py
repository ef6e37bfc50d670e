"""Each head is multiplied with its own matrix, with the bits of the plain matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import packed_matrix, random_blocks
from support.kernels import Batch, call, guarded, numbers, seeds, threads, tokens

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from pellucid.weights.quant.format import formats

FORMATS = {name: formats()[name] for name in ("Q4_K", "Q8_0", "F32", "BF16")}
ZEROS = np.zeros(16, np.float32)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15)
@given(
    seeds,
    tokens | st.integers(32, 50),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 2),
    st.sampled_from([8, 16, 24]),
    threads,
)
def test_every_head_meets_its_own_matrix(
    name: str, seed: int, T: int, heads: int, rows: int, apart: int, activation_bits: int, threads: int
) -> None:
    form = FORMATS[name]
    packed, columns = form.packed, max(32, form.packed.unit)
    matrices = [packed_matrix(form, random_blocks(form, seed + i, rows, columns // form.block)) for i in range(heads)]
    each = len(matrices[0].data)
    whole = guarded(heads * each, np.uint8)
    whole[...] = np.concatenate([matrix.data for matrix in matrices])
    width = 16 * matrices[0].groups
    x = numbers("normal", seed, T, heads, columns)
    if packed.is_float:
        key, plain = KernelKey("matmul_heads_float", packed=packed), KernelKey("matmul_float", packed=packed)
    else:
        bits = {"activation_bits": activation_bits}
        key = KernelKey("matmul_heads_int8", packed=packed, **bits)
        plain = KernelKey("matmul_int8", packed=packed, **bits)
        x = quantize.reference(x.reshape(T * heads, columns), activation_bits).reshape(T, heads, -1)
    out = guarded((T, heads, width + 16 * apart))
    common = {
        "groups": matrices[0].groups, "group_bytes": packed.group_bytes(columns), "columns": columns,
        "rows": "tokens",
    }  # fmt: skip
    call(
        key, Batch([T]), threads, weights=whole, heads=heads, head_bytes=each, x=np.ascontiguousarray(x),
        x_stride=x[0].nbytes, x_head=x[0, 0].nbytes, out=out, out_stride=out[0].nbytes,
        out_head=out[0, 0].nbytes, zeros=ZEROS, **common,
    )  # fmt: skip
    assert np.isnan(out[..., width:]).all(), "what is between the heads is left alone"
    for head, matrix in enumerate(matrices):
        wanted = guarded((T, width))
        call(
            plain, Batch([T]), weights=matrix.data, x=np.ascontiguousarray(x[:, head]), out=wanted,
            x_stride=x[0, 0].nbytes, out_stride=4 * width, addend=ZEROS, addend_group=0, addend_row=0,
            replicated=0, **common,
        )  # fmt: skip
        np.testing.assert_array_equal(out[:, head, :width], wanted)
