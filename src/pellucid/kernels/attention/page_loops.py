"""Scores and values of one page for any number of rows, composed of the fixed-size loops of ``inner_loops.py``.

Tiles of more than 8 rows first *open* the page: they widen it to float32 once. Smaller tiles read the page as stored,
and bfloat16 pages are always read as stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pellucid.kernels.attention import inner_loops
from pellucid.kernels.attention.inner_loops import widen_keys, widen_values
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.attention.rows import ROWS, SPAN


class PageLoops(NamedTuple):
    """Helpers for one page.

    ``store`` stores 16 numbers of a query, or 16 weights, as the loops read them. Each number takes ``size`` bytes.
    """

    open_keys: Any
    scores: Any
    open_values: Any
    values: Any
    store: Any
    size: int


def page_loops(simd: Any, head_dim: int, value_dim: int, kv_dtype: str, stride: int) -> PageLoops:
    """Make the helpers for a page. Rows of scores are ``stride`` bytes apart.

    ``open_keys`` and ``open_values`` take (rows of the tile, the head in the page, out). ``scores`` and ``values`` take
    the number of rows of the tile and ``count``, the number of rows to compute, at most 8.
    """
    if kv_dtype == "bf16":
        return _paired(simd, head_dim, value_dim, stride)
    return _widened(simd, head_dim, value_dim, kv_dtype, stride)


def _paired(simd: Any, head_dim: int, value_dim: int, stride: int) -> PageLoops:
    """Make the helpers for bfloat16 pages, which are read as stored."""
    from pellucid.kernels.simd import dot

    few_scores = _scores_of_few(simd, head_dim, "bf16", head_dim * dot.ROW_BYTES, stride)
    few_values = _values_of_few(simd, value_dim, "bf16", stride)

    @simd.jit
    def unopened(rows, here, page):
        pass

    return PageLoops(unopened, few_scores, unopened, few_values, dot.store_row, dot.ROW_BYTES)


def _widened(simd: Any, head_dim: int, value_dim: int, kv_dtype: str, stride: int) -> PageLoops:
    """Make the helpers for types other than bfloat16. Pages are opened for tiles of more than 8 rows."""
    few_scores = _scores_of_few(simd, head_dim, kv_dtype, head_dim * 4, stride)
    few_values = _values_of_few(simd, value_dim, kv_dtype, stride)
    wide_scores = inner_loops.scores_tile(simd, ROWS, head_dim, "f32")
    wide_values = inner_loops.values_tile(simd, ROWS, value_dim, "f32")
    wider_keys, wider_values = widen_keys(simd, head_dim, kv_dtype), widen_values(simd, value_dim, kv_dtype)

    @simd.jit
    def open_keys(rows, here, page):
        if rows > ROWS:
            wider_keys(here, page)

    @simd.jit
    def scores(rows, count, queries, here, page, token, ahead, further, tokens, out):
        if rows > ROWS and count == ROWS:
            for t in range(0, tokens, SPAN):
                wide_scores(queries, page, token + t, 0, 0, out + 4 * t, stride)
        else:
            few_scores(rows, count, queries, here, page, token, ahead, further, tokens, out)

    @simd.jit
    def open_values(rows, here, page):
        if rows > ROWS:
            wider_values(here, page)

    @simd.jit
    def values(rows, count, weights, here, page, token, ahead, further, tokens, out):
        if rows > ROWS and count == ROWS:
            wide_values(weights, stride, page, token, 0, 0, tokens, out)
        else:
            few_values(rows, count, weights, here, page, token, ahead, further, tokens, out)

    return PageLoops(open_keys, scores, open_values, values, simd.vstore, 4)


def _scores_of_few(simd: Any, head_dim: int, kv_dtype: str, query_bytes: int, stride: int) -> Any:
    """Make the helper for scores of at most 8 rows, from loops over 8, 4, 3, 2 and 1 rows.

    For fewer than 8 rows, the helper reads a page in the order of memory if all tokens of the page are needed and the
    instruction set has enough registers.
    """
    from pellucid.kernels.simd.emitter import LANES, TARGET

    scores8 = inner_loops.scores_tile(simd, ROWS, head_dim, kv_dtype)
    few = _scores_of_four(simd, head_dim, kv_dtype, query_bytes, stride, SPAN)

    @simd.jit
    def by_spans(rows, count, queries, here, page, token, ahead, further, tokens, out):
        for t in range(0, tokens, SPAN):
            if count == ROWS:
                scores8(queries, here, token + t, ahead, further, out + 4 * t, stride)
            else:
                few(queries, count, here, token + t, ahead, further, out + 4 * t)

    if TARGET.isa.lanes < LANES:
        return by_spans
    of_page = _scores_of_four(simd, head_dim, kv_dtype, query_bytes, stride, PAGE)

    @simd.jit
    def scores(rows, count, queries, here, page, token, ahead, further, tokens, out):
        if tokens < PAGE or count == ROWS:
            by_spans(rows, count, queries, here, page, token, ahead, further, tokens, out)
        else:
            of_page(queries, count, here, token, ahead, further, out)

    return scores


def _scores_of_four(simd: Any, head_dim: int, kv_dtype: str, query_bytes: int, stride: int, span: int) -> Any:
    """Make the helper for scores of any number of rows with ``span`` tokens, from loops over 4, 3, 2 and 1 rows."""
    scores4, scores3, scores2, scores1 = (
        inner_loops.scores_tile(simd, n, head_dim, kv_dtype, span) for n in (4, 3, 2, 1)
    )

    @simd.jit
    def few(queries, count, here, token, ahead, further, out):
        while count > 0:
            if count >= 4:
                scores4(queries, here, token, ahead, further, out, stride)
                done = 4
            elif count == 3:
                scores3(queries, here, token, ahead, further, out, stride)
                done = 3
            elif count == 2:
                scores2(queries, here, token, ahead, further, out, stride)
                done = 2
            else:
                scores1(queries, here, token, ahead, further, out, stride)
                done = 1
            count, queries, out = count - done, queries + done * query_bytes, out + done * stride

    return few


def _values_of_few(simd: Any, value_dim: int, kv_dtype: str, stride: int) -> Any:
    """Make the helper for weighted values of any number of rows, from loops over 8, 4, 3, 2 and 1 rows."""
    out_bytes = value_dim * 4
    values8, values4, values3, values2, values1 = (
        inner_loops.values_tile(simd, n, value_dim, kv_dtype) for n in (8, 4, 3, 2, 1)
    )

    @simd.jit
    def values(rows, count, weights, here, page, token, ahead, further, tokens, out):
        while count > 0:
            if count >= 8:
                values8(weights, stride, here, token, ahead, further, tokens, out)
                done = 8
            elif count >= 4:
                values4(weights, stride, here, token, ahead, further, tokens, out)
                done = 4
            elif count == 3:
                values3(weights, stride, here, token, ahead, further, tokens, out)
                done = 3
            elif count == 2:
                values2(weights, stride, here, token, ahead, further, tokens, out)
                done = 2
            else:
                values1(weights, stride, here, token, ahead, further, tokens, out)
                done = 1
            count, weights, out = count - done, weights + done * stride, out + done * out_bytes

    return values
