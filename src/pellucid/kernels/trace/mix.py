"""Changes attention patterns: adds the effect of a changed pattern to the output of a head.

    out += Σ_j (p'_j - p_j) v_j        p' = factor * p + values

p is the pattern from ``trace/pattern.py``, v are the cached values. If p' equals p, no bit of ``out`` changes, because
nothing is added. Tokens that the row does not see keep a weight of 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.attention import bf16_tiles, tiles
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.kernels.attention.page_loops import page_loops
from pellucid.kernels.attention.rows import RowsRecord, Tile, rows_of
from pellucid.kernels.attention.walk import SCORES
from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import SCRATCH_HEADER, WORD, Address, StepRecord
from pellucid.kernels.trace.pattern import ROW_WORDS

# Words of an entry: index of a listed row, index of a head, the factor as a float64, the address of values or 0.
ENTRY_WORDS = 4


class TraceMixRecord(RowsRecord):
    values: Address  # G heads of page 0
    rows: Address  # (1 + 2 n,) int64: as in the pattern's record
    pattern: Address  # (n, count, ...) float32, as the pattern's kernel writes it
    pattern_stride: int  # bytes from one row to the next
    pattern_head: int  # bytes from one head to the next
    first: int  # the first head of the pattern
    entries: Address  # (1 + 4 m,) int64: m, then the entries; an entry's values: a float32 for each token
    out: Address  # (T, H * V) float32


@kernel("trace_mix", TraceMixRecord)
def build(simd: Any, value_dim: int, kv_dtype: str) -> Any:
    at, step_at, load, load_i32 = TraceMixRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    rows, loops = rows_of(simd, at), page_loops(simd, value_dim, value_dim, kv_dtype, SCORES)
    add_values = (bf16_tiles if kv_dtype == "bf16" else tiles).values_tile(simd, 1, value_dim, kv_dtype)
    context_of, place_of, limits, seen = rows.context_of, rows.place_of, rows.limits, rows.seen
    store16, size, each = loops.store, loops.size, head_bytes(kv_dtype, value_dim)
    vload, vstore, splat, keep = simd.vload, simd.vstore, simd.splat, simd.keep
    vmax, vabs, vmax_lane, fma = simd.vmax, simd.vabs, simd.vmax_lane, simd.fma
    zero = np.float32(0)

    @simd.jit
    def mix(tile, pattern, factor, addend, sums):
        """Add a row's changed weights times its values to ``sums``. Returns the largest change of a weight."""
        context = context_of(tile)
        low, high = seen(tile, context, tile.first, 1)
        _, first, last = limits(tile, context, tile.first)
        values = load(tile.record + at.values) + tile.kv_head * each
        weights, largest, less = sums + value_dim * 4, splat(zero), splat(factor - np.float32(1))
        for page in range(low // PAGE * PAGE, high, PAGE):
            begin, end = max(low, page), min(high, page + PAGE)
            for t in range(begin, end, 16):
                delta = vload(pattern + t * 4) * less
                if addend != 0 and factor == zero:
                    delta = vload(addend + t * 4) - vload(pattern + t * 4)
                elif addend != 0:
                    delta = fma(vload(pattern + t * 4), less, vload(addend + t * 4))
                delta = keep(delta, first - t, min(last, end) - t, zero)
                store16(weights + (t - page) * size, delta)
                largest = vmax(largest, vabs(delta))
            here = values + load_i32(context.pages + page // PAGE * 4) * load(tile.record + at.page_bytes)
            add_values(weights + (begin - page) * size, 0, here, begin - page, 0, 0, end - begin, sums)
        return vmax_lane(largest)

    @simd.jit
    def body(record, step, thread, threads):
        heads, entries = load(record + at.heads), load(record + at.entries)
        group, listed = heads // load(record + at.kv_heads), load(record + at.rows)
        sums = load(step + step_at.scratch) + thread * load(step + step_at.scratch_bytes) + SCRATCH_HEADER
        total = load(entries)
        for i in range(*simd.thread_range(total, thread, threads)):
            entry = entries + WORD * (1 + ENTRY_WORDS * i)
            number, which = load(entry), load(entry + WORD)
            factor, addend = np.float32(simd.load_f64(entry + 2 * WORD)), load(entry + 3 * WORD)
            row = load(listed + WORD * (1 + ROW_WORDS * number))
            sequence = load(listed + WORD * (2 + ROW_WORDS * number))
            head = load(record + at.first) + which
            inside = row - load_i32(load(step + step_at.first_row) + 4 * sequence)
            tile = Tile(record, step, sequence, head // group, group, inside * group + head % group, 1)
            pattern = load(record + at.pattern) + number * load(record + at.pattern_stride)
            for j in range(0, value_dim * 4, 64):
                vstore(sums + j, splat(zero))
            changed = mix(tile, pattern + which * load(record + at.pattern_head), factor, addend, sums)
            if changed != zero:
                out = load(record + at.out) + place_of(tile, tile.first) * value_dim * 4
                for j in range(0, value_dim * 4, 64):
                    vstore(out + j, vload(out + j) + vload(sums + j))

    return body
