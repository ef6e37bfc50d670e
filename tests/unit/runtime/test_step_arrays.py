"""A batch as arrays: rows, positions, pages and outputs of every sequence, without data of the previous step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.core.record import StepRecord
from pellucid.runtime.batch import SCRATCH_GAP, Chunk, StepArrays
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import LayerShape, StateShape

counts = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 200), st.integers(0, 30)), min_size=1, max_size=6)


def word(arrays: StepArrays, field: str) -> int:
    return int(arrays.record[getattr(StepRecord.at, field) // 8])


@given(st.lists(counts, min_size=1, max_size=3))
def test_a_step_says_where_every_token_is(steps: list[list[tuple[int, int, int]]]) -> None:
    cache = KVCache(
        [LayerShape(1, 16, 16), LayerShape(1, 16, 16, window=70), StateShape((("memory", 4),))], [30, 30, 12]
    )
    arrays = StepArrays(tokens=180, outputs=180, sequences=6, pages=30, scratch=128, threads=2, groups=2)
    for step in steps:
        chunks = []
        for count, past, outputs in step:
            sequence = BlockTable()
            cache.allocate(sequence, past)
            cache.begin(sequence)
            cache.advance(sequence, past)
            chunks.append(Chunk(sequence, list(range(past, past + count)), min(outputs, count)))
        for chunk in chunks:
            cache.allocate(chunk.table, len(chunk.tokens))
        T, R = arrays.fill(chunks)
        assert T == word(arrays, "tokens") == sum(len(c.tokens) for c in chunks)
        assert R == word(arrays, "outputs") == sum(c.outputs for c in chunks)
        assert word(arrays, "sequences") == len(chunks)
        row = output = 0
        for s, chunk in enumerate(chunks):
            n, past = len(chunk.tokens), chunk.table.length
            assert past == step[s][1]  # grows only after the step
            assert arrays.token_ids[row : row + n].tolist() == chunk.tokens
            assert arrays.positions[row : row + n].tolist() == list(range(past, past + n))
            assert (arrays.first_row[s], arrays.row_count[s], arrays.length[s]) == (row, n, past + n)
            for pages, blocks in zip(arrays.pages, chunk.table.blocks, strict=True):
                assert blocks.end == -(-(past + n) // PAGE)
                assert pages[s, blocks.first : blocks.end].tolist() == blocks.pages
            assert (arrays.states[s], arrays.next_states[s]) == (chunk.table.state, chunk.table.next_state)
            row += n
            wanted = arrays.output_rows[output : output + chunk.outputs].tolist()
            assert wanted == list(range(row - chunk.outputs, row))
            output += chunk.outputs
            cache.truncate(chunk.table, 0)


def test_scratch_begins_at_a_cache_line() -> None:
    arrays = StepArrays(8, 8, 1, 1, scratch=192, threads=3)
    table = BlockTable()
    KVCache([LayerShape(1, 16, 16)], [1]).allocate(table, 1)
    arrays.fill([Chunk(table, [1])])
    assert word(arrays, "scratch") % 64 == 0
    assert word(arrays, "scratch_bytes") == 192 + SCRATCH_GAP


def test_a_sequence_that_gets_no_pages_is_refused_and_does_not_grow() -> None:
    cache = KVCache([LayerShape(1, 16, 16)], [2])
    first, second = BlockTable(), BlockTable()
    cache.allocate(first, 1)
    with pytest.raises(CacheFull, match=f"{PAGE + 1} tokens need 2 more pages"):
        cache.allocate(second, PAGE + 1)
    assert (first.length, second.length) == (0, 0)
    cache.truncate(first, 0)
    assert cache.free_pages == 2
