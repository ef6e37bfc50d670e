"""The cache's accounts: no page has two owners, none is lost, whatever sequences grow, shrink and are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pellucid.errors import CacheFull
from pellucid.kernels.cached import PAGE
from pellucid.runtime.cache import KVCache, LayerShape, Sequence

PAGES, SEQUENCES = 7, 4
which = st.integers(0, SEQUENCES - 1)


class Accounts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache([LayerShape(2, 16, 16)], PAGES)
        self.sequences = [Sequence() for _ in range(SEQUENCES)]

    @rule(which=which, tokens=st.integers(1, 3 * PAGE), run=st.booleans())
    def extend(self, which: int, tokens: int, run: bool) -> None:
        sequence = self.sequences[which]
        before, free = list(sequence.pages), self.cache.free_pages
        wanted = max(0, -(-(sequence.length + tokens) // PAGE) - len(before))
        if wanted > free:
            with pytest.raises(
                CacheFull, match=rf"need {wanted} more pages of {PAGE} tokens; {free} of {PAGES} are free"
            ):
                self.cache.extend(sequence, tokens)
            assert sequence.pages == before
            return
        self.cache.extend(sequence, tokens)
        assert sequence.pages[: len(before)] == before  # what is cached stays where it is
        assert len(sequence.pages) * PAGE >= sequence.length + tokens
        if run:  # else the step failed, and the tokens are not there
            sequence.length += tokens

    @rule(which=which, length=st.integers(0, 5 * PAGE))
    def truncate(self, which: int, length: int) -> None:
        sequence = self.sequences[which]
        before, had = list(sequence.pages), sequence.length
        self.cache.truncate(sequence, length)
        assert sequence.length == min(had, length)
        assert sequence.pages == before[: -(-min(had, length) // PAGE)]

    @invariant()
    def every_page_has_one_owner(self) -> None:
        owned = [page for sequence in self.sequences for page in sequence.pages]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(PAGES))
        assert self.cache.free_pages == PAGES - len(owned)

    def teardown(self) -> None:
        for sequence in self.sequences:
            self.cache.truncate(sequence, 0)
            assert (sequence.pages, sequence.length) == ([], 0)
        assert self.cache.free_pages == PAGES


test_accounts = Accounts.TestCase


def test_pages_that_nobody_uses_are_asked_for_before_a_sequence_is_refused() -> None:
    cache, idle, sequence, asked = KVCache([LayerShape(1, 16, 16)], 2), Sequence(), Sequence(), []

    def reclaim() -> None:
        asked.append(True)
        cache.truncate(idle, 0)

    cache.reclaim = reclaim
    cache.extend(idle, 1)
    cache.extend(sequence, 1)
    assert not asked
    cache.extend(sequence, 2 * PAGE)
    assert len(asked) == 1
    with pytest.raises(CacheFull):
        cache.extend(Sequence(), 1)


def test_layers_and_parts_share_no_byte_of_a_page() -> None:
    layers = [LayerShape(2, 16, 16), LayerShape(1, 64, 64), LayerShape(3, 32, 32)]
    cache = KVCache(layers, 5)
    starts = []
    for i, layer in enumerate(layers):
        size = layer.kv_heads * layer.head_dim * PAGE * 2
        starts += [(cache.address(i, part), size) for part in ("keys", "values")]
    spans = sorted((start + page * cache.page_bytes, size) for start, size in starts for page in range(5))
    assert all(start + size <= following for (start, size), (following, _) in pairwise(spans))
    assert all(start % 64 == 0 for start, _ in spans)


def test_what_a_large_cache_costs_is_said_when_the_machine_does_not_give_it() -> None:
    with pytest.raises(CacheFull, match="GB, more than this machine gives: load with a smaller context"):
        KVCache([LayerShape(1 << 20, 1 << 14, 1 << 14)], 1 << 10)
