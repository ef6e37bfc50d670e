"""Matrix product of quantized weights with activation blocks: out = x Wᵀ (+ bias, or + out).

In: activation blocks (T, D/32; ``quantize.py``), packed weights (N, D). Out: (T, N) float32.

The products of a block of 32 columns are summed exactly in int32. With activations of 24 bits the top plane has its own
int32 sum, and sum = fma(2^14, sum of the top plane, sum of the other planes). Blocks are summed in float32 in ascending
order, with fused multiply-adds:

    total = fma(sum, w_scale * x_scale, total)    then, with a minimum,    total = fma(w_min, x_sum, total)

If 16 columns share a scale, a block has two sums:

    scaled = fma(sum1, w_scale1, sum0 * w_scale0)                then    total = fma(scaled, x_scale, total)

With minima, the difference of the two minima is first added to ``scaled``, for the second half of the block. Then
w_min0 times x_sum of the whole block is added to ``total``, as above:

    scaled = fma(w_min0 - w_min1, -(q16 + ... + q31), scaled)

Every tile shape computes the same sums in the same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.matmul.int8_sums import SUMS, TOPS, add_scaled, as_signed, exact
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, VECTOR, PackedLayout
from pellucid.kernels.matmul.many_tokens import UnpackedLayout, rectangle
from pellucid.kernels.matmul.product import ManyTokens, MatmulRecord, TileSums, by_group_tiles, prefetch_ahead, product
from pellucid.kernels.matmul.quantize import block_bytes, values

# A tile is two groups of 16 weight rows times six tokens. Each activation that is loaded is multiplied with both
# groups, and each vector of weights with all tokens, so loads do not limit the speed. The sums equal the sums of
# ``_emit_sums``, bit for bit. Sums and totals of a tile take 24 of the 32 registers.

GROUPS = 2
SUMS_IN_ALL = 12  # int32 sums of a tile: groups x tokens x planes


def pairs_fit(simd: Any, packed: PackedLayout) -> bool:
    """True if the instruction set has 32 registers of 16 lanes, and weights need no unpacking."""
    return simd.ISA.vector_set == "avx512vnni" and packed.bits == 8 and packed.sub == BLOCK == packed.unit


def pairs_of_groups(simd: Any, packed: PackedLayout, planes: int) -> ManyTokens:
    """Make the product of many tokens."""
    tokens = SUMS_IN_ALL // (GROUPS * planes)
    return by_group_tiles(simd, GROUPS, tokens, functools.partial(_pair_sums, packed, planes), 2 * tokens)


def _pair_sums(
    packed: PackedLayout, planes: int, e: Any, groups: list[Any], first_time: Any, columns: Any, rows: list[Any]
) -> list[list[Any]]:
    """Emit the sums of the groups of weight rows with each token: [token][group]."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.matmul import packing

    zero, blocks = e.fill(simd.f32, 0.0), e.b.sdiv(columns, e.const(BLOCK))
    totals = [[cgutils.alloca_once_value(e.b, zero) for _ in groups] for _ in rows]
    plane_bytes = packed.plane_bytes
    with cgutils.for_range(e.b, blocks) as loop:
        here = [e.at(group, e.times(loop.index, plane_bytes)) for group in groups]
        scales = [
            e.at(e.at(group, e.times(blocks, plane_bytes)), e.times(loop.index, packed.scale_bytes)) for group in groups
        ]
        for place, scale in zip(here, scales):
            prefetch_ahead(e, first_time, place, plane_bytes)
            prefetch_ahead(e, first_time, scale, packed.scale_bytes)
        offset = e.times(loop.index, block_bytes(8 * planes))
        xs = [e.at(r, offset) for r in rows]
        sums = _exact_pairs(e, packed, planes, here, xs)
        for g, scale in enumerate(scales):
            factors = packing.block_scales(e, packed, scale, packing.unit_scales(e, packed, scale), e.const(0))
            for total, of_token, at in zip(totals, sums, xs):
                value = add_scaled(e, planes, e.b.load(total[g]), [of_token[g]], factors, at)
                e.b.store(value, total[g])
    return [[e.b.load(total) for total in of_token] for of_token in totals]


