"""Integer matrix products of many tokens: weights are unpacked once for all tokens.

The sums equal the sums of ``int8.py``, bit for bit. Some groups of 16 weight rows are multiplied with up to BATCH
tokens at a time:

    for each CHUNK of blocks
        unpack    weights → bytes, and scales → float32, once for all tokens
        for some tokens at a time
            add   the products with the chunk's blocks to the tokens' totals, in ascending order of the blocks
    finish        out = totals + addend

Products are added with tile registers (``int8.py``) or with vectors (``many_tokens.py``), depending on the
instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from pellucid.kernels.matmul.int8_sums import add_scaled, as_signed, exact
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens, from_tile, max_tile_tokens, prefetch_ahead
from pellucid.kernels.matmul.quantize import block_bytes

CHUNK = 16  # blocks whose weights are unpacked at a time; a multiple of the blocks of a unit
BATCH = 256  # tokens whose totals are in memory at a time


class UnpackedLayout(Struct, frozen=True):
    """Weights, scales and totals in a thread's memory for one call, at offsets in bytes.

    ``groups`` is the number of groups of weight rows. With ``gathered``, rows are copied, ``tokens`` at a time. With
    ``signed``, weights are signed bytes without their zero point.
    """

    packed: PackedLayout
    planes: int
    gathered: bool
    groups: int
    tokens: int
    signed: bool

    @property
    def more(self) -> int:
        """Bytes of further memory that the addition needs."""
        return 0

    @property
    def parts(self) -> int:
        """Number of sums of a block; each sum has its own scale."""
        return BLOCK // self.packed.sub

    @property
    def factors(self) -> int:
        """Number of vectors of scales and minima of a block."""
        return self.parts * (2 if self.packed.minimum else 1)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of activations."""
        return block_bytes(8 * self.planes)

    @property
    def group_places(self) -> dict[str, int]:
        """Offset of each part of a group; ``end`` is the size of a group."""
        scales = CHUNK * self.factors * VECTOR
        return _placed({"weights": CHUNK * ROWS * BLOCK, "scales": scales, "totals": BATCH * VECTOR})

    @property
    def places(self) -> dict[str, int]:
        """Offset of each part of the memory; ``end`` is the size of the memory."""
        copies = self.tokens * CHUNK * self.block_bytes if self.gathered else 0
        groups = self.groups * self.group_places["end"]
        return _placed({"groups": groups, "copies": copies, "more": self.more})

    def group(self, number: int) -> int:
        """Offset of a group's memory. ``weights``, ``scales`` and ``total`` return offsets in this memory."""
        return number * self.group_places["end"]

    def weights(self, e: Any, block: Any) -> Any:
        """Offset of a block's weights in a group. ``block`` (i64) is the block's index in the chunk."""
        return e.at(e.times(block, ROWS * BLOCK), self.group_places["weights"])

    def scales(self, e: Any, block: Any) -> Any:
        """Offset of a block's scales and minima in a group."""
        return e.at(e.times(block, self.factors * VECTOR), self.group_places["scales"])

    def total(self, e: Any, token: Any) -> Any:
        """Offset of the totals of a token of the batch (i64) in a group."""
        return e.at(e.times(token, VECTOR), self.group_places["totals"])

    def load_scales(self, e: Any, group: Any, block: Any) -> list[Any]:
        """Emit loads of (scale, minimum or None) for each part of a block. ``group`` is the address of the group."""
        from pellucid.kernels.simd.emitter import f32, vec

        at, each = e.at(group, self.scales(e, block)), self.factors // self.parts
        vectors = [e.load(e.at(at, VECTOR * i), vec(f32), VECTOR) for i in range(self.factors)]
        return [(vectors[i], vectors[i + 1] if each == 2 else None) for i in range(0, len(vectors), each)]

    def operation(self, emit: Callable[..., None], operands_count: int) -> Any:
        """Make an intrinsic of ``emit(self, emitter, operands)``, with ``operands_count`` operands (int64)."""
        from pellucid.kernels import simd

        return simd.inner_loop(operands_count, lambda e, *args: emit(self, e, args))


