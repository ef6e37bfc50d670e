"""The pages of the cache: no sequence overwrites another's tokens, and no page is lost, after any operations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support import pages

from pellucid.errors import CacheFull, InvalidRequest
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import (
    MAX_SNAPSHOTS,
    SLACK,
    CachedLayer,
    LayerShape,
    StateShape,
    groups_of,
    page_counts,
)

SEQUENCES = 4
FULL, STATE = LayerShape(2, 16, 16), StateShape((("conv", 3), ("memory", 40)))
WINDOWS = 50, 100
which = st.integers(0, SEQUENCES - 1)


def sliding(window: int, chunked: bool = False) -> LayerShape:
    return LayerShape(1, 16, 16, window=window, chunked=chunked)


class Accounts(RuleBasedStateMachine):
    """Sequences write a unique number to each token's slot in every group, and fill their state with it.

    After any operations they must find the numbers of all tokens that the next token would see, and the number of the
    last token in the state.
    """

    layers: tuple[CachedLayer, ...] = (FULL,)
    pages: tuple[int, ...] = (7,)

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(self.layers, self.pages)
        self.sequences = [BlockTable() for _ in range(SEQUENCES)]
        self.written: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.next = 0
        self.attention = [group for group in self.cache.groups if not group.recurrent]
        self.states = len(self.attention) < len(self.cache.groups)

    @rule(which=which, tokens=st.integers(1, 3 * PAGE), ends=st.sampled_from(["run", "run", "stop", "crash"]))
    def step(self, which: int, tokens: int, ends: str) -> None:
        sequence = self.sequences[which]
        length, had = sequence.length, [list(blocks.pages) for blocks in sequence.blocks]
        try:
            self.cache.allocate(sequence, tokens, in_place=ends != "stop")
        except CacheFull:
            assert [blocks.pages for blocks in sequence.blocks] == (had or [[] for _ in self.attention])
            assert sequence.length == length
            assert not sequence.snapshots
            return
        except InvalidRequest:
            assert self.states
            assert sequence.state < 0
            return
        if ends == "stop":  # the step is discarded before it writes
            self.cache.truncate(sequence, length)
            assert sequence.length == length
            return
        before, after = sequence.state, sequence.next_state
        self.cache.begin(sequence)
        numbers = list(range(self.next, self.next + tokens))
        self.next += tokens
        for group in range(len(self.attention)):
            for token, number in enumerate(numbers, length):
                pages.of_token(self.cache, sequence, group, token)[0] = number
        if self.states:
            assert before < 0 or pages.of_state(self.cache, before)[0] == self.written[which][-1]
            pages.of_state(self.cache, after)[0] = numbers[-1]
        if ends == "crash":
            if not self.states:
                return  # the tokens of the crashed step are not cached
            cut = self.cache.truncate(sequence, length)
            assert cut <= length
            del self.written[which][cut:]
            return
        self.cache.advance(sequence, tokens)
        self.written[which] += numbers

    @rule(which=which, length=st.integers(0, 6 * PAGE))
    def truncate(self, which: int, length: int) -> None:
        sequence = self.sequences[which]
        had = sequence.length
        kept = self.cache.truncate(sequence, length)
        assert kept == sequence.length <= min(had, length)
        assert all(one.length <= kept for one in sequence.snapshots)
        if not self.states and length >= had - SLACK:
            assert kept == min(had, length), "within the slack a window can go back"
        if self.layers == (FULL,):
            assert kept == min(had, length)
        if length >= had:
            assert kept == had
        del self.written[which][kept:]

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
        for group, pool in enumerate(self.cache.pools):
            users: list[int] = []
            for sequence in self.sequences:
                if self.cache.groups[group].recurrent:
                    users += [page for page in (sequence.state, sequence.next_state) if page >= 0]
                    users += [one.state for one in sequence.snapshots]
                elif sequence.blocks:
                    users += sequence.blocks[group].pages
                    of_snapshots = [one.windows[group].pages for one in sequence.snapshots if group in one.windows]
                    users += itertools.chain(*of_snapshots)
            assert pool.free == pool.count - len(set(users))

    @invariant()
    def every_sequence_has_what_it_wrote(self) -> None:
        for sequence, written in zip(self.sequences, self.written):
            assert sequence.length == len(written)
            for number, group in enumerate(self.attention):
                first = max(0, sequence.length + 1 - group.window) if group.window else 0
                if group.chunked:  # the next token's chunk
                    first = sequence.length // group.window * group.window
                seen = [int(pages.of_token(self.cache, sequence, number, t)[0]) for t in range(first, sequence.length)]
                assert seen == written[first:]
            if self.states and sequence.state >= 0:
                assert pages.of_state(self.cache, sequence.state)[0] == written[-1]
            for one in sequence.snapshots:
                assert one.length % PAGE == 0
                assert one.state < 0 or pages.of_state(self.cache, one.state)[0] == written[one.length - 1]

    @invariant()
    def windows_hold_no_more_than_they_need(self) -> None:
        for sequence in self.sequences:
            for blocks, group in zip(sequence.blocks, self.attention):
                if group.chunked:
                    before = max(0, sequence.length - SLACK)
                    assert blocks.first >= before // group.window * group.window // PAGE
                elif group.window:
                    assert blocks.first >= (sequence.length - SLACK + 1 - group.window) // PAGE

    def teardown(self) -> None:
        for sequence in self.sequences:
            assert self.cache.truncate(sequence, 0) == 0
            assert not sequence.snapshots
        assert self.cache.free_pages == self.cache.pages


class WithWindows(Accounts):
    layers = (FULL, sliding(WINDOWS[0]), sliding(WINDOWS[1]), sliding(WINDOWS[0]))
    pages = (12, 14, 16)


class WithChunks(Accounts):
    layers = (FULL, sliding(WINDOWS[1], chunked=True), sliding(WINDOWS[1]))
    pages = (12, 16, 16)


class WithState(Accounts):
    layers = (STATE, FULL, STATE)
    pages = (9, 7)


class WithAll(Accounts):
    layers = (STATE, FULL, sliding(WINDOWS[1]), STATE)
    pages = (14, 20, 9)


class StateAlone(Accounts):
    layers = (STATE,)
    pages = (6,)


for machine in (Accounts, WithWindows, WithChunks, WithState, WithAll, StateAlone):
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_accounts = Accounts.TestCase
test_accounts_with_windows = WithWindows.TestCase
test_accounts_with_chunks = WithChunks.TestCase
test_accounts_with_states = WithState.TestCase
test_accounts_with_all = WithAll.TestCase
test_accounts_of_states_alone = StateAlone.TestCase


def run(cache: KVCache, table: BlockTable, tokens: int) -> None:
    cache.allocate(table, tokens)
    cache.begin(table)
    cache.advance(table, tokens)


def test_pages_that_nobody_uses_are_asked_for_before_a_sequence_is_refused() -> None:
    cache, idle, sequence, asked = KVCache([FULL], [2]), BlockTable(), BlockTable(), []

    def reclaim(needed: Mapping[int, int]) -> None:
        asked.append(needed)
        cache.truncate(idle, 0)

    cache.reclaim = reclaim
    cache.allocate(idle, 1)
    cache.allocate(sequence, 1)
    assert not asked
    cache.allocate(sequence, 2 * PAGE)
    assert asked == [{0: 1}]
    with pytest.raises(CacheFull):
        cache.allocate(BlockTable(), 1)


def test_a_shared_page_is_copied_though_a_failed_step_left_pages() -> None:
    cache, table = KVCache([FULL], [2]), BlockTable()
    run(cache, table, 10)
    cache.allocate(table, 2 * PAGE - 10)  # the step fails: no token is added
    fork = cache.fork(table)
    assert cache.free_pages == 0
    with pytest.raises(CacheFull, match=f"11 tokens need 1 more pages of {PAGE} tokens; 0 of 2 are free"):
        cache.allocate(table, 1)
    cache.truncate(fork, 0)
    cache.allocate(table, 1)


def test_a_sequence_without_a_free_state_is_refused() -> None:
    cache, tables = KVCache([STATE, FULL], [9, 2]), [BlockTable() for _ in range(3)]
    for table in tables[:2]:
        run(cache, table, 3)
    with pytest.raises(CacheFull, match="needs a recurrent state, and other requests or sequences use all 2:"):
        cache.allocate(tables[2], 1)
    run(cache, tables[0], 1)  # in place
    cache.truncate(tables[1], 0)
    run(cache, tables[2], 1)


def test_an_interrupted_step_loses_the_state_and_says_so() -> None:
    cache, table = KVCache([STATE, FULL], [9, 9]), BlockTable()
    run(cache, table, PAGE)
    run(cache, table, 3)
    cache.allocate(table, 1)
    cache.begin(table)  # without an end
    with pytest.raises(InvalidRequest, match="a sequence of 67 tokens was interrupted"):
        cache.allocate(table, 1)
    assert cache.truncate(table, 67) == PAGE, "the snapshot at the page border"
    run(cache, table, 3)


def test_snapshots_are_dense_near_the_end_and_reach_back() -> None:
    cache, table = KVCache([STATE], [9]), BlockTable()
    for _ in range(64):
        run(cache, table, PAGE)
    lengths = [one.length for one in table.snapshots]
    assert len(lengths) == MAX_SNAPSHOTS
    assert lengths[-1] == table.length
    assert lengths[0] < table.length * 3 / 4
    gaps = [b - a for a, b in pairwise(lengths)]
    assert gaps == sorted(gaps, reverse=True)


def test_which_snapshot_is_missed_least() -> None:
    """The distance between the neighbours of a snapshot, divided by its own distance from the end, is the least."""
    cache, table = KVCache([STATE], [40]), BlockTable()
    wanted = list[int]()
    for end in range(PAGE, 40 * PAGE, PAGE):
        run(cache, table, PAGE)
        wanted.append(end)
        if len(wanted) > MAX_SNAPSHOTS:
            around = zip([0, *wanted], wanted, wanted[1:])
            _, missed = min(((after - before) / (end + PAGE - own), own) for before, own, after in around)
            wanted.remove(missed)
        assert [one.length for one in table.snapshots] == wanted


@pytest.mark.parametrize(
    ("layers", "chunk"),
    [  # the patterns of Gemma 3 270M and of gpt-oss-20b
        ([LayerShape(1, 256, 256, window=0 if i % 6 == 5 else 512) for i in range(18)], 256),
        ([LayerShape(8, 64, 64, window=128 if i % 2 == 0 else 0) for i in range(24)], 256),
    ],
)
def test_a_long_context_takes_what_its_windows_and_full_layers_need(layers: list[LayerShape], chunk: int) -> None:
    context = 32768
    counts = page_counts(layers, context, chunk, 1)
    cache, table = KVCache(layers, counts), BlockTable()
    used = [0] * len(counts)
    for tokens in [chunk] * (context // chunk - 1) + [1] * chunk:
        run(cache, table, tokens)
        used = [max(most, pool.count - pool.free) for most, pool in zip(used, cache.pools)]
    needed = sum(one.page_bytes * min(one.window or context, context) // PAGE for one in layers)
    taken = sum(most * pool.page_bytes for most, pool in zip(used, cache.pools))
    assert taken <= 1.1 * needed
    assert table.length == context
    assert cache.truncate(table, context - chunk) == context - chunk, "the snapshot at the end of the prompt"


def test_layers_that_keep_the_same_tokens_are_a_group() -> None:
    groups = groups_of([STATE, sliding(50), FULL, STATE, FULL, sliding(50), sliding(100), sliding(50, chunked=True)])
    assert [(g.window, g.chunked, g.recurrent, list(g.offsets)) for g in groups] == [
        (50, False, False, [1, 5]), (0, False, False, [2, 4]), (100, False, False, [6]), (50, True, False, [7]),
        (0, False, True, [0, 3]),
    ]  # fmt: skip


def test_layers_and_parts_share_no_byte_of_a_page() -> None:
    layers = [LayerShape(2, 16, 16), sliding(9), STATE, LayerShape(1, 64, 64), LayerShape(3, 32, 32), STATE]
    cache = KVCache(layers, [5, 5, 5])
    spans = []
    for i, layer in enumerate(layers):
        if isinstance(layer, StateShape):
            sizes = {name: 4 * size for name, size in layer.parts}
        else:
            sizes = dict.fromkeys(("keys", "values"), layer.kv_heads * layer.head_dim * PAGE * 2)
        for part, size in sizes.items():
            start = cache.address(i, part)
            spans += [(start + page * cache.page_bytes(i), size) for page in range(5)]
    spans.sort()
    assert all(start + size <= following for (start, size), (following, _) in pairwise(spans))
    assert all(start % 64 == 0 for start, _ in spans)


def test_what_a_large_cache_costs_is_said_when_the_machine_does_not_give_it() -> None:
    with pytest.raises(CacheFull, match="GB, more than this machine can allocate: load with a smaller context"):
        KVCache([LayerShape(1 << 20, 1 << 14, 1 << 14)], [1 << 10])
