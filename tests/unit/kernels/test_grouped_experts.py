"""Each row is multiplied with its expert's matrix, with the bits of the plain matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import packed_matrix, random_blocks
from support.kernels import Batch, call, guarded, numbers, seeds, threads

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from pellucid.kernels.matmul.layouts import BLOCK, round_up
from pellucid.kernels.matmul.many_tokens import BATCH, CHUNK
from pellucid.weights.quant.format import formats

FORMATS = {name: formats()[name] for name in ("Q4_K", "Q6_K", "Q8_0", "MXFP4", "F32", "BF16")}
choices = (
    st.lists(st.integers(0, 4), min_size=1, max_size=40)
    | st.lists(st.integers(0, 1), min_size=70, max_size=90)
    | st.just([1, 0] * 15 + [1] * (BATCH + 30))
)
"""Expert of each row: five experts, two experts with many rows, or an expert with more rows than BATCH."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("gathered", [False, True])
@settings(max_examples=15)
@given(
    seeds,
    choices,
    st.integers(1, 40),
    st.sampled_from([1, CHUNK + 1]),
    st.booleans(),
    st.sampled_from([8, 16, 24]),
    threads,
)
def test_every_row_meets_its_own_expert(
    name: str,
    gathered: bool,
    seed: int,
    experts: list[int],
    rows: int,
    blocks: int,
    biased: bool,
    activation_bits: int,
    threads: int,
) -> None:
    form, rng = FORMATS[name], np.random.default_rng(seed)
    columns = round_up(blocks * BLOCK, max(BLOCK, form.packed.unit))
    raw = [random_blocks(form, seed + i, rows, columns // form.block) for i in range(5)]
    matrices = [packed_matrix(form, one) for one in raw]
    packed, groups, width = form.packed, matrices[0].groups, 16 * matrices[0].groups
    whole = guarded(5 * len(matrices[0].data), np.uint8)
    whole[...] = np.concatenate([matrix.data for matrix in matrices])
    bias = rng.standard_normal((5, width)).astype(np.float32) if biased else np.zeros(16, np.float32)

    ids = np.array(experts)
    order = np.argsort(ids, kind="stable")  # rows sorted by expert: order[p] is the choice at position p
    runs = np.searchsorted(ids[order], range(6)).astype(np.int32)
    x = numbers("normal", seed, len(ids), columns)
    source = x if gathered else x[order]
    if packed.is_float:
        key = KernelKey("matmul_experts_float", packed=packed, gathered=gathered)
        plain = KernelKey("matmul_float", packed=packed)
    else:
        key = KernelKey("matmul_experts_int8", packed=packed, activation_bits=activation_bits, gathered=gathered)
        plain = KernelKey("matmul_int8", packed=packed, activation_bits=activation_bits)
        x, source = (quantize.reference(one, activation_bits) for one in (x, source))
    stride = x[0].nbytes
    out = guarded((len(ids), width))
    common = {
        "groups": groups,
        "group_bytes": packed.group_bytes(columns),
        "columns": columns,
        "x_stride": stride,
        "out_stride": 4 * width,
        "addend_group": 64 * biased,
        "replicated": 0,
        "rows": "tokens",
    }
    call(
        key,
        Batch([len(ids)]),
        threads,
        weights=whole,
        experts=5,
        expert_bytes=len(matrices[0].data),
        x=source,
        runs=runs,
        sources=order.astype(np.int32),
        out=out,
        addend=bias,
        addend_expert=4 * width * biased,
        **common,
    )
    for place, choice in enumerate(order):
        wanted, expert = guarded((1, width)), ids[choice]
        addend = np.ascontiguousarray(bias[expert]) if biased else bias
        call(
            plain,
            Batch([1]),
            weights=matrices[expert].data,
            x=np.ascontiguousarray(x[choice : choice + 1]),
            out=wanted,
            addend=addend,
            addend_row=0,
            **common,
        )
        np.testing.assert_array_equal(out[place], wanted[0])