def _placed(sizes: dict[str, int]) -> dict[str, int]:
    """Return the offsets of consecutive parts with these sizes; ``end`` is the total size."""
    places, at = {}, 0
    for name, size in sizes.items():
        places[name], at = at, at + size
    return {**places, "end": at}


def _unpack(layout: UnpackedLayout, e: Any, args: Any) -> None:
    """Emit code that unpacks weights and scales of ``count`` blocks from ``first`` on. A row has ``blocks`` blocks."""
    from numba.core import cgutils

    from pellucid.kernels.matmul import packing

    memory, weights, group_bytes, blocks, first, count, first_time = args
    first_time = e.b.icmp_signed("!=", first_time, e.const(0))
    packed, per_unit = layout.packed, layout.packed.unit // BLOCK
    for group in range(layout.groups):
        planes, unpacked = e.at(weights, e.times(group_bytes, group)), e.at(memory, layout.group(group))
        scales = e.at(planes, e.times(blocks, packed.plane_bytes))
        with cgutils.for_range(e.b, e.b.sdiv(count, e.const(per_unit))) as units:
            number = e.b.add(units.index, e.b.sdiv(first, e.const(per_unit)))
            unit = e.at(scales, e.times(number, packed.scale_bytes))
            prefetch_ahead(e, first_time, unit, packed.scale_bytes)
            factors = packing.unit_scales(e, packed, unit)
            with cgutils.for_range(e.b, e.const(per_unit)) as inner:
                block = e.b.add(e.times(units.index, per_unit), inner.index)
                here = e.at(planes, e.times(e.b.add(first, block), packed.plane_bytes))
                prefetch_ahead(e, first_time, here, packed.plane_bytes)
                _unpack_block(layout, e, here, e.at(unpacked, layout.weights(e, block)))
                to = e.at(unpacked, layout.scales(e, block))
                for scale in packing.block_scales(e, packed, unit, factors, inner.index):
                    for factor in scale if packed.minimum else scale[:1]:
                        e.store(factor, to, VECTOR)
                        to = e.at(to, VECTOR)


def _unpack_block(layout: UnpackedLayout, e: Any, here: Any, to: Any) -> None:
    """Emit code that unpacks a block to bytes."""
    from pellucid.kernels.matmul import packing

    for i, value in enumerate(packing.planes(e, layout.packed, here)):
        if layout.signed:
            value = packing.without_zero_point(e, layout.packed, value)
        e.store(value, e.at(to, VECTOR * i), VECTOR)


def _clear(layout: UnpackedLayout, e: Any, args: Any) -> None:
    """Emit code that sets the totals of ``tokens`` tokens to zero."""
    from numba.core import cgutils

    from pellucid.kernels.simd.emitter import f32

    memory, tokens = args
    with cgutils.for_range(e.b, tokens) as loop:
        for group in range(layout.groups):
            total = e.at(e.at(memory, layout.group(group)), layout.total(e, loop.index))
            e.store(e.fill(f32, 0.0), total, VECTOR)


def _finish(layout: UnpackedLayout, e: Any, args: Any) -> None:
    """Emit code that computes out = totals + addend for ``tokens`` tokens."""
    from numba.core import cgutils

    from pellucid.kernels.simd.emitter import f32, vec

    memory, tokens, out, out_stride, addend, addend_group, addend_row = args
    with cgutils.for_range(e.b, tokens) as loop:
        to, more = (e.b.add(at, e.b.mul(by, loop.index)) for at, by in ((out, out_stride), (addend, addend_row)))
        for group in range(layout.groups):
            total = e.at(e.at(memory, layout.group(group)), layout.total(e, loop.index))
            value = e.load(e.b.add(more, e.times(addend_group, group)), vec(f32))
            e.store(e.b.fadd(e.load(total, vec(f32), VECTOR), value), e.at(to, VECTOR * group))


