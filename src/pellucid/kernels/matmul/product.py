"""The common part of all matrix products: out = x Wᵀ + addend, by groups of weight rows and tiles of tokens.

The addend is zeros, a bias (N,), or out itself, which adds the product to the residual stream. The sums of a tile
depend on the layout of the weights (``matmul/int8.py``, ``matmul/floats.py``). Every tile size computes them in the
same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from msgspec import Struct

from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.layouts import ROWS, VECTOR

# Divides the output (T, N) of a matrix product among threads: by columns, and also by rows if this is faster.
#
# With few rows each thread computes some columns of all rows, so that it reads only its own part of the weights. With
# many rows this leaves threads idle: 576 columns are 18 blocks, so each of 16 threads has one block or two. Groups of
# neighbouring threads then share columns, and each thread of a group computes some of the rows.
#
# Operations on this output, activation functions for example, divide it in the same way. No thread then needs a value
# from another thread, and no barrier is needed between the two operations.

PART_COLUMNS = 32  # columns that are not divided: a block of activations
PART_ROWS = 16  # rows that are not divided: a tile of the widest kernel
MIN_THREAD_ROWS = 32  # minimum rows of a thread, if rows are divided
LOAD_ROWS = 16  # loading a block of weights into a core's cache takes about the time of the products of this many rows
GAIN = 20  # rows are divided more finely if this saves at least 1/GAIN of the time


def partition(simd: Any) -> Any:
    """Make the helper (columns, rows, thread, threads) → a thread's (first column, end, first row, end).

    The ends are excluded. Bounds of columns are multiples of PART_COLUMNS, except the end of all columns.
    """

    @simd.jit
    def row_parts(blocks, rows, threads):
        """Return the number of threads that share the same columns."""
        parts, units = 1, (rows + PART_ROWS - 1) // PART_ROWS
        least = (blocks + threads - 1) // threads * (units * PART_ROWS + LOAD_ROWS)
        for tried in range(2, min(threads, rows // MIN_THREAD_ROWS) + 1):
            across = threads // tried  # with two parts, 12 of 13 threads work
            time = (blocks + across - 1) // across * ((units + tried - 1) // tried * PART_ROWS + LOAD_ROWS)
            if time * GAIN < least * (GAIN - 1):
                parts, least = tried, time
        return parts

    @simd.jit
    def part(columns, rows, thread, threads):
        blocks, units = (columns + PART_COLUMNS - 1) // PART_COLUMNS, (rows + PART_ROWS - 1) // PART_ROWS
        parts = row_parts(blocks, rows, threads)
        across, column, row = threads // parts, thread // parts, thread % parts
        if column >= across:
            return 0, 0, 0, 0
        return (
            PART_COLUMNS * (blocks * column // across),
            min(columns, PART_COLUMNS * (blocks * (column + 1) // across)),
            PART_ROWS * (units * row // parts),
            min(rows, PART_ROWS * (units * (row + 1) // parts)),
        )

    return part


Part = Callable[[int, int, int, int], tuple[int, int, int, int]]
part_of_thread: Part = partition(SimpleNamespace(jit=lambda function: function))
"""The helper as a Python function."""


def column_ends(columns: int, threads: int) -> list[int]:
    """Return the ends of the threads' columns for a single row, as in decode: rows are then not divided."""
    return [part_of_thread(columns, 1, thread, threads)[1] for thread in range(threads)]


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

    ``many(simd, gathered)`` makes a faster helper that computes the same sums for many tokens, or returns None if there
    is no faster helper.
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


class Operands(NamedTuple):
    """The operands of a product, from one row and one group of weight rows on. Used only inside kernels.

    The rows are consecutive from ``x`` on. If rows are gathered, ``sources`` is the address of their indices (int32).
    """

    weights: int
    group_bytes: int
    columns: int
    x: int
    x_stride: int
    sources: int
    out: int
    out_stride: int
    addend: int
    addend_group: int
    addend_row: int


def from_tile(simd: Any, gathered: bool = False) -> Any:
    """Make the helper (operands, row, group) → the operands from a row and a group of weight rows on."""

    @simd.jit
    def operands_from(o, row, group):
        return Operands(
            o.weights + group * o.group_bytes, o.group_bytes, o.columns,
            o.x if gathered else o.x + row * o.x_stride, o.x_stride, o.sources + 4 * row,
            o.out + row * o.out_stride + group * VECTOR, o.out_stride,
            o.addend + row * o.addend_row + group * o.addend_group, o.addend_group, o.addend_row,
        )  # fmt: skip

    return operands_from


def prefetch_ahead(e: Any, first_time: Any, address: Any, nbytes: int) -> None:
    """Prefetch the stream after the ``nbytes`` bytes at an address if the group is read for the first time."""
    with e.b.if_then(first_time):
        for line in range(0, nbytes, VECTOR):
            e.prefetch_further(e.at(address, line))


def _tile(simd: Any, emit_sums: SumsEmitter, tokens: int, gathered: bool) -> Any:
    """Make the helper that multiplies one group of 16 weight rows with ``tokens`` tokens, from row ``row`` on."""

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
    def run(o, row):
        tile(o.weights, row, o.columns, o.x, o.x_stride, o.sources, o.out, o.out_stride, o.addend, o.addend_row)

    return run


def _tiles(simd: Any, sums: TileSums, max_tokens: int, gathered: bool) -> Any:
    """Make the helper that multiplies 16 weight rows with a tile of 8, 4, 2 or 1 tokens, at most ``max_tokens``."""
    tile8, tile4, tile2, tile1 = (_tile(simd, sums.emit, min(tokens, max_tokens), gathered) for tokens in TILES)

    @simd.jit
    def run(o, tokens, row):
        if max_tokens >= 8 and tokens == 8:
            tile8(o, row)
        elif max_tokens >= 4 and tokens == 4:
            tile4(o, row)
        elif tokens == 2:
            tile2(o, row)
        else:
            tile1(o, row)

    return run


