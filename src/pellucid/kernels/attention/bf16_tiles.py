"""The inner loops of attention over bfloat16 keys and values: the loops of ``attention/tiles.py`` for pairs of numbers.

Queries and weights are rounded to bfloat16 too. Each multiply-add takes two columns of a score, or two tokens of a sum
(``simd/bf16_dot.py``). The cache stores the pairs as the multiply-adds read them, so no number is widened.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.attention.kv_layout import PAGE, token_bytes
from pellucid.kernels.attention.tiles import ROWS, SPAN, Prefetch, register_blocks, store_scores, turns


def scores_tile(simd: Any, rows: int, width: int, kv_dtype: str, span: int = SPAN) -> Any:
    """Make the loop for the scores of ``rows`` queries (rows, K) with ``span`` tokens of a page, from ``token`` on.

    The loop takes (queries, a head's keys in the page, token, ahead, further, out, bytes between rows of out).
    """
    from numba.core import cgutils

    from pellucid.kernels.simd import bf16_dot

    def emit(e: Any, *operands: Any) -> None:
        queries, keys, token, ahead, further, out, stride = operands
        zero, start_of_span = e.fill(simd.f32, 0.0), e.at(keys, e.times(token, token_bytes("bf16", width)))
        prefetch = Prefetch(start_of_span, e.const(width // 2), ahead, further, rows < ROWS)
        for row_range, tokens in register_blocks(simd, rows, span // 16):
            totals = [[cgutils.alloca_once_value(e.b, zero) for _ in tokens] for _ in row_range]
            starts = [e.at(queries, width * bf16_dot.ROW_BYTES * r) for r in row_range]
            with cgutils.for_range(e.b, e.const(width // 2)) as loop:
                key = e.at(keys, e.times(e.at(e.times(loop.index, PAGE), token), 4))
                places = [e.at(key, 64 * part) for part in tokens]
                if row_range.start == 0:
                    prefetch.share(e, loop.index, 64 * tokens.start, 64 * len(tokens))
                for turn, half in turns(e, simd, totals, bf16_dot.HALVES):
                    pairs = [e.load(place, simd.vec(simd.i32)) for place in places[turn]]
                    loaded = [bf16_dot.half_of(e, both, half) for both in pairs]
                    for row, start in zip(totals, starts):
                        q = bf16_dot.spread(e, start, loop.index, half)
                        for total, numbers in zip(row[turn], loaded):
                            e.b.store(bf16_dot.add(e, e.b.load(total), q, numbers), total)
            store_scores(e, totals, row_range, tokens, out, stride)

    return simd.inner_loop(7, emit)


def values_tile(simd: Any, rows: int, width: int, kv_dtype: str) -> Any:
    """Make the loop that adds ``count`` tokens' weighted values to ``rows`` sums (rows, V), from an even token on.

    If ``count`` is odd, the weight after the last token's weight is read and must be finite; the value after the last
    value is ignored.

    The loop takes (weights, bytes between rows of weights, a head's values in the page, token, ahead, further, count,
    out).
    """
    from numba.core import cgutils

    from pellucid.kernels.simd import bf16_dot

    vectors = width // 16

    def emit(e: Any, *operands: Any) -> None:
        weights, stride, values, token, ahead, further, count, out = operands
        first_pair, whole = e.b.ashr(token, e.const(1)), e.b.ashr(count, e.const(1))
        start_of_tokens = e.at(values, e.times(token, token_bytes("bf16", width)))
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
                for turn, half in turns(e, simd, totals, bf16_dot.HALVES):
                    pairs = [e.load(place, simd.vec(simd.i32)) for place in places[turn]]
                    if last:
                        pairs = [bf16_dot.first_only(e, both) for both in pairs]
                    loaded = [bf16_dot.half_of(e, both, half) for both in pairs]
                    for row, start in zip(totals, starts):
                        weight = bf16_dot.spread(e, start, pair, half)
                        for total, numbers in zip(row[turn], loaded):
                            e.b.store(bf16_dot.add(e, e.b.load(total), weight, numbers), total)

            with cgutils.for_range(e.b, whole) as loop:
                add(loop.index, last=False)
            with e.b.if_then(odd):
                add(whole, last=True)
            for row, where in zip(totals, sums):
                for total, place in zip(row, where):
                    e.store(e.b.load(total), place)

    return simd.inner_loop(8, emit)
