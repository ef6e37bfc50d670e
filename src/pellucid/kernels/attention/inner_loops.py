"""The inner loops of attention: scores of a few rows, softmax of one row, weighted values of a few rows.

The loops read keys and values as the cache stores them (``attention/kv_layout.py``) or widened to float32. The results
are the same, bit for bit. Pages are scattered in memory, so hardware prefetchers do not find the next page. The loops
that read types shorter than float32 therefore prefetch the data ``ahead`` and ``further`` bytes after the page. A loop
with several passes over a page reads the page in strides, but prefetches in the order of memory, which is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.attention.rows import ROWS, SPAN
from pellucid.kernels.ops.elementwise import tanh_vector

MAX_BLOCK_VECTORS = 4  # maximum number of vectors of a row in a block of registers


class Prefetch(NamedTuple):
    """Prefetches of a loop over a page: the data ``ahead`` and, with ``twice``, ``further`` bytes after ``start``.

    The loop may run over the page in several passes of ``iterations`` iterations. Each pass prefetches a share.
    """

    start: Any
    iterations: Any
    ahead: Any
    further: Any
    twice: bool

    def share(self, e: Any, iteration: Any, before: int, size: int) -> None:
        """Prefetch ``size`` bytes in an iteration. Earlier passes prefetch ``before`` bytes per iteration in total."""
        place = e.at(e.times(self.iterations, before), e.times(iteration, size))
        e.prefetch_scattered(e.at(self.start, place), size, self.ahead, self.further, twice=self.twice)


def scores_tile(simd: Any, rows: int, width: int, kv_dtype: str, span: int = SPAN) -> Any:
    """Make the loop for the scores of ``rows`` queries (rows, K) with ``span`` tokens of a page, from ``token`` on.

    The loop takes (queries, a head's keys in the page, token, ahead, further, out, bytes between rows of out).
    """
    from numba.core import cgutils

    if kv_dtype == "bf16":
        return _paired_scores_tile(simd, rows, width, span)
    blocks, columns = kv_layout.blocks(kv_dtype, width)
    size, token_bytes = kv_layout.SIZE[kv_dtype], kv_layout.token_bytes(kv_dtype, width)

    def emit(e: Any, *operands: Any) -> None:
        queries, keys, token, ahead, further, out, stride = operands
        zero, start_of_span = e.fill(simd.f32, 0.0), e.at(keys, e.times(token, token_bytes))
        prefetch = Prefetch(start_of_span, e.const(width), ahead, further, rows < ROWS)

        def compute(row_range: range, tokens: range, prefetches: bool) -> None:
            totals = [[cgutils.alloca_once_value(e.b, zero) for _ in tokens] for _ in row_range]
            starts = [e.at(queries, width * 4 * r) for r in row_range]
            with cgutils.for_range(e.b, e.const(blocks)) as block:
                scales = [
                    scale
                    for at in range(0, span, 32)
                    for scale in kv_layout.key_scales(e, simd, kv_dtype, width, keys, block.index, e.at(token, at))
                ]
                first = e.times(block.index, columns)
                with cgutils.for_range(e.b, e.const(columns)) as loop:
                    column = e.at(first, loop.index)
                    key = e.at(keys, e.times(e.at(e.times(column, kv_layout.PAGE), token), size))
                    if prefetches and kv_dtype != "f32":
                        prefetch.share(e, column, 0, span * token_bytes // width)
                    for turn, _ in turns(e, simd, totals):
                        parts = [
                            kv_layout.load16(e, simd, kv_dtype, e.at(key, 16 * size * part), scales[part])
                            for part in tokens[turn]
                        ]
                        for row, start in zip(totals, starts):
                            q = e.splat(e.load(e.at(start, e.times(column, 4)), simd.f32))
                            for total, part in zip(row[turn], parts):
                                e.b.store(e.fma(q, part, e.b.load(total)), total)
            store_scores(e, totals, row_range, tokens, out, stride)

        for row_range, tokens in register_blocks(simd, rows, span // 16):
            compute(row_range, tokens, row_range.start == tokens.start == 0)

    return simd.inner_loop(7, emit)


def register_blocks(simd: Any, rows: int, vectors: int) -> list[tuple[range, range]]:
    """Split the sums of ``rows`` rows with ``vectors`` vectors each into blocks that fit into registers.

    Returns the range of rows and the range of vectors of each block. On instruction sets with 16 registers, three rows
    of one vector would use only six registers for sums, too few to hide the latency of a multiply-add. Three rows
    therefore get two vectors each, which take turns.
    """
    few = max(1, min(rows, simd.ISA.sums))
    each = max(1, min(vectors, MAX_BLOCK_VECTORS, simd.ISA.sums // few))
    if few == 3 and simd.ISA.lanes == 8:
        each = min(vectors, 2)
    return [
        (range(r, min(r + few, rows)), range(v, min(v + each, vectors)))
        for r in range(0, rows, few)
        for v in range(0, vectors, each)
    ]


def turns(e: Any, simd: Any, totals: list[list[Any]], halves: tuple[Any, ...] = (None,)) -> Iterator[tuple[slice, Any]]:
    """Yield (vectors, half): the vectors of a block whose operands are loaded together, and one of ``halves``.

    Yields all vectors together. If the sums leave no registers for the operands of all vectors, yields one vector at a
    time. A fence after every turn then keeps the compiler from loading early, which would spill sums.
    """
    vectors = len(totals[0])
    crowded = len(totals) * vectors > simd.ISA.sums
    together = 1 if crowded else vectors
    for first in range(0, vectors, together):
        for half in halves:
            yield slice(first, first + together), half
            if crowded:
                done = [row[first] for row in totals]
                for total, value in zip(done, e.together([e.b.load(total) for total in done])):
                    e.b.store(value, total)


def store_scores(e: Any, totals: list[list[Any]], rows: range, tokens: range, out: Any, stride: Any) -> None:
    """Store the sums of a block: some vectors of tokens for each row. Rows of scores are ``stride`` bytes apart."""
    for r, row in zip(rows, totals):
        where = e.at(out, e.b.mul(stride, e.const(r)))
        for part, total in zip(tokens, row):
            e.store(e.b.load(total), e.at(where, 64 * part))


def values_tile(simd: Any, rows: int, width: int, kv_dtype: str) -> Any:
    """Make the loop that adds ``count`` tokens' weighted values to ``rows`` sums (rows, V), from ``token`` on.

    The loop takes (weights, bytes between rows of weights, a head's values in the page, token, ahead, further, count,
    out). With bfloat16, ``token`` is even; if ``count`` is odd, the weight after the last token's weight is read and
    must be finite, and the value after the last value is ignored.
    """
    from numba.core import cgutils

    if kv_dtype == "bf16":
        return _paired_values_tile(simd, rows, width)
    vectors, size = width // 16, kv_layout.SIZE[kv_dtype]
    token_bytes = kv_layout.token_bytes(kv_dtype, width)

    def emit(e: Any, *operands: Any) -> None:
        weights, stride, values, first_token, ahead, further, count, out = operands
        start_of_tokens = e.at(values, e.times(first_token, token_bytes))
        prefetch = Prefetch(start_of_tokens, count, ahead, further, rows < ROWS)
        for row_range, parts in register_blocks(simd, rows, vectors):
            starts = [e.at(weights, e.b.mul(stride, e.const(r))) for r in row_range]
            places = [[e.at(out, (r * vectors + part) * 64) for part in parts] for r in row_range]
            kind = simd.vec(simd.f32)
            totals = [[cgutils.alloca_once_value(e.b, e.load(p, kind)) for p in row] for row in places]
            with cgutils.for_range(e.b, count) as loop:
                token = e.at(first_token, loop.index)
                columns = [16 * part for part in parts]
                value = e.at(values, e.times(token, width * size))
                stored16 = [e.at(value, column * size) for column in columns]
                if row_range.start == 0 and kv_dtype != "f32":
                    vector_bytes = token_bytes // vectors
                    prefetch.share(e, loop.index, vector_bytes * parts.start, vector_bytes * len(parts))
                scales = [kv_layout.value_scale(e, simd, kv_dtype, width, values, token, c) for c in columns]
                for turn, _ in turns(e, simd, totals):
                    places16 = zip(stored16[turn], scales[turn])
                    loaded = [kv_layout.load16(e, simd, kv_dtype, *each) for each in places16]
                    for row, start in zip(totals, starts):
                        weight = e.splat(e.load(e.at(start, e.times(loop.index, 4)), simd.f32))
                        for total, v in zip(row[turn], loaded):
                            e.b.store(e.fma(weight, v, e.b.load(total)), total)
            for row, where in zip(totals, places):
                for total, place in zip(row, where):
                    e.store(e.b.load(total), place)

    return simd.inner_loop(8, emit)


def widen_keys(simd: Any, width: int, kv_dtype: str) -> Any:
    """Make the helper that widens a head's keys in a page to (K, S) float32: (keys, out)."""
    from numba.core import cgutils

    blocks, columns = kv_layout.blocks(kv_dtype, width)

    def emit(e: Any, keys: Any, out: Any) -> None:
        with cgutils.for_range(e.b, e.const(blocks)) as block:
            first = e.times(block.index, columns)
            for token in range(0, kv_layout.PAGE, 32):
                scales = kv_layout.key_scales(e, simd, kv_dtype, width, keys, block.index, e.const(token))
                with cgutils.for_range(e.b, e.const(columns)) as loop:
                    number = e.at(e.times(e.at(first, loop.index), kv_layout.PAGE), token)
                    for half, scale in enumerate(scales):
                        _widen16(e, simd, kv_dtype, keys, e.at(number, 16 * half), scale, out)

    return _copier(simd, emit)


def widen_values(simd: Any, width: int, kv_dtype: str) -> Any:
    """Make the helper that widens a head's values in a page to (S, V) float32: (values, out)."""
    from numba.core import cgutils

    def emit(e: Any, values: Any, out: Any) -> None:
        with cgutils.for_range(e.b, e.const(kv_layout.PAGE)) as loop:
            for column in range(0, width, 16):
                scale = kv_layout.value_scale(e, simd, kv_dtype, width, values, loop.index, column)
                _widen16(e, simd, kv_dtype, values, e.at(e.times(loop.index, width), column), scale, out)

    return _copier(simd, emit)


def _widen16(e: Any, simd: Any, kv_dtype: str, source: Any, number: Any, scale: Any, out: Any) -> None:
    place = e.at(source, e.times(number, kv_layout.SIZE[kv_dtype]))
    e.store(kv_layout.load16(e, simd, kv_dtype, place, scale), e.at(out, e.times(number, kv_layout.SIZE["f32"])))


def _copier(simd: Any, emit: Any) -> Any:
    """Make a helper (source, out) from ``emit(emitter, source, out)``."""
    copy = simd.inner_loop(2, emit)

    @simd.jit
    def run(source, out):
        copy(source, out)

    return run


def softmax_of_row(simd: Any, store: Any, size: int) -> Any:
    """Make the helper for the unnormalised softmax of one row of scores.

    ``store`` stores 16 weights, ``size`` bytes each, at an address.
    """
    vload, vstore, splat, vmax, vmax_lane = simd.vload, simd.vstore, simd.splat, simd.vmax, simd.vmax_lane
    keep, vexp, vsum, tanh = simd.keep, simd.vexp, simd.vsum, tanh_vector(simd)
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def softmax(scores, out, base, end, first, last, cap, bias, state):
        """Turn the scores of tokens base <= t < end into weights; weights are 0 outside first <= t < last.

        The weights are written to ``out``, which may equal ``scores`` or lie before it. ``bias`` is the address of
        token 0's bias, or 0. The largest score and the sum of the weights are written to ``state``: minus infinity and
        0 if no token is seen.
        """
        top = splat(minus_infinity)
        for t in range(base, end, 16):
            x = vload(scores + (t - base) * 4)
            if cap != np.float32(0):
                x = splat(cap) * tanh(x / splat(cap))
            if bias != 0:
                x = x + vload(bias + t * 4)
            if t < first or t + 16 > last:
                x = keep(x, first - t, last - t, minus_infinity)
            vstore(scores + (t - base) * 4, x)
            top = vmax(top, x)
        largest, total = vmax_lane(top), splat(0.0)
        simd.store_f32(state, largest)
        if largest == minus_infinity:
            largest = np.float32(0)
        shift = splat(largest)
        for t in range(base, end, 16):
            weight = vexp(vload(scores + (t - base) * 4) - shift)
            store(out + (t - base) * size, weight)
            total = total + weight
        simd.store_f32(state + 4, vsum(total))

    return softmax


# The loops over bfloat16 keys and values. Queries and weights are rounded to bfloat16 too. Each multiply-add takes two
# columns of a score, or two tokens of a sum (``simd/dot.py``). The cache stores the pairs as the multiply-adds
# read them, so no number is widened.


def _paired_scores_tile(simd: Any, rows: int, width: int, span: int) -> Any:
    from numba.core import cgutils

    from pellucid.kernels.simd import dot

    def emit(e: Any, *operands: Any) -> None:
        queries, keys, token, ahead, further, out, stride = operands
        zero, start_of_span = e.fill(simd.f32, 0.0), e.at(keys, e.times(token, kv_layout.token_bytes("bf16", width)))
        prefetch = Prefetch(start_of_span, e.const(width // 2), ahead, further, rows < ROWS)
        for row_range, tokens in register_blocks(simd, rows, span // 16):
            totals = [[cgutils.alloca_once_value(e.b, zero) for _ in tokens] for _ in row_range]
            starts = [e.at(queries, width * dot.ROW_BYTES * r) for r in row_range]
            with cgutils.for_range(e.b, e.const(width // 2)) as loop:
                key = e.at(keys, e.times(e.at(e.times(loop.index, kv_layout.PAGE), token), 4))
                places = [e.at(key, 64 * part) for part in tokens]
                if row_range.start == 0:
                    prefetch.share(e, loop.index, 64 * tokens.start, 64 * len(tokens))
                for turn, half in turns(e, simd, totals, dot.HALVES):
                    pairs = [e.load(place, simd.vec(simd.i32)) for place in places[turn]]
                    loaded = [dot.half_of(e, both, half) for both in pairs]
                    for row, start in zip(totals, starts):
                        q = dot.spread(e, start, loop.index, half)
                        for total, numbers in zip(row[turn], loaded):
                            e.b.store(dot.add(e, e.b.load(total), q, numbers), total)
            store_scores(e, totals, row_range, tokens, out, stride)

    return simd.inner_loop(7, emit)


def _paired_values_tile(simd: Any, rows: int, width: int) -> Any:
    from numba.core import cgutils

    from pellucid.kernels.simd import dot

    vectors = width // 16

    def emit(e: Any, *operands: Any) -> None:
        weights, stride, values, token, ahead, further, count, out = operands
        first_pair, whole = e.b.ashr(token, e.const(1)), e.b.ashr(count, e.const(1))
        start_of_tokens = e.at(values, e.times(token, kv_layout.token_bytes("bf16", width)))
        pairs_in_all = e.b.ashr(e.at(count, 1), e.const(1))
        prefetch = Prefetch(start_of_tokens, pairs_in_all, ahead, further, rows < ROWS)
        odd = e.b.icmp_signed("!=", e.b.and_(count, e.const(1)), e.const(0))
        for row_range, parts in register_blocks(simd, rows, vectors):
            starts = [e.at(weights, e.b.mul(stride, e.const(r))) for r in row_range]
            sums = [[e.at(out, (r * vectors + part) * 64) for part in parts] for r in row_range]
            kind = simd.vec(simd.f32)
            totals = [[cgutils.alloca_once_value(e.b, e.load(p, kind)) for p in row] for row in sums]

            def add(
                pair: Any, last: bool, row_range: range = row_range, parts: range = parts, starts: Any = starts,
                totals: Any = totals,
            ) -> None:  # fmt: skip
                value = e.at(values, e.times(e.at(first_pair, pair), width * 4))
                places = [e.at(value, 64 * part) for part in parts]
                if row_range.start == 0:
                    prefetch.share(e, pair, 64 * parts.start, 64 * len(parts))
                for turn, half in turns(e, simd, totals, dot.HALVES):
                    pairs = [e.load(place, simd.vec(simd.i32)) for place in places[turn]]
                    if last:
                        pairs = [dot.first_only(e, both) for both in pairs]
                    loaded = [dot.half_of(e, both, half) for both in pairs]
                    for row, start in zip(totals, starts):
                        weight = dot.spread(e, start, pair, half)
                        for total, numbers in zip(row[turn], loaded):
                            e.b.store(dot.add(e, e.b.load(total), weight, numbers), total)

            with cgutils.for_range(e.b, whole) as loop:
                add(loop.index, last=False)
            with e.b.if_then(odd):
                add(whole, last=True)
            for row, where in zip(totals, sums):
                for total, place in zip(row, where):
                    e.store(e.b.load(total), place)

    return simd.inner_loop(8, emit)
