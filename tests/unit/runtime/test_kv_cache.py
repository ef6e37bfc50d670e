"""The pages of the cache: no sequence overwrites another's tokens, and no page is lost, after any operations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cache import BlockTable, KVCache, LayerShape

PAGES, SEQUENCES = 7, 4
which = st.integers(0, SEQUENCES - 1)


class Accounts(RuleBasedStateMachine):
    """Sequences write a unique number to each token's place and must find it again after any operations."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache([LayerShape(2, 16, 16)], PAGES)
        self.sequences = [BlockTable() for _ in range(SEQUENCES)]
        self.written: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.next = 0

    def memory(self, sequence: BlockTable, token: int) -> np.ndarray:
        """The memory that has a token's number."""
        at = sequence.pages[token // PAGE] * self.cache.page_bytes + token % PAGE * 8
        return self.cache._memory[at : at + 8].view(np.int64)

    @rule(which=which, tokens=st.integers(1, 3 * PAGE), run=st.booleans())
    def allocate(self, which: int, tokens: int, run: bool) -> None:
        sequence = self.sequences[which]
        before, free = list(sequence.pages), self.cache.free_pages
        wanted = max(0, -(-(sequence.length + tokens) // PAGE) - len(before))
        last = sequence.length // PAGE
        shared = bool(sequence.length % PAGE) and any(
            before[last] in other.pages for at, other in enumerate(self.sequences) if at != which
        )
        wanted += shared
        if wanted > free:
            with pytest.raises(
                CacheFull, match=rf"need {wanted} more pages of {PAGE} tokens; {free} of {PAGES} are free"
            ):
                self.cache.allocate(sequence, tokens)
            assert sequence.pages == before
            return
        self.cache.allocate(sequence, tokens)
        for at, page in enumerate(before):  # cached tokens keep their page unless others share it
            assert (sequence.pages[at] == page) != (shared and at == last)
        assert len(sequence.pages) * PAGE >= sequence.length + tokens
        if run:  # otherwise the step fails, and its tokens are not cached
            for token in range(sequence.length, sequence.length + tokens):
                self.next += 1
                self.memory(sequence, token)[0] = self.next
                self.written[which].append(self.next)
            sequence.length += tokens

    @rule(which=which, length=st.integers(0, 5 * PAGE))
    def truncate(self, which: int, length: int) -> None:
        sequence = self.sequences[which]
        before, had = list(sequence.pages), sequence.length
        self.cache.truncate(sequence, length)
        assert sequence.length == min(had, length)
        assert sequence.pages == before[: -(-min(had, length) // PAGE)]
        del self.written[which][length:]

    @rule(which=which, to=which)
    def fork(self, which: int, to: int) -> None:
        if which == to:
            return
        self.cache.truncate(self.sequences[to], 0)
        free = self.cache.free_pages
        self.sequences[to] = self.cache.fork(self.sequences[which])
        self.written[to] = list(self.written[which])
        assert self.cache.free_pages == free  # a fork needs no page yet

    @invariant()
    def every_page_is_owned_or_free(self) -> None:
        owned = {page for sequence in self.sequences for page in sequence.pages}
        assert owned <= set(range(PAGES))
        assert self.cache.free_pages == PAGES - len(owned)

    @invariant()
    def every_sequence_has_what_it_wrote(self) -> None:
        for sequence, written in zip(self.sequences, self.written):
            assert [int(self.memory(sequence, token)[0]) for token in range(sequence.length)] == written

    def teardown(self) -> None:
        for sequence in self.sequences:
            self.cache.truncate(sequence, 0)
            assert (sequence.pages, sequence.length) == ([], 0)
        assert self.cache.free_pages == PAGES


test_accounts = Accounts.TestCase


def test_pages_that_nobody_uses_are_asked_for_before_a_sequence_is_refused() -> None:
    cache, idle, sequence, asked = KVCache([LayerShape(1, 16, 16)], 2), BlockTable(), BlockTable(), []

    def reclaim() -> None:
        asked.append(True)
        cache.truncate(idle, 0)

    cache.reclaim = reclaim
    cache.allocate(idle, 1)
    cache.allocate(sequence, 1)
    assert not asked
    cache.allocate(sequence, 2 * PAGE)
    assert len(asked) == 1
    with pytest.raises(CacheFull):
        cache.allocate(BlockTable(), 1)


def test_a_shared_page_is_copied_though_a_failed_step_left_pages() -> None:
    cache, table = KVCache([LayerShape(1, 16, 16)], 2), BlockTable()
    cache.allocate(table, 10)
    table.length = 10
    cache.allocate(table, 2 * PAGE - 10)  # the step of these tokens fails: no token is added
    fork = cache.fork(table)
    assert cache.free_pages == 0
    with pytest.raises(CacheFull, match="11 tokens need 1 more pages"):
        cache.allocate(table, 1)
    cache.truncate(fork, 0)
    cache.allocate(table, 1)


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
