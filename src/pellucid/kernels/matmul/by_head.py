"""Matrix product of heads: each head of a row is multiplied with its own matrix (latent attention).

In: rows (T, H, D) of floats or activation blocks, packed weights (H, N, D). Out: (T, H, N) float32; the heads of a row
may lie further apart than N. ``int8.py`` and ``floats.py`` compute the sums of a row, in the same order for every tile,
so the sums never depend on the other rows.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address
from pellucid.kernels.matmul import floats, int8
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.kernels.matmul.product import Operands, ProductRecord, TileSums, from_tile, rectangle


class ByHeadRecord(ProductRecord):
    """``weights`` are (H, N, D), ``x`` is (T, H, D), ``out`` is (T, H, N)."""

    heads: int  # H
    head_bytes: int  # from one head's weights to the next
    x_head: int  # bytes from one head to the next
    out_head: int  # bytes from one head to the next
    zeros: Address  # (16,) float32 zeros, the addend


def _product(simd: Any, sums: TileSums) -> Any:
    at, load = ByHeadRecord.at, simd.load_i64
    rectangle_of, operands_from = rectangle(simd, sums), from_tile(simd)

    @simd.jit
    def multiply(record, head, begin, end, rows):
        """Multiply one head of all rows with its groups of weight rows from ``begin`` to ``end``."""
        operands = Operands(
            load(record + at.weights) + head * load(record + at.head_bytes), load(record + at.group_bytes),
            load(record + at.columns),
            load(record + at.x) + head * load(record + at.x_head), load(record + at.x_stride), 0,
            load(record + at.out) + head * load(record + at.out_head), load(record + at.out_stride),
            load(record + at.zeros), 0, 0,
        )  # fmt: skip
        rectangle_of(operands_from(operands, 0, begin), end - begin, rows)

    @simd.jit
    def body(record, step, thread, threads):
        heads, groups = load(record + at.heads), load(record + at.groups)
        rows = load(step + load(record + at.rows))
        # The pairs of groups of all heads are numbered consecutively. Each thread has an equal range of the pairs.
        pairs = (groups + 1) // 2
        start, stop = simd.thread_range(heads * pairs, thread, threads)
        for head in range(heads):
            begin, end = max(start - head * pairs, 0), min(stop - head * pairs, pairs)
            if begin < end:
                multiply(record, head, 2 * begin, min(groups, 2 * end), rows)

    return body


@kernel("matmul_heads_int8", ByHeadRecord, product=True)
def build_int8(simd: Any, packed: PackedLayout, activation_bits: int) -> Any:
    """Build products of quantized weights with activation blocks."""
    return _product(simd, int8.sums(packed, activation_bits))


@kernel("matmul_heads_float", ByHeadRecord, product=True)
def build_float(simd: Any, packed: PackedLayout) -> Any:
    """Build products of floats."""
    return _product(simd, floats.sums(packed))