GroupSums = Callable[[Any, list[Any], Any, Any, list[Any]], list[list[Any]]]
"""(emitter, addresses of the groups, true at the groups' first read, D, addresses of the tokens' rows) → the vectors of
16 sums, [token][group]."""


def by_group_tiles(simd: Any, groups: int, tokens: int, emit_sums: GroupSums, min_rows: int) -> ManyTokens:
    """Make the product of many tokens by tiles of ``groups`` groups of weight rows times ``tokens`` tokens.

    It is used for at least ``min_rows`` rows of x, which are not gathered.
    """

    def emit(e: Any, *operands: Any) -> None:
        weights, group_bytes, row, columns, x, x_stride, out, out_stride, addend, strides = operands
        addend_row, addend_group = e.b.and_(strides, e.const(0xFFFFFFFF)), e.b.lshr(strides, e.const(32))
        first_time = e.b.icmp_signed("==", row, e.const(0))
        addresses = [e.at(weights, e.times(group_bytes, group)) for group in range(groups)]
        rows = [e.at(x, e.times(x_stride, token)) for token in range(tokens)]
        for token, of_token in enumerate(emit_sums(e, addresses, first_time, columns, rows)):
            for group, total in enumerate(of_token):
                place = e.at(e.at(addend, e.times(addend_row, token)), e.times(addend_group, group))
                to = e.at(e.at(out, e.times(out_stride, token)), group * VECTOR)
                e.store(e.b.fadd(total, e.load(place, total.type)), to)

    tile, operands_from = simd.inner_loop(10, emit), from_tile(simd)

    @simd.jit
    def run(operands, group_count, rows):
        for group in range(0, group_count, groups):
            for row in range(0, rows, tokens):
                o = operands_from(operands, row, group)
                # An inner loop has ten operands, so both strides of the addend share an operand.
                tile(
                    o.weights, o.group_bytes, row, o.columns, o.x, o.x_stride, o.out, o.out_stride,
                    o.addend, o.addend_row + (o.addend_group << 32),
                )  # fmt: skip

    return ManyTokens(run, min_rows, groups, tokens)


def rectangle(simd: Any, sums: TileSums, gathered: bool = False) -> Any:
    """Make the helper (operands, groups, rows) that multiplies ``groups`` groups of weight rows with ``rows`` rows.

    Rows of ``out`` and of the addend are consecutive, even if the rows of ``x`` are ``gathered``.
    """
    few = _by_tiles(simd, sums, gathered)
    many = sums.many(simd, gathered) if sums.many else None
    if many is None:
        return few
    run_many, min_rows, group_unit, row_unit = many.run, many.min_rows, many.groups, many.tokens
    operands_from = from_tile(simd, gathered)

    @simd.jit
    def run(operands, groups, rows):
        even, whole = 0, rows // row_unit * row_unit
        if rows >= min_rows:
            even = groups // group_unit * group_unit
        # The remaining rows find each weight in the cache, because the other rows have just used it.
        each = group_unit if whole < rows else max(1, groups)
        for first in range(0, even, each):
            count = min(each, even - first)
            run_many(operands_from(operands, 0, first), count, whole)
            if whole < rows:
                few(operands_from(operands, whole, first), count, rows - whole)
        if even < groups:
            few(operands_from(operands, 0, even), groups - even, rows)

    return run


def max_tile_tokens(simd: Any, vectors: int) -> int:
    """Return the maximum number of tokens of a tile if each token has ``vectors`` vectors of sums."""
    return max(tokens for tokens in TILES if tokens <= max(2, simd.ISA.sums // vectors))


def _by_tiles(simd: Any, sums: TileSums, gathered: bool) -> Any:
    """Make the helper of ``rectangle`` that unpacks weights for each tile of tokens."""
    max_tokens = max_tile_tokens(simd, sums.vectors)
    tile, operands_from = _tiles(simd, sums, max_tokens, gathered), from_tile(simd, gathered)

    @simd.jit
    def size(left):
        """Return the size of the next tile if ``left`` tokens are left."""
        if left >= 8 and max_tokens >= 8:
            return 8
        if left >= 4 and max_tokens >= 4:
            return 4
        return min(left, 2)

    @simd.jit
    def run(operands, groups, rows):
        for first in range(0, groups, CACHED_GROUPS):
            last, row = min(first + CACHED_GROUPS, groups), 0
            while row < rows:
                tokens = size(rows - row)
                for group in range(first, last):
                    tile(operands_from(operands, row, group), tokens, row)
                row += tokens

    return run


def product(simd: Any, sums: TileSums) -> Any:
    """Make the kernel's body."""
    at, load = MatmulRecord.at, simd.load_i64
    multiply, part, operands_from = rectangle(simd, sums), partition(simd), from_tile(simd)

    @simd.jit
    def body(record, step, thread, threads):
        groups, rows = load(record + at.groups), load(step + load(record + at.rows))
        x, x_stride = load(record + at.x), load(record + at.x_stride)
        if rows == 1 and load(record + at.replicated) != 0:
            x += thread * x_stride
        first, last, first_row, last_row = part(ROWS * groups, rows, thread, threads)
        operands = Operands(
            load(record + at.weights), load(record + at.group_bytes), load(record + at.columns), x, x_stride, 0,
            load(record + at.out), load(record + at.out_stride),
            load(record + at.addend), load(record + at.addend_group), load(record + at.addend_row),
        )  # fmt: skip
        here = operands_from(operands, first_row, first // ROWS)
        multiply(here, (last - first) // ROWS, last_row - first_row)

    return body