def _exact_pairs(e: Any, packed: PackedLayout, planes: int, groups: list[Any], xs: list[Any]) -> list[list[list[Any]]]:
    """Emit the exact int32 sums of a block: [token][group][plane]."""
    from pellucid.kernels import simd
    from pellucid.kernels.simd import dot

    def start(plane: int, x: Any) -> Any:
        if not packed.zero_point or plane not in (planes - 1, planes - 3):
            return e.fill(simd.i32, 0)
        at = e.at(x, BLOCK * planes + (SUMS if plane == planes - 1 else TOPS))
        shift = packed.zero_point.bit_length() - 1
        return e.b.shl(e.splat(e.load(at, simd.i32)), e.fill(simd.i32, shift))

    sums = []
    for x in xs:
        starts = [start(plane, x) for plane in range(planes)]
        sums.append([[dot.Sum(e, one, packed.max_byte) for one in starts] for _ in groups])
    for i in range(BLOCK // 4):
        vectors = [e.load(e.at(group, VECTOR * i), simd.vec(simd.i32), VECTOR) for group in groups]
        for x, of_token in zip(xs, sums):
            for plane in range(planes):
                value = e.splat(e.load(e.at(x, BLOCK * plane + 4 * i), simd.i32))
                for vector, of_group in zip(vectors, of_token):
                    of_group[plane].add(vector, value)
        dot.interleave(e, [one for of_token in sums for of_group in of_token for one in of_group])
    return [[[one.total() for one in of_group] for of_group in of_token] for of_token in sums]


def reference(x: NDArray[Any], weights: NDArray[np.float64], addend: NDArray[Any] | float = 0.0) -> NDArray[np.float64]:
    """Compute the product in float64 from activation blocks (T, D/32) and dequantized weights (N, D)."""
    return np.asarray(values(x) @ weights.T + addend, np.float64)


def _column(e: Any, packed: PackedLayout, weights: Any) -> Any:
    """Return a function for ``exact`` that emits vector i of the block whose planes are at ``weights``."""
    from pellucid.kernels.matmul import packing

    signed = as_signed(packed)

    def column(i: int) -> Any:
        value = packing.vector(e, packed, weights, i)
        return packing.without_zero_point(e, packed, value) if signed else value

    return column


def _emit_sums(
    packed: PackedLayout, planes: int, e: Any, tokens: int, weights: Any, first_time: Any, width: Any, rows: list[Any]
) -> list[Any]:
    """Emit the dot products of a group of 16 weight rows with each token over all columns."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.matmul import packing

    per_unit, zero = packed.unit // BLOCK, e.fill(simd.f32, 0.0)
    blocks = e.b.sdiv(width, e.const(BLOCK))
    totals = [cgutils.alloca_once_value(e.b, zero) for _ in range(tokens)]
    scales_start = e.at(weights, e.times(blocks, packed.plane_bytes))
    with cgutils.for_range(e.b, e.b.sdiv(blocks, e.const(per_unit))) as units:
        unit = e.at(scales_start, e.times(units.index, packed.scale_bytes))
        prefetch_ahead(e, first_time, unit, packed.scale_bytes)
        factors = packing.unit_scales(e, packed, unit)
        first = e.times(units.index, per_unit)
        with cgutils.for_range(e.b, e.const(per_unit)) as inner:
            block = e.at(first, inner.index)
            here = e.at(weights, e.times(block, packed.plane_bytes))
            prefetch_ahead(e, first_time, here, packed.plane_bytes)
            offset = e.times(block, block_bytes(8 * planes))
            xs = [e.at(row, offset) for row in rows]
            column = _column(e, packed, here)
            parts = [exact(e, packed, planes, column, part, xs) for part in range(BLOCK // packed.sub)]
            scales = packing.block_scales(e, packed, unit, factors, inner.index)
            for total, sums, x in zip(totals, zip(*parts), xs):
                e.b.store(add_scaled(e, planes, e.b.load(total), sums, scales, x), total)
    return [e.b.load(total) for total in totals]


@kernel("matmul_int8", MatmulRecord, by_row=True, product=True)
def build(simd: Any, packed: PackedLayout, activation_bits: int) -> Any:
    """Build the integer matrix product. ``activation_bits`` is 8, 16 or 24: one to three planes of bytes."""
    return product(simd, sums(packed, activation_bits))


def sums(packed: PackedLayout, activation_bits: int) -> TileSums:
    """Return the emitter of a tile's sums."""
    planes = activation_bits // 8
    return TileSums(
        functools.partial(_emit_sums, packed, planes), planes, functools.partial(_many_tokens, packed, planes)
    )


def _many_tokens(packed: PackedLayout, planes: int, simd: Any, gathered: bool) -> ManyTokens | None:
    """Return the helper for many tokens, or None if small tiles are as fast on this instruction set."""
    from pellucid.kernels.matmul.many_tokens import on_vectors, unpacking_is_faster

    if simd.ISA.tiles and fits(packed):
        return many_tokens(simd, packed, planes, gathered)
    if not gathered and pairs_fit(simd, packed):
        return pairs_of_groups(simd, packed, planes)
    if simd.ISA.unpacks and unpacking_is_faster(packed):
        return on_vectors(simd, packed, planes, gathered)
    return None


# The integer matrix product for many tokens on tile registers (AMX), with unpacked weights (``many_tokens.py``).
#
#     for each 32 tokens, or the last 16 or fewer, and some blocks at a time
#         tiles     exact int32 sums → memory: 16 tokens x 16 rows each
#         add       sums, scaled → totals in float32
#
# A block of unpacked weights has the layout of a B tile, and the planes of 16 tokens' blocks have the layout of A
# tiles, so tiles load both without a copy. The zero point is subtracted when weights are unpacked, so sums need no zero
# point. The float part takes as long as the tiles, so every operation per sum counts.

INT8_TILES_GROUPS = 2  # groups of 16 weight rows: B tiles
TILES = 2  # tiles of 16 tokens: A tiles
TOKENS = 16  # tokens of a tile
TILE = 1024  # bytes of a tile
MIN_TOKENS = 32  # minimum number of tokens for tiles


def fits(packed: PackedLayout) -> bool:
    """True if weights without their zero point fit into signed bytes."""
    return packed.max_byte - packed.zero_point <= 127


class TiledLayout(UnpackedLayout, frozen=True):
    """Unpacked weights, sums of tiles, and the state of emulated tiles."""

    @property
    def blocks(self) -> int:
        """Number of blocks whose sums are in memory at a time, so that the sums stay in the L1 cache."""
        return max(1, 4 // (self.parts * self.planes))

    @property
    def more(self) -> int:
        return self._sums_bytes + int(_tiles().STATE_BYTES)

    @property
    def _sums_bytes(self) -> int:
        return self.blocks * self.parts * self.planes * INT8_TILES_GROUPS * TILES * TILE

    @property
    def state(self) -> int:
        """Offset of the state of emulated tiles."""
        return self.places["more"] + self._sums_bytes

    def sums(self, block: int, part: int, plane: int, group: int) -> int:
        """Offset of the sums of the first token with the rows of a group. The next token's sums follow."""
        number = ((block * self.parts + part) * self.planes + plane) * INT8_TILES_GROUPS + group
        return self.places["more"] + number * TILES * TILE


def many_tokens(simd: Any, packed: PackedLayout, planes: int, gathered: bool) -> ManyTokens:
    """Make the product of many tokens."""
    layout = TiledLayout(packed, planes, gathered, INT8_TILES_GROUPS, TILES * TOKENS, signed=True)
    many, block_size = layout.blocks, layout.block_bytes
    configure, release = layout.operation(_configure, 2), layout.operation(_release, 1)
    add_blocks = {
        (tiles, blocks): layout.operation(
            lambda p, e, args, tiles=tiles, blocks=blocks: _add_blocks(p, tiles, blocks, e, args), 6
        )
        for tiles in (1, TILES)
        for blocks in (1, many)
    }
    two_many, two_one, one_many, one_one = (
        add_blocks[tiles, blocks] for tiles, blocks in ((TILES, many), (TILES, 1), (1, many), (1, 1))
    )

    @simd.jit
    def add_blocks_of(memory, x, x_stride, count, token, tokens):
        block = 0
        while block + many <= count:
            if tokens > TOKENS:
                two_many(memory, x + block * block_size, x_stride, block, token, tokens)
            else:
                one_many(memory, x + block * block_size, x_stride, block, token, tokens)
            block += many
        while block < count:
            if tokens > TOKENS:
                two_one(memory, x + block * block_size, x_stride, block, token, tokens)
            else:
                one_one(memory, x + block * block_size, x_stride, block, token, tokens)
            block += 1

    @simd.jit
    def begin(memory):
        configure(memory, TOKENS)

    @simd.jit
    def add(memory, x, x_stride, count, token, tokens):
        done = 0
        if tokens == TILES * TOKENS:
            add_blocks_of(memory, x, x_stride, count, token, tokens)
            done = tokens
        elif tokens >= TOKENS:
            add_blocks_of(memory, x, x_stride, count, token, TOKENS)
            done = TOKENS
        if done < tokens:
            configure(memory, tokens - done)
            add_blocks_of(memory, x + done * x_stride, x_stride, count, token + done, tokens - done)

    return ManyTokens(rectangle(simd, layout, begin, add, release), MIN_TOKENS, INT8_TILES_GROUPS, 1)


@functools.cache
def _tiles() -> Any:
    from pellucid.kernels.simd import tiles

    return tiles


def _configure(layout: TiledLayout, e: Any, args: Any) -> None:
    """Emit code that sets the shapes of the tiles, with ``tokens`` tokens in each tile of activations."""
    memory, tokens = args
    sub = layout.packed.sub
    shapes = [(tokens, sub)] * TILES + [(sub // 4, VECTOR)] * INT8_TILES_GROUPS + [(tokens, VECTOR)] * 4
    _tiles().Tiles(e, e.at(memory, layout.state)).configure(shapes)


def _release(layout: TiledLayout, e: Any, args: Any) -> None:
    """Emit code that releases the tiles."""
    _tiles().Tiles(e, e.at(args[0], layout.state)).release()


def _add_blocks(layout: TiledLayout, tiles: int, blocks: int, e: Any, args: Any) -> None:
    """Emit code that adds the products of ``blocks`` blocks with the tokens of ``tiles`` tiles to the tokens' totals.

    ``x`` is the address of the first token's first block, ``block`` the index of this block in the chunk, ``token`` the
    first token's index in the batch, and ``tokens`` the number of tokens.
    """
    memory, x, x_stride, block, token, tokens = args
    _multiply(layout, tiles, blocks, e, memory, x, x_stride, block)
    _add_sums(layout, blocks, e, memory, x, x_stride, block, token, tokens)


def _multiply(
    layout: TiledLayout, tiles: int, blocks: int, e: Any, memory: Any, x: Any, x_stride: Any, block: Any
) -> None:
    unit, sub = _tiles().Tiles(e, e.at(memory, layout.state)), layout.packed.sub
    row, turn = e.const(VECTOR), 0
    for number in range(blocks):
        for part in range(layout.parts):
            for group in range(INT8_TILES_GROUPS):
                weights = e.at(e.at(memory, layout.group(group)), layout.weights(e, e.at(block, number)))
                unit.load(TILES + group, e.at(weights, part * sub * ROWS), row)
            for plane in range(layout.planes):
                for tile in range(tiles):
                    tokens = e.at(x, e.times(x_stride, TOKENS * tile))
                    offset = number * layout.block_bytes + BLOCK * plane + part * sub
                    unit.load(tile, e.at(tokens, offset), x_stride)
                    for group in range(INT8_TILES_GROUPS):
                        c, turn = TILES + INT8_TILES_GROUPS + turn % 4, turn + 1
                        unit.zero(c)
                        unit.multiply(c, tile, TILES + group)
                        to = layout.sums(number, part, plane, group) + tile * TILE
                        unit.store(c, e.at(memory, to), row)


def _add_sums(
    layout: TiledLayout, blocks: int, e: Any, memory: Any, x: Any, x_stride: Any, block: Any, token: Any, tokens: Any
) -> None:
    from numba.core import cgutils

    from pellucid.kernels.simd.emitter import f32, i32, vec

    for group in range(INT8_TILES_GROUPS):
        unpacked = e.at(memory, layout.group(group))
        scales = [layout.load_scales(e, unpacked, e.at(block, number)) for number in range(blocks)]
        with cgutils.for_range(e.b, tokens) as loop:
            to = e.at(unpacked, layout.total(e, e.b.add(token, loop.index)))
            row, lane = e.at(x, e.b.mul(x_stride, loop.index)), e.times(loop.index, VECTOR)
            total = e.load(to, vec(f32), VECTOR)
            for number, of_block in enumerate(scales):
                sums = []
                for part in range(layout.parts):
                    at = [layout.sums(number, part, plane, group) for plane in range(layout.planes)]
                    sums.append([e.load(e.at(e.at(memory, sum), lane), vec(i32), VECTOR) for sum in at])
                here = e.at(row, number * layout.block_bytes)
                total = add_scaled(e, layout.planes, total, sums, of_block, here)
            e.store(total, to, VECTOR)
