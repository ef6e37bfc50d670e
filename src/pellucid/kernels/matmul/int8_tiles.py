"""The integer matrix product on tile registers, for many tokens: the sums of ``int8.py``, bit for bit.

Two groups of weight rows, 32 of them, are multiplied with up to 256 tokens at a time:

    for each CHUNK of blocks
        spread    weights → signed bytes in the order of a tile, and scales → float32, once for all tokens
        for each 32 tokens, or the last 16 or fewer, and some blocks at a time
            tiles     exact int32 sums → memory: 16 tokens x 16 rows each
            add       sums, scaled → totals in float32, in ascending order of the blocks

A block of packed weights is a B tile already, and the planes of 16 tokens' blocks are A tiles where they are. A zero
point is subtracted when weights are spread, so that sums need none. The float side takes as long as the tiles; an
operation less for each sum counts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pellucid.kernels.matmul import operands
from pellucid.kernels.matmul.int8_scaled import add_scaled
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, VECTOR, PackedLayout
from pellucid.kernels.matmul.quantize import block_bytes

GROUPS = 2  # groups of 16 weight rows: B tiles
TILES = 2  # tiles of 16 tokens: A tiles
TOKENS = 16  # of a tile
CHUNK = 16  # blocks whose weights are spread at a time; a multiple of those in a unit
BATCH = 256  # tokens whose totals are kept at a time
TILE = 1024  # bytes
FEWEST = 32  # tokens from which on tiles are used


def fits(packed: PackedLayout) -> bool:
    """Whether weights without their zero point are signed bytes."""
    return packed.most - packed.zero_point <= 127


@dataclass(frozen=True)
class TileScratch:
    """Places in a thread's memory for one call, in bytes from its start."""

    packed: PackedLayout
    planes: int
    gathered: bool

    @property
    def parts(self) -> int:
        """Sums of a block, each with a scale of its own."""
        return BLOCK // self.packed.sub

    @property
    def blocks(self) -> int:
        """Blocks whose sums are in memory at a time: they stay in the L1 cache."""
        return max(1, 4 // (self.parts * self.planes))

    @property
    def factors(self) -> int:
        """Vectors of scales and minima of a block."""
        return self.parts * (2 if self.packed.minimum else 1)

    @property
    def places(self) -> dict[str, int]:
        """Where each part begins; ``end`` is the size of all."""
        sums = self.blocks * self.parts * self.planes * GROUPS * TILES * TILE
        copies = TILES * TOKENS * CHUNK * block_bytes(8 * self.planes) if self.gathered else 0
        sizes = {
            "weights": CHUNK * GROUPS * ROWS * BLOCK,
            "scales": CHUNK * GROUPS * self.factors * VECTOR,
            "totals": BATCH * GROUPS * VECTOR,
            "sums": sums,
            "copies": copies,
            "state": _tiles().STATE_BYTES,
        }
        places, at = {}, 0
        for name, size in sizes.items():
            places[name], at = at, at + size
        return {**places, "end": at}

    def weights(self, e: Any, block: Any, group: int) -> Any:
        """Offset of a block's spread weights; ``block`` counts from the chunk's first one (i64)."""
        return e.at(e.times(block, GROUPS * ROWS * BLOCK), self.places["weights"] + group * ROWS * BLOCK)

    def scales(self, e: Any, block: Any, group: int) -> Any:
        """Offset of a block's scales and minima."""
        size = self.factors * VECTOR
        return e.at(e.times(block, GROUPS * size), self.places["scales"] + group * size)

    def sums(self, block: int, part: int, plane: int, group: int) -> int:
        """Offset of the sums of the first token with the rows of a group; those of the next token follow."""
        number = ((block * self.parts + part) * self.planes + plane) * GROUPS + group
        return self.places["sums"] + number * TILES * TILE


@functools.cache
def _tiles() -> Any:
    from pellucid.kernels.simd import tiles

    return tiles


def _spread(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: unpack weights and scales of ``count`` blocks from number ``first`` on, of a matrix of ``blocks``."""
    from numba.core import cgutils

    memory, weights, group_bytes, blocks, first, count = args
    packed, per_unit = scratch.packed, scratch.packed.unit // BLOCK
    for group in range(GROUPS):
        planes = e.at(weights, e.times(group_bytes, group))
        scales = e.at(planes, e.times(blocks, packed.plane_bytes))
        with cgutils.for_range(e.b, e.b.sdiv(count, e.const(per_unit))) as units:
            number = e.b.add(units.index, e.b.sdiv(first, e.const(per_unit)))
            unit = e.at(scales, e.times(number, packed.scale_bytes))
            factors = operands.unit_scales(e, packed, unit)
            with cgutils.for_range(e.b, e.const(per_unit)) as inner:
                block = e.b.add(e.times(units.index, per_unit), inner.index)
                here = e.at(planes, e.times(e.b.add(first, block), packed.plane_bytes))
                _spread_block(e, packed, here, e.at(memory, scratch.weights(e, block, group)))
                to = e.at(memory, scratch.scales(e, block, group))
                for scale in operands.block_scales(e, packed, unit, factors, inner.index):
                    for number_of in scale if packed.minimum else scale[:1]:
                        e.store(number_of, to, VECTOR)
                        to = e.at(to, VECTOR)


def _spread_block(e: Any, packed: PackedLayout, here: Any, to: Any) -> None:
    """Emit: unpack a block to signed bytes."""
    from pellucid.kernels.simd.types import i8, i32, vec

    zero = packed.zero_point
    for i, value in enumerate(operands.planes(e, packed, here)):
        if zero:
            four = e.b.bitcast(value, vec(i8, VECTOR))
            value = e.b.bitcast(e.b.sub(four, e.fill(i8, zero - 256 * (zero > 127), VECTOR)), vec(i32))
        e.store(value, e.at(to, VECTOR * i), VECTOR)


def _configure(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: shape the tiles for ``tokens`` tokens in each tile of activations."""
    memory, tokens = args
    sub = scratch.packed.sub
    shapes = [(tokens, sub)] * TILES + [(sub // 4, VECTOR)] * GROUPS + [(tokens, VECTOR)] * 4
    _tiles().Tiles(e, e.at(memory, scratch.places["state"])).configure(shapes)


def _release(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: give the tiles up."""
    _tiles().Tiles(e, e.at(args[0], scratch.places["state"])).release()


def _add_blocks(scratch: TileScratch, tiles: int, blocks: int, e: Any, args: Any) -> None:
    """Emit: add the products of ``blocks`` blocks with the tokens of ``tiles`` tiles to their totals.

    ``x`` is the address of the first token's first block of these, ``block`` its number in the chunk, ``token`` the
    first token's number in the batch and ``tokens`` how many there are.
    """
    memory, x, x_stride, block, token, tokens = args
    _multiply(scratch, tiles, blocks, e, memory, x, x_stride, block)
    _add_sums(scratch, blocks, e, memory, x, x_stride, block, token, tokens)


def _multiply(
    scratch: TileScratch, tiles: int, blocks: int, e: Any, memory: Any, x: Any, x_stride: Any, block: Any
) -> None:
    unit = _tiles().Tiles(e, e.at(memory, scratch.places["state"]))
    nbytes, sub = block_bytes(8 * scratch.planes), scratch.packed.sub
    row, turn = e.const(VECTOR), 0
    for number in range(blocks):
        for part in range(scratch.parts):
            for group in range(GROUPS):
                weights = scratch.weights(e, e.at(block, number), group)
                unit.load(TILES + group, e.at(e.at(memory, weights), part * sub * ROWS), row)
            for plane in range(scratch.planes):
                for tile in range(tiles):
                    tokens = e.at(x, e.times(x_stride, TOKENS * tile))
                    unit.load(tile, e.at(tokens, number * nbytes + BLOCK * plane + part * sub), x_stride)
                    for group in range(GROUPS):
                        c, turn = TILES + GROUPS + turn % 4, turn + 1
                        unit.zero(c)
                        unit.multiply(c, tile, TILES + group)
                        to = scratch.sums(number, part, plane, group) + tile * TILE
                        unit.store(c, e.at(memory, to), row)


def _add_sums(
    scratch: TileScratch,
    blocks: int,
    e: Any,
    memory: Any,
    x: Any,
    x_stride: Any,
    block: Any,
    token: Any,
    tokens: Any,
) -> None:
    from numba.core import cgutils

    from pellucid.kernels.simd.types import f32, i32, vec

    planes, per_part = scratch.planes, 2 if scratch.packed.minimum else 1
    for group in range(GROUPS):
        scales = []
        for number in range(blocks):
            at = e.at(memory, scratch.scales(e, e.at(block, number), group))
            vectors = [e.load(e.at(at, VECTOR * i), vec(f32), VECTOR) for i in range(scratch.factors)]
            pairs = [vectors[i : i + per_part] for i in range(0, len(vectors), per_part)]
            scales.append([(pair[0], pair[1] if per_part == 2 else None) for pair in pairs])
        totals = e.at(memory, scratch.places["totals"] + VECTOR * group)
        with cgutils.for_range(e.b, tokens) as loop:
            place = e.at(totals, e.times(e.b.add(token, loop.index), GROUPS * VECTOR))
            row, lane = e.at(x, e.b.mul(x_stride, loop.index)), e.times(loop.index, VECTOR)
            total = e.load(place, vec(f32), VECTOR)
            for number, of_block in enumerate(scales):
                sums = []
                for part in range(scratch.parts):
                    at = [scratch.sums(number, part, plane, group) for plane in range(planes)]
                    *tops, last = [e.load(e.at(e.at(memory, place), lane), vec(i32), VECTOR) for place in at]
                    if tops:
                        last = e.b.add(e.b.shl(tops.pop(), e.fill(i32, 7)), last)
                    sums.append([*tops, last])
                here = e.at(row, number * block_bytes(8 * planes))
                total = add_scaled(e, planes, total, sums, of_block, here)
            e.store(total, place, VECTOR)


def _clear(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: set the totals of ``tokens`` tokens to zero."""
    from numba.core import cgutils

    from pellucid.kernels.simd.types import f32

    memory, tokens = args
    with cgutils.for_range(e.b, e.times(tokens, GROUPS)) as loop:
        at = e.at(memory, e.at(e.times(loop.index, VECTOR), scratch.places["totals"]))
        e.store(e.fill(f32, 0.0), at, VECTOR)


def _finish(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: out = totals + addend, for ``tokens`` tokens."""
    from numba.core import cgutils

    from pellucid.kernels.simd.types import f32, vec

    memory, tokens, out, out_stride, addend, addend_group, addend_row = args
    with cgutils.for_range(e.b, tokens) as loop:
        totals = e.at(memory, e.at(e.times(loop.index, GROUPS * VECTOR), scratch.places["totals"]))
        to, more = (
            e.b.add(at, e.b.mul(by, loop.index)) for at, by in ((out, out_stride), (addend, addend_row))
        )
        for group in range(GROUPS):
            total = e.load(e.at(totals, VECTOR * group), vec(f32), VECTOR)
            value = e.load(e.b.add(more, e.times(addend_group, group)), vec(f32))
            e.store(e.b.fadd(total, value), e.at(to, VECTOR * group))


def _copy(scratch: TileScratch, e: Any, args: Any) -> None:
    """Emit: copy ``count`` blocks of gathered tokens, so that they are the same distance apart. Returns the address."""
    from numba.core import cgutils

    from pellucid.kernels.simd.types import i8, i32, vec

    memory, x, x_stride, sources, tokens, count = args
    nbytes, to = block_bytes(8 * scratch.planes), e.at(memory, scratch.places["copies"])
    with cgutils.for_range(e.b, tokens) as loop:
        number = e.b.sext(e.load(e.at(sources, e.times(loop.index, 4)), i32), x.type)
        row = e.b.add(x, e.b.mul(x_stride, number))
        to_row = e.at(to, e.times(loop.index, CHUNK * nbytes))
        with cgutils.for_range(e.b, e.times(count, nbytes // 16)) as inner:
            at = e.times(inner.index, 16)
            e.store(e.load(e.at(row, at), vec(i8), 1), e.at(to_row, at), 1)


def _operation(emit: Any, scratch: TileScratch, operands_count: int) -> Any:
    """An intrinsic of ``operands_count`` addresses and numbers (int64) that returns nothing."""
    from numba.core import types as t

    from pellucid.kernels.simd.emitter import vector_op

    return vector_op(t.void, (t.int64,) * operands_count, lambda e, *args: emit(scratch, e, args))


def rectangle(packed: PackedLayout, planes: int, simd: Any, gathered: bool) -> Any:
    """Make the helper of ``product.rectangle`` for an even number of groups."""
    scratch = TileScratch(packed, planes, gathered)
    places, many, block_size = scratch.places, scratch.blocks, block_bytes(8 * planes)
    copies = places["copies"]
    memory_of = simd.stack_memory(places["end"])
    spread, configure, release = (
        _operation(_spread, scratch, 6),
        _operation(_configure, scratch, 2),
        _operation(_release, scratch, 1),
    )
    clear, finish, copy = (
        _operation(_clear, scratch, 2),
        _operation(_finish, scratch, 7),
        _operation(_copy, scratch, 6),
    )
    add_blocks = {
        (tiles, blocks): _operation(
            lambda s, e, args, tiles=tiles, blocks=blocks: _add_blocks(s, tiles, blocks, e, args), scratch, 6
        )
        for tiles in (1, TILES)
        for blocks in (1, many)
    }
    two_many, two_one, one_many, one_one = (
        add_blocks[tiles, blocks] for tiles, blocks in ((TILES, many), (TILES, 1), (1, many), (1, 1))
    )

    @simd.jit
    def add(memory, x, x_stride, count, token, tokens):
        """Add the products of a chunk's ``count`` blocks with the tokens of one or two tiles."""
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
    def add_chunk(memory, x, x_stride, sources, first, count, tokens):
        """Add the products of a chunk that begins with block ``first`` with all tokens of a batch."""
        token = 0
        configure(memory, TOKENS)
        while token < tokens:
            some = tokens - token
            if some >= TILES * TOKENS:
                some = TILES * TOKENS
            elif some >= TOKENS:
                some = TOKENS
            else:
                configure(memory, some)
            if gathered:
                copy(memory, x + first * block_size, x_stride, sources + 4 * token, some, count)
                add(memory, memory + copies, CHUNK * block_size, count, token, some)
            else:
                add(memory, x + token * x_stride + first * block_size, x_stride, count, token, some)
            token += some

    @simd.jit
    def run(
        weights, group_bytes, begin, end, rows, columns, x, x_stride, sources, out, out_stride,
        addend, addend_group, addend_row,
    ):  # fmt: skip
        memory, blocks = memory_of(), columns // BLOCK
        for group in range(begin, end, GROUPS):
            here, first_row = weights + group * group_bytes, 0
            while first_row < rows:
                tokens, first = min(BATCH, rows - first_row), 0
                clear(memory, tokens)
                while first < blocks:
                    count = min(CHUNK, blocks - first)
                    spread(memory, here, group_bytes, blocks, first, count)
                    from_x = x if gathered else x + first_row * x_stride
                    add_chunk(memory, from_x, x_stride, sources + 4 * first_row, first, count, tokens)
                    first += count
                finish(
                    memory,
                    tokens,
                    out + first_row * out_stride + group * VECTOR,
                    out_stride,
                    addend + first_row * addend_row + group * addend_group,
                    addend_group,
                    addend_row,
                )
                first_row += tokens
        release(memory)

    return run