def _copy(layout: UnpackedLayout, e: Any, args: Any) -> None:
    """Emit code that copies ``count`` blocks of each gathered token, so that the tokens have equal distances."""
    from numba.core import cgutils

    from pellucid.kernels.simd.emitter import i8, i32, vec

    memory, x, x_stride, sources, tokens, count = args
    to = e.at(memory, layout.places["copies"])
    with cgutils.for_range(e.b, tokens) as loop:
        number = e.b.sext(e.load(e.at(sources, e.times(loop.index, 4)), i32), x.type)
        row = e.b.add(x, e.b.mul(x_stride, number))
        to_row = e.at(to, e.times(loop.index, CHUNK * layout.block_bytes))
        with cgutils.for_range(e.b, e.times(count, layout.block_bytes // 16)) as inner:
            at = e.times(inner.index, 16)
            e.store(e.load(e.at(row, at), vec(i8), 1), e.at(to_row, at), 1)


def rectangle(simd: Any, layout: UnpackedLayout, begin: Any, add: Any, release: Any) -> Any:
    """Make the helper of ``product.rectangle`` for a multiple of ``layout.groups`` groups.

    The helper ``add(memory, x, x_stride, count, token, tokens)`` adds the products of the chunk's ``count`` blocks with
    ``tokens`` tokens (at most ``layout.tokens``) to the tokens' totals. ``token`` is the first token's index in the
    batch, and x is the address of its first block of the chunk. ``begin(memory)`` is called before each chunk,
    ``release(memory)`` at the end.
    """
    max_tokens, block_size = layout.tokens, layout.block_bytes
    groups, copies = layout.groups, layout.places["copies"]
    memory_of, gathered = simd.stack_memory(layout.places["end"]), layout.gathered
    operands_from = from_tile(simd, gathered)
    packing, clear = layout.operation(_unpack, 7), layout.operation(_clear, 2)
    finish, copy = layout.operation(_finish, 7), layout.operation(_copy, 6)

    @simd.jit
    def add_chunk(memory, x, x_stride, sources, first, count, tokens):
        """Add the products of a chunk, which begins with block ``first``, with all tokens of a batch."""
        begin(memory)
        for token in range(0, tokens, max_tokens):
            batch = min(tokens - token, max_tokens)
            if gathered:
                copy(memory, x + first * block_size, x_stride, sources + 4 * token, batch, count)
                add(memory, memory + copies, CHUNK * block_size, count, token, batch)
            else:
                add(memory, x + token * x_stride + first * block_size, x_stride, count, token, batch)

    @simd.jit
    def run(operands, group_count, rows):
        memory, blocks = memory_of(), operands.columns // BLOCK
        for group in range(0, group_count, groups):
            first_row = 0
            while first_row < rows:
                o, tokens, first = operands_from(operands, first_row, group), min(BATCH, rows - first_row), 0
                clear(memory, tokens)
                while first < blocks:
                    count = min(CHUNK, blocks - first)
                    packing(memory, o.weights, o.group_bytes, blocks, first, count, first_row == 0)
                    add_chunk(memory, o.x, o.x_stride, o.sources, first, count, tokens)
                    first += count
                finish(memory, tokens, o.out, o.out_stride, o.addend, o.addend_group, o.addend_row)
                first_row += tokens
        release(memory)

    return run


# The integer matrix product for many tokens on vector registers, with unpacked weights (``many_tokens.py``).

GROUPS = 2  # groups of 16 weight rows that use a tile of tokens while the tile is in the L1 cache
TOKENS = 32  # gathered tokens that are copied at a time
MIN_TOKENS = 16, 32  # minimum number of tokens: for weights with two bit planes, and with one bit plane


def unpacking_is_faster(packed: PackedLayout) -> bool:
    """True if weights take long enough to unpack that unpacking them once for many tokens is faster."""
    return packed.bits < 8


def on_vectors(simd: Any, packed: PackedLayout, planes: int, gathered: bool) -> ManyTokens:
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

    from pellucid.kernels.simd.emitter import f32, i32, vec

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
