"""The integer matrix product for many tokens on vector registers, with unpacked weights (``many_tokens.py``)."""

from __future__ import annotations

from typing import Any

from pellucid.kernels.matmul.int8_exact import as_signed, exact
from pellucid.kernels.matmul.int8_scaled import add_scaled
from pellucid.kernels.matmul.many_tokens import UnpackedLayout, rectangle
from pellucid.kernels.matmul.packed_layout import BLOCK, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens, max_tile_tokens

GROUPS = 2  # groups of 16 weight rows that use a tile of tokens while the tile is in the L1 cache
TOKENS = 32  # gathered tokens that are copied at a time
MIN_TOKENS = 16, 32  # minimum number of tokens: for weights with two bit planes, and with one bit plane


def is_faster(packed: PackedLayout) -> bool:
    """True if weights take long enough to unpack that unpacking them once for many tokens is faster."""
    return packed.bits < 8


def many_tokens(simd: Any, packed: PackedLayout, planes: int, gathered: bool) -> ManyTokens:
    """Make the product of many tokens."""
    layout = UnpackedLayout(packed, planes, gathered, GROUPS, TOKENS, as_signed(packed))
    tile, group_bytes = max_tile_tokens(simd, planes), layout.group(1)
    add_tile = layout.operation(lambda layout, e, args: _add_tile(layout, tile, e, args), 5)

    @simd.jit
    def add(memory, x, x_stride, count, token, tokens):
        for row in range(0, tokens, tile):
            for group in range(GROUPS):
                add_tile(memory + group * group_bytes, x + row * x_stride, x_stride, count, token + row)

    @simd.jit
    def nothing(memory):
        pass

    min_tokens = MIN_TOKENS[len(packed.planes) == 1]
    return ManyTokens(rectangle(simd, layout, nothing, add, nothing), min_tokens, GROUPS, tile)


def _add_tile(layout: UnpackedLayout, tokens: int, e: Any, args: Any) -> None:
    """Emit code that adds the products of a group's ``count`` blocks with a tile of tokens to the tokens' totals.

    Totals stay in memory, because the sums of a block need all registers on instruction sets with few registers.
    """
    from numba.core import cgutils

    from pellucid.kernels.simd.types import f32, i32, vec

    group, x, x_stride, count, token = args
    packed, planes = layout.packed, layout.planes
    rows = [e.at(x, e.times(x_stride, number)) for number in range(tokens)]
    totals = [e.at(group, layout.total(e, e.at(token, number))) for number in range(tokens)]
    with cgutils.for_range(e.b, count) as loop:
        weights = e.at(group, layout.weights(e, loop.index))
        offset = e.times(loop.index, layout.block_bytes)
        xs = [e.at(row, offset) for row in rows]

        def column(i: int) -> Any:
            return e.load(e.at(weights, VECTOR * i), vec(i32), VECTOR)

        parts = [exact(e, packed, planes, column, part, xs) for part in range(BLOCK // packed.sub)]
        scales = layout.load_scales(e, group, loop.index)
        for at, sums, x in zip(totals, zip(*parts), xs):
            total = add_scaled(e, planes, e.load(at, vec(f32), VECTOR), sums, scales, x)
            e.store(total, at, VECTOR)
