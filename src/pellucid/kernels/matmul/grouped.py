"""Products with several matrices: each head, or each expert of a mixture, has a matrix of its own."""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address
from pellucid.kernels.matmul import floats, int8
from pellucid.kernels.matmul.layouts import PackedLayout
from pellucid.kernels.matmul.product import Operands, ProductRecord, TileSums, from_tile, rectangle

# Matrix product of heads: each head of a row is multiplied with its own matrix (latent attention).
#
# In: rows (T, H, D) of floats or activation blocks, packed weights (H, N, D). Out: (T, H, N) float32; the heads of a
# row may lie further apart than N. ``int8.py`` and ``floats.py`` compute the sums of a row, in the same order for every
# tile, so the sums never depend on the other rows.


class ByHeadRecord(ProductRecord):
    """``weights`` are (H, N, D), ``x`` is (T, H, D), ``out`` is (T, H, N)."""

    heads: int  # H
    head_bytes: int  # from one head's weights to the next
    x_head: int  # bytes from one head to the next
    out_head: int  # bytes from one head to the next
    zeros: Address  # (16,) float32 zeros, the addend


def _by_head(simd: Any, sums: TileSums) -> Any:
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
def build_heads_int8(simd: Any, packed: PackedLayout, activation_bits: int) -> Any:
    """Build products of quantized weights with activation blocks."""
    return _by_head(simd, int8.sums(packed, activation_bits))


@kernel("matmul_heads_float", ByHeadRecord, product=True)
def build_heads_float(simd: Any, packed: PackedLayout) -> Any:
    """Build products of floats."""
    return _by_head(simd, floats.sums(packed))


# Matrix product of a mixture of experts: every row is multiplied with the matrix of its own expert.
#
# In: rows of floats or activation blocks, packed weights (E, N, D), and the row indices grouped by expert
# (``ops/mixture.py``). Out: (T * chosen, N) float32, in the order of the groups.
#
# The weights of an expert are read once for all its rows. The weights of an expert without rows are not read.
# ``int8.py`` and ``floats.py`` compute the sums of a row, in the same order for every tile, so the sums never depend on
# the other rows.

LOAD_ROWS = 4  # loading an expert's weights takes about the time of multiplying them with this many tokens


class ExpertsRecord(ProductRecord):
    """``weights`` are (E, N, D). ``x`` has T rows, or T * chosen rows in the order of the groups, like ``out``."""

    experts: int  # E
    expert_bytes: int  # from one expert's weights to the next
    runs: Address  # (E + 1,) int32: expert e has the rows from runs[e] to runs[e + 1]
    sources: Address  # (T * chosen,) int32: the token of each row, if they are gathered
    addend: Address  # (E, N) float32
    addend_expert: int  # bytes from one expert to the next
    addend_group: int  # bytes from one group of 16 to the next
    replicated: int  # 1: if there is one token, thread t reads its copy in row t of x


def _by_expert(simd: Any, sums: TileSums, gathered: bool) -> Any:
    at, load, load_i32 = ExpertsRecord.at, simd.load_i64, simd.load_i32
    rectangle_of, operands_from = rectangle(simd, sums, gathered), from_tile(simd, gathered)

    @simd.jit
    def multiply(record, expert, first_row, last_row, begin, end, x):
        """Multiply the rows of an expert with its groups of weight rows from ``begin`` to ``end``."""
        operands = Operands(
            load(record + at.weights) + expert * load(record + at.expert_bytes), load(record + at.group_bytes),
            load(record + at.columns), x, load(record + at.x_stride), load(record + at.sources),
            load(record + at.out), load(record + at.out_stride),
            load(record + at.addend) + expert * load(record + at.addend_expert), load(record + at.addend_group), 0,
        )  # fmt: skip
        rectangle_of(operands_from(operands, first_row, begin), end - begin, last_row - first_row)

    @simd.jit
    def body(record, step, thread, threads):
        runs, experts, groups = load(record + at.runs), load(record + at.experts), load(record + at.groups)
        x = load(record + at.x)
        if load(step + load(record + at.rows)) == 1 and load(record + at.replicated) != 0:
            x += thread * load(record + at.x_stride)
        # The work is counted in units. For each pair of groups, an expert with rows has one unit per row, and LOAD_ROWS
        # units for loading the weights. Each thread has an equal range of units.
        pairs, total = (groups + 1) // 2, 0
        for expert in range(experts):
            rows = load_i32(runs + 4 * expert + 4) - load_i32(runs + 4 * expert)
            if rows > 0:
                total += (rows + LOAD_ROWS) * pairs
        (start, stop), done = simd.thread_range(total, thread, threads), 0
        for expert in range(experts):
            first_row, last_row = load_i32(runs + 4 * expert), load_i32(runs + 4 * expert + 4)
            if last_row > first_row:
                cost = last_row - first_row + LOAD_ROWS
                begin = (min(max(start - done, 0), cost * pairs) + cost - 1) // cost
                end = (min(max(stop - done, 0), cost * pairs) + cost - 1) // cost
                if begin < end:
                    multiply(record, expert, first_row, last_row, 2 * begin, min(groups, 2 * end), x)
                done += cost * pairs

    return body


@kernel("matmul_experts_int8", ExpertsRecord, product=True)
def build_experts_int8(simd: Any, packed: PackedLayout, activation_bits: int, gathered: bool) -> Any:
    """Build products of quantized weights.

    With ``gathered``, x has one row per token, and ``sources`` has the token of each row of the product.
    """
    return _by_expert(simd, int8.sums(packed, activation_bits), gathered)


@kernel("matmul_experts_float", ExpertsRecord, product=True)
def build_experts_float(simd: Any, packed: PackedLayout, gathered: bool) -> Any:
    """Build products of floats."""
    return _by_expert(simd, floats.sums(packed), gathered)
