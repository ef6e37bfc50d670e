"""The integer matrix product for many tokens on tile registers (AMX), with unpacked weights (``many_tokens.py``).

    for each 32 tokens, or the last 16 or fewer, and some blocks at a time
        tiles     exact int32 sums → memory: 16 tokens x 16 rows each
        add       sums, scaled → totals in float32

A block of unpacked weights has the layout of a B tile, and the planes of 16 tokens' blocks have the layout of A tiles,
so tiles load both without a copy. The zero point is subtracted when weights are unpacked, so sums need no zero point.
The float part takes as long as the tiles, so every operation per sum counts.
"""

from __future__ import annotations

import functools
from typing import Any

from pellucid.kernels.matmul.int8_sums import add_scaled
from pellucid.kernels.matmul.many_tokens import UnpackedLayout, rectangle
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens

GROUPS = 2  # groups of 16 weight rows: B tiles
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
        return self.blocks * self.parts * self.planes * GROUPS * TILES * TILE

    @property
    def state(self) -> int:
        """Offset of the state of emulated tiles."""
        return self.places["more"] + self._sums_bytes

    def sums(self, block: int, part: int, plane: int, group: int) -> int:
        """Offset of the sums of the first token with the rows of a group. The next token's sums follow."""
        number = ((block * self.parts + part) * self.planes + plane) * GROUPS + group
        return self.places["more"] + number * TILES * TILE


def many_tokens(simd: Any, packed: PackedLayout, planes: int, gathered: bool) -> ManyTokens:
    """Make the product of many tokens."""
    layout = TiledLayout(packed, planes, gathered, GROUPS, TILES * TOKENS, signed=True)
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

    return ManyTokens(rectangle(simd, layout, begin, add, release), MIN_TOKENS, GROUPS, 1)


@functools.cache
def _tiles() -> Any:
    from pellucid.kernels.simd import tiles

    return tiles


def _configure(layout: TiledLayout, e: Any, args: Any) -> None:
    """Emit code that sets the shapes of the tiles, with ``tokens`` tokens in each tile of activations."""
    memory, tokens = args
    sub = layout.packed.sub
    shapes = [(tokens, sub)] * TILES + [(sub // 4, VECTOR)] * GROUPS + [(tokens, VECTOR)] * 4
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
            for group in range(GROUPS):
                weights = e.at(e.at(memory, layout.group(group)), layout.weights(e, e.at(block, number)))
                unit.load(TILES + group, e.at(weights, part * sub * ROWS), row)
            for plane in range(layout.planes):
                for tile in range(tiles):
                    tokens = e.at(x, e.times(x_stride, TOKENS * tile))
                    offset = number * layout.block_bytes + BLOCK * plane + part * sub
                    unit.load(tile, e.at(tokens, offset), x_stride)
                    for group in range(GROUPS):
                        c, turn = TILES + GROUPS + turn % 4, turn + 1
                        unit.zero(c)
                        unit.multiply(c, tile, TILES + group)
                        to = layout.sums(number, part, plane, group) + tile * TILE
                        unit.store(c, e.at(memory, to), row)


def _add_sums(
    layout: TiledLayout, blocks: int, e: Any, memory: Any, x: Any, x_stride: Any, block: Any, token: Any, tokens: Any
) -> None:
    from numba.core import cgutils

    from pellucid.kernels.simd.emitter import f32, i32, vec

    for group in range(GROUPS):
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
