"""The prefix cache: a text gets pages of its own tokens only, no page leaks, and eviction is least recently used."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support import pages

from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, StateShape
from pellucid.runtime.prefix_cache import PrefixCache, default_bytes

FULL, STATE = LayerShape(2, 16, 16), StateShape((("conv", 3), ("memory", 40)))
SEQUENCES = 3
which = st.integers(0, SEQUENCES - 1)
texts = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 5, 30, PAGE, PAGE + 1, 2 * PAGE])), max_size=4)
"""Runs of few different tokens, so that texts often share prefixes."""


def tokens_of(runs: list[tuple[int, int]]) -> list[int]:
    return [token for token, count in runs for _ in range(count)]


def marks(tokens: list[int]) -> list[int]:
    """A number for each token that depends on it and on all tokens before."""
    found, mark = [], 7
    for token in tokens:
        mark = (mark * 1_000_003 + token + 1) % (1 << 61)
        found.append(mark)
    return found


class Prefixes(RuleBasedStateMachine):
    """Sequences write their marks into the cache, and must find the marks of their own tokens."""

    layers: tuple[CachedLayer, ...] = (FULL,)
    pages: tuple[int, ...] = (12,)
    limit = 1 << 40

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(self.layers, self.pages)
        self.prefixes = PrefixCache(self.cache, self.limit)
        self.tables = [BlockTable() for _ in range(SEQUENCES)]
        self.tokens: list[list[int]] = [[] for _ in range(SEQUENCES)]

    @rule(which=which, runs=texts)
    def begin(self, which: int, runs: list[tuple[int, int]]) -> None:
        """Start another text with its cached prefix."""
        self.end(which)
        ids = tokens_of(runs)
        table = self.tables[which] = self.prefixes.find(ids, max(len(ids) - 1, 0))
        assert table.length <= max(len(ids) - 1, 0)
        self.tokens[which] = ids[: table.length]

    @rule(which=which, runs=texts)
    def grow(self, which: int, runs: list[tuple[int, int]]) -> None:
        table, more = self.tables[which], tokens_of(runs)
        if not more:
            return
        try:
            self.cache.allocate(table, len(more))
        except CacheFull:
            return
        self.cache.begin(table)
        whole = self.tokens[which] + more
        for group in self.cache.attention:
            for token, mark in list(enumerate(marks(whole)))[table.length :]:
                pages.of_token(self.cache, table, group, token)[:] = mark
        if self.cache.has_states:
            pages.of_state(self.cache, table.next_state)[:] = marks(whole)[-1]
        self.cache.advance(table, len(more))
        self.tokens[which] = whole

    @rule(which=which, grows=st.booleans())
    def keep(self, which: int, grows: bool) -> None:
        self.prefixes.insert(self.tables[which], self.tokens[which], grows=grows)

    @rule(which=which)
    def end(self, which: int) -> None:
        self.prefixes.insert(self.tables[which], self.tokens[which])
        self.cache.truncate(self.tables[which], 0)
        self.tables[which], self.tokens[which] = BlockTable(), []

    @rule(which=which, length=st.integers(0, 6 * PAGE))
    def truncate(self, which: int, length: int) -> None:
        left = self.cache.truncate(self.tables[which], length)
        del self.tokens[which][left:]

    @invariant()
    def every_sequence_sees_its_own_tokens(self) -> None:
        for table, tokens in zip(self.tables, self.tokens):
            assert table.length == len(tokens)
            wanted = marks(tokens)
            for group in self.cache.attention:
                kind = self.cache.groups[group]
                first = max(len(tokens) + 1 - kind.window, 0) if kind.window and not kind.chunked else 0
                if kind.chunked:
                    first = len(tokens) // kind.window * kind.window
                for token in range(first, len(tokens)):
                    assert pages.of_token(self.cache, table, group, token) == wanted[token]
            if self.cache.has_states and tokens and table.state >= 0:
                assert pages.of_state(self.cache, table.state) == wanted[-1]

    @invariant()
    def every_page_is_owned_or_free(self) -> None:
        """A page belongs to sequences, to the prefix cache, or to both."""
        users = [dict[int, int]() for _ in self.cache.pools]

        def count(group: int, pages: list[int]) -> None:
            for page in pages:
                if page >= 0:
                    users[group][page] = users[group].get(page, 0) + 1

        for table in self.tables:
            for group, blocks in enumerate(table.blocks):
                count(group, blocks.pages)
            count(len(users) - 1, [table.state] if self.cache.has_states else [])
            for snapshot in table.snapshots:
                for group, blocks in snapshot.windows.items():
                    count(group, blocks.pages)
                count(len(users) - 1, [snapshot.state] if self.cache.has_states else [])
        used = [pool.count - pool.free for pool in self.cache.pools]
        unowned = [count - len(of_pool) for count, of_pool in zip(used, users)]
        assert min(unowned) >= 0
        bytes_of_unowned, bytes_of_all = (
            sum(count * pool.page_bytes for count, pool in zip(counts, self.cache.pools)) for counts in (unowned, used)
        )
        assert bytes_of_unowned <= self.prefixes.nbytes <= bytes_of_all

    def teardown(self) -> None:
        for number in range(SEQUENCES):
            self.end(number)
        assert self.prefixes.nbytes == sum((pool.count - pool.free) * pool.page_bytes for pool in self.cache.pools)
        self.prefixes.clear()
        assert self.cache.free_pages == self.cache.pages
        assert self.prefixes.nbytes == 0


class WithWindows(Prefixes):
    layers = (FULL, LayerShape(1, 16, 16, window=50), LayerShape(1, 16, 16, window=100))
    pages = (14, 10, 10)


class WithChunks(Prefixes):
    layers = (FULL, LayerShape(1, 16, 16, window=100, chunked=True))
    pages = (14, 10)


class WithState(Prefixes):
    layers = (STATE, FULL)
    pages = (14, 10)


class WithLittleRoom(Prefixes):
    limit = 4 * LayerShape(2, 16, 16).page_bytes


for machine in (Prefixes, WithWindows, WithChunks, WithState, WithLittleRoom):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_prefixes = Prefixes.TestCase
test_prefixes_with_windows = WithWindows.TestCase
test_prefixes_with_chunks = WithChunks.TestCase
test_prefixes_with_states = WithState.TestCase
test_prefixes_with_little_room = WithLittleRoom.TestCase


def read(cache: KVCache, ids: list[int], table: BlockTable | None = None) -> BlockTable:
    """Run the tokens of a text that are not in its block table yet, a page at a time like prefill."""
    table = table or BlockTable()
    while table.length < len(ids):
        step = min(PAGE - table.length % PAGE, len(ids) - table.length)
        cache.allocate(table, step)
        cache.begin(table)
        cache.advance(table, step)
    return table


def keep(cache: KVCache, prefixes: PrefixCache, ids: list[int]) -> None:
    table = read(cache, ids)
    prefixes.insert(table, ids)
    cache.truncate(table, 0)


@pytest.mark.parametrize("layers", [(FULL,), (FULL, LayerShape(1, 16, 16, window=100))], ids=["full", "windows"])
def test_several_texts_are_found_to_the_token(layers: tuple[CachedLayer, ...]) -> None:
    cache = KVCache(layers, [40] * len(layers))
    prefixes = PrefixCache(cache, 1 << 40)
    system = [9] * 150
    first, second = system + [1] * 30, system + [2] * 30
    keep(cache, prefixes, first)
    keep(cache, prefixes, second)
    for text in (first, second):
        found = prefixes.find([*text, 5, 5], 181)
        assert found.length == 180
        cache.truncate(found, 0)
    if len(layers) == 1:  # without a window, any prefix can be cached
        assert prefixes.find([*system, 3], 150).length == 150
        assert prefixes.find(system[:70] + [4] * 99, 168).length == 70
    assert prefixes.find([8, *system], 150).length == 0


def test_a_state_is_found_where_a_step_ended() -> None:
    cache = KVCache([STATE, FULL], [40, 40])
    prefixes, text = PrefixCache(cache, 1 << 40), [1] * 200
    keep(cache, prefixes, text)
    for wanted, common in ((200, 200), (192, 199), (192, 192), (128, 191)):
        found = prefixes.find(text[:common] + [2] * 9, common + 8)
        assert found.length == wanted
        cache.truncate(found, 0)


def test_the_text_that_was_used_last_stays() -> None:
    cache = KVCache([FULL], [24])
    prefixes = PrefixCache(cache, 1 << 40)
    texts = [[number] * (5 * PAGE) for number in range(4)]
    for ids in texts:
        keep(cache, prefixes, ids)
    cache.truncate(prefixes.find(texts[0], 5 * PAGE), 0)
    read(cache, [9] * (5 * PAGE))  # the four texts had 20 of 24 pages
    lengths = [prefixes.find(ids, 5 * PAGE).length for ids in texts]
    assert lengths[0] == 5 * PAGE
    assert lengths[1] < 5 * PAGE
    assert lengths[3] >= lengths[2] >= lengths[1]


def test_a_page_is_free_that_only_the_tree_has_before_pages_in_use() -> None:
    """Two texts have computed the same page. The second text needs all other pages."""
    cache = KVCache((FULL,), (4,))
    prefixes = PrefixCache(cache, 1 << 40)
    tokens = tokens_of([(1, 4 * PAGE)])
    first, second = BlockTable(), BlockTable()
    for table, count in ((first, PAGE), (second, 2 * PAGE)):
        cache.allocate(table, count)
        cache.advance(table, count)
    prefixes.insert(first, tokens, grows=True)
    prefixes.insert(second, tokens, grows=True)
    cache.truncate(first, 0)
    cache.allocate(second, 2 * PAGE)
    cache.advance(second, 2 * PAGE)
    assert prefixes.match(tokens, 4 * PAGE) == 0
    prefixes.insert(second, tokens)
    assert prefixes.match(tokens, 4 * PAGE) == 4 * PAGE
    cache.truncate(second, 0)
    prefixes.clear()
    assert cache.free_pages == 4


def test_the_usual_size_is_that_of_the_weights_within_the_machines_memory() -> None:
    GB = 1 << 30
    assert default_bytes(100 << 20, 16 * GB) == 512 << 20, "a small model on a laptop"
    assert default_bytes(3 * GB, 64 * GB) == 3 * GB
    assert default_bytes(8 * GB, 16 * GB) == GB
    assert default_bytes(100 << 20, 4 * GB) == 256 << 20
    assert default_bytes(3 * GB, 0) == 512 << 20, "the machine's memory is not known"


def test_match_says_how_much_find_gives() -> None:
    cache = KVCache((FULL,), (12,))
    prefixes, table = PrefixCache(cache, 1 << 40), BlockTable()
    ids = [1] * 40 + [2] * 60
    cache.allocate(table, 100)
    cache.begin(table)
    cache.advance(table, 100)
    prefixes.insert(table, ids)
    for asked in (ids, ids[:30], ids[:70] + [3] * 9, [5]):
        length = prefixes.match(asked, len(asked))
        found = prefixes.find(asked, len(asked))
        assert found.length == length
        cache.truncate(found, 0)


def test_texts_take_no_more_than_they_may() -> None:
    cache = KVCache([FULL], [100])
    prefixes = PrefixCache(cache, 8 * cache.groups[0].page_bytes)
    for number in range(9):
        keep(cache, prefixes, [number] * (3 * PAGE))
        assert prefixes.nbytes <= 8 * cache.groups[0].page_bytes
    assert prefixes.find([8] * (3 * PAGE), 3 * PAGE).length == 3 * PAGE


@pytest.mark.parametrize("layer", [LayerShape(1, 16, 16, window=100), STATE], ids=["window", "state"])
def test_a_tree_without_full_attention_does_not_grow_for_ever(layer: CachedLayer) -> None:
    cache = KVCache([layer], [40])
    prefixes = PrefixCache(cache, 1 << 40)
    for number in range(300):
        keep(cache, prefixes, [number] * (4 * PAGE))
    assert len(prefixes.names()) <= 4 * 40
