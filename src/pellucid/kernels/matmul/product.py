"""The common part of all matrix products: out = x Wᵀ + addend, by groups of weight rows and tiles of tokens.

The addend is zeros, a bias (N,), or out itself, which adds the product to the residual stream. The sums of a tile
depend on the layout of the weights (``matmul/int8.py``, ``matmul/floats.py``). Every tile size computes them in the
same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.packed_layout import ROWS, VECTOR
from pellucid.kernels.matmul.partition import partition

TILES = (8, 4, 2, 1)  # tokens that share each load of the weights
CACHED_GROUPS = 4  # groups of weight rows that stay in the L1 cache while all tiles of tokens use them

SumsEmitter = Callable[[Any, int, Any, Any, Any, list[Any]], list[Any]]
"""(emitter, number of tokens, address of the group, true at the group's first read, D, addresses of the tokens' rows)
→ one vector of 16 sums for each token."""


class ManyTokens(Struct, frozen=True):
    """A helper like the result of ``rectangle`` that is faster for at least ``min_rows`` rows of x.

    It multiplies a multiple of ``groups`` groups of weight rows with a multiple of ``tokens`` rows of x.
    """

    run: Any
    min_rows: int
    groups: int
    tokens: int


class TileSums(Struct, frozen=True):
    """The computation of a tile's sums: their emitter, and the number of vectors of sums that a token needs at a time.

    ``many(simd, gathered)`` makes a faster helper that computes the same for many tokens, or returns None if there is
    no faster helper.
    """

    emit: SumsEmitter
    vectors: int = 1
    many: Callable[[Any, bool], ManyTokens | None] | None = None


class ProductRecord(Record):
    """Fields of all matrix products."""

    weights: Address  # packed (N, D), groups of 16 rows
    groups: int  # N/16, rounded up
    group_bytes: int
    columns: int  # D
    x: Address  # (T, D) float32 or activation blocks
    x_stride: int  # bytes from one row to the next
    out: Address  # (T, N) float32
    out_stride: int  # bytes from one row to the next
    rows: Count  # T


class MatmulRecord(ProductRecord):
    addend: Address
    addend_group: int  # bytes from one group of 16 to the next
    addend_row: int  # bytes from one token to the next
    replicated: int  # 1: if there is one row, thread t reads its copy in row t of x


def prefetch_ahead(e: Any, first_time: Any, address: Any, nbytes: int) -> None:
    """Prefetch the stream after the ``nbytes`` bytes at an address if the group is read for the first time."""
    with e.b.if_then(first_time):
        for line in range(0, nbytes, VECTOR):
            e.prefetch_further(e.at(address, line))


def _tile(simd: Any, emit_sums: SumsEmitter, tokens: int, gathered: bool) -> Any:
    """Make the helper that multiplies one group of 16 weight rows with ``tokens`` tokens.

    The tokens' rows follow each other from x on. If ``gathered``, their row indices (int32) are at ``sources`` instead.
    """

    def emit(e: Any, *operands: Any) -> None:
        weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row = operands
        first_time = e.b.icmp_signed("==", row, e.const(0))
        numbers = [e.const(token) for token in range(tokens)]
        if gathered:
            loads = [e.load(e.at(sources, 4 * token), simd.i32) for token in range(tokens)]
            numbers = [e.b.sext(number, x.type) for number in loads]
        rows = [e.at(x, e.b.mul(x_stride, number)) for number in numbers]
        for token, total in enumerate(emit_sums(e, tokens, weights, first_time, columns, rows)):
            more = e.load(e.at(addend, e.b.mul(addend_row, e.const(token))), total.type)
            e.store(e.b.fadd(total, more), e.at(out, e.b.mul(out_stride, e.const(token))))

    tile = simd.inner_loop(10, emit)

    @simd.jit
    def run(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row):
        tile(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row)

    return run


def _tiles(simd: Any, sums: TileSums, max_tokens: int, gathered: bool) -> Any:
    """Make the helper that multiplies a group of 16 weight rows with a tile: ``TILES`` tokens, up to ``max_tokens``."""
    tile8, tile4, tile2, tile1 = (
        _tile(simd, sums.emit, min(tokens, max_tokens), gathered) for tokens in TILES
    )

    @simd.jit
    def run(tokens, weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row):
        if max_tokens >= 8 and tokens == 8:
            tile8(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row)
        elif max_tokens >= 4 and tokens == 4:
            tile4(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row)
        elif tokens == 2:
            tile2(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row)
        else:
            tile1(weights, row, columns, x, x_stride, sources, out, out_stride, addend, addend_row)

    return run


def _tile_size(simd: Any, max_tokens: int) -> Any:
    """Make the helper that maps the number of tokens left to the size of the next tile, at most ``max_tokens``."""

    @simd.jit
    def size(left):
        if left >= 8 and max_tokens >= 8:
            return 8
        if left >= 4 and max_tokens >= 4:
            return 4
        return min(left, 2)

    return size


def rectangle(simd: Any, sums: TileSums, gathered: bool = False) -> Any:
    """Make the helper that multiplies the weight rows of groups ``begin`` to ``end`` with ``rows`` rows of x.

    The rows follow each other from x on. If ``gathered``, their indices (int32) are at ``sources`` instead. Rows of out
    and of the addend follow each other in both cases.
    """
    few = _by_tiles(simd, sums, gathered)
    many = sums.many(simd, gathered) if sums.many else None
    if many is None:
        return few
    run_many, min_rows, groups, tile = many.run, many.min_rows, many.groups, many.tokens

    @simd.jit
    def run(
        weights, group_bytes, begin, end, rows, columns, x, x_stride, sources, out, out_stride,
        addend, addend_group, addend_row,
    ):  # fmt: skip
        even, whole = begin, rows // tile * tile
        if rows >= min_rows:
            even += (end - begin) // groups * groups
        # The remaining rows find each weight in the cache, because the other rows have just used it.
        each = groups if whole < rows else max(1, end - begin)
        for first in range(begin, even, each):
            last = min(first + each, even)
            run_many(
                weights, group_bytes, first, last, whole, columns, x, x_stride, sources, out, out_stride,
                addend, addend_group, addend_row,
            )  # fmt: skip
            if whole < rows:
                few(
                    weights, group_bytes, first, last, rows - whole, columns,
                    x if gathered else x + whole * x_stride, x_stride, sources + 4 * whole,
                    out + whole * out_stride, out_stride, addend + whole * addend_row, addend_group, addend_row,
                )  # fmt: skip
        if even < end:
            few(
                weights, group_bytes, even, end, rows, columns, x, x_stride, sources, out, out_stride,
                addend, addend_group, addend_row,
            )  # fmt: skip

    return run


def max_tile_tokens(simd: Any, vectors: int) -> int:
    """Return the maximum number of tokens of a tile if each token has ``vectors`` vectors of sums."""
    return max(tokens for tokens in TILES if tokens <= max(2, simd.ISA.sums // vectors))


def _by_tiles(simd: Any, sums: TileSums, gathered: bool) -> Any:
    """Make the helper of ``rectangle`` that unpacks weights for each tile of tokens."""
    max_tokens = max_tile_tokens(simd, sums.vectors)
    tile, size = _tiles(simd, sums, max_tokens, gathered), _tile_size(simd, max_tokens)

    @simd.jit
    def run(
        weights, group_bytes, begin, end, rows, columns, x, x_stride, sources, out, out_stride,
        addend, addend_group, addend_row,
    ):  # fmt: skip
        for first in range(begin, end, CACHED_GROUPS):
            last, row = min(first + CACHED_GROUPS, end), 0
            while row < rows:
                tokens = size(rows - row)
                here = x if gathered else x + row * x_stride
                for group in range(first, last):
                    tile(
                        tokens,
                        weights + group * group_bytes,
                        row,
                        columns,
                        here,
                        x_stride,
                        sources + 4 * row,
                        out + row * out_stride + group * ROWS * 4,
                        out_stride,
                        addend + row * addend_row + group * addend_group,
                        addend_row,
                    )
                row += tokens

    return run


def product(simd: Any, sums: TileSums) -> Any:
    """Make the kernel's body."""
    at, load = MatmulRecord.at, simd.load_i64
    multiply, part = rectangle(simd, sums), partition(simd)

    @simd.jit
    def body(record, step, thread, threads):
        groups, rows = load(record + at.groups), load(step + load(record + at.rows))
        x, x_stride = load(record + at.x), load(record + at.x_stride)
        out_stride, addend_row = load(record + at.out_stride), load(record + at.addend_row)
        if rows == 1 and load(record + at.replicated) != 0:
            x += thread * x_stride
        first, last, first_row, last_row = part(ROWS * groups, rows, thread, threads)
        multiply(
            load(record + at.weights),
            load(record + at.group_bytes),
            first // ROWS,
            last // ROWS,
            last_row - first_row,
            load(record + at.columns),
            x + first_row * x_stride,
            x_stride,
            0,
            load(record + at.out) + first_row * out_stride,
            out_stride,
            load(record + at.addend) + first_row * addend_row,
            load(record + at.addend_group),
            addend_row,
        )

    return body
