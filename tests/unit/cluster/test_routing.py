"""Choice of the replica of a request: longest cached prefix, bounded load, stable placement."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.routing import ReplicaLoad, choose
from pellucid.cluster.secret import ClusterSecret
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.loading import open_model
from pellucid.runtime.prefix_cache import page_names
from pellucid.sample.grammars.matching import Matching

TEXT = list(range(1000))


def loads(count: int, **more: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"replica {number}", **more) for number in range(count)]  # type: ignore[arg-type]


def test_the_longest_beginning_wins() -> None:
    one, two, three = loads(3)
    names = list(page_names(TEXT))
    assert len(names) == len(TEXT) // PAGE
    one.pages.update(names[:2])
    two.pages.update(names[:5])
    three.pages.update(names[3:])  # useless without the pages before them
    route = choose(TEXT, [one, two, three])
    assert (route.replica, route.pages) == (two, 5)
    assert choose([*TEXT[: 2 * PAGE], *range(5000, 5200)], [one, three]).replica is one


def test_a_replica_that_has_too_much_to_do_is_left() -> None:
    one, two = loads(2)
    one.pages.update(page_names(TEXT))
    one.running, two.running = 10, 0
    route = choose(TEXT, [one, two])
    assert (route.replica, route.pages) == (two, 0)
    one.running, two.running = 5, 5
    assert choose(TEXT, [one, two]).replica is one


def test_what_was_sent_counts_until_it_is_lost() -> None:
    one, two = loads(2)
    names = list(page_names(TEXT))
    two.expect(names[:6])
    assert choose(TEXT, [one, two]).replica is two
    two.evict(names[:1])
    assert two.has(names) == 0


def test_equal_beginnings_meet_and_others_spread() -> None:
    replicas, rng = loads(8), random.Random(1)
    first = [[rng.randrange(1000) for _ in range(3 * PAGE)] for _ in range(400)]
    places = [choose(ids, replicas).replica.name for ids in first]
    assert [choose([*ids, 1, 2, 3], replicas).replica.name for ids in first] == places
    counts = Counter(places)
    assert len(counts) == 8
    assert max(counts.values()) < 2 * len(first) / 8
    # Without a replica, only its own requests move.
    left = [one for one in replicas if one.name != "replica 3"]
    moved = [choose(ids, left).replica.name for ids in first]
    assert all(a == b for a, b in zip(places, moved) if a != "replica 3")


def test_a_faster_replica_has_more() -> None:
    slow, fast = ReplicaLoad("slow", step_seconds=0.04), ReplicaLoad("fast", step_seconds=0.01)
    rng = random.Random(2)
    for _ in range(100):
        choose([rng.randrange(1000) for _ in range(PAGE)], [slow, fast]).replica.running += 1
    assert 2.5 < fast.running / slow.running < 6


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 3), st.integers(0, 200))
def test_no_replica_has_more_than_its_share_allows(running: list[int], known: int, seed: int) -> None:
    replicas = loads(len(running))
    for one, count in zip(replicas, running):
        one.running = count
    replicas[seed % len(replicas)].pages.update(list(page_names(TEXT))[:known])
    chosen = choose(TEXT, replicas).replica
    total = sum(running) + 1
    bound = math.ceil(1.25 * total / len(replicas))
    assert chosen.running + 1 <= bound or chosen.running == min(running)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=9), st.integers(0, 99))
def test_the_one_with_the_most_pages_of_those_that_may_have_more(states: list[tuple[int, int]], first: int) -> None:
    replicas, text = loads(len(states)), [first, *TEXT]
    for one, (running, known) in zip(replicas, states):
        one.running = running
        one.pages.update(list(page_names(text))[:known])
    route = choose(text, replicas)
    bound = math.ceil(1.25 * (sum(running for running, _ in states) + 1) / len(states))
    free = [one for one in replicas if one.running < bound]
    assert route.pages == route.replica.has(route.names)
    if free:
        assert route.replica in free
        assert route.pages == max(one.has(route.names) for one in free)
        alike = [one for one in free if one.has(route.names) == route.pages]
        assert choose(text, alike, spare=100.0).replica is route.replica
    else:
        assert route.replica.running == min(one.running for one in replicas)


@given(st.lists(st.integers(0, 1 << 20), max_size=4 * PAGE), st.lists(st.integers(0, 1 << 20), max_size=4 * PAGE))
def test_names_are_those_of_whole_beginnings(one: list[int], other: list[int]) -> None:
    common = next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    pairs = list(zip(page_names(one), page_names(other)))
    assert [a == b for a, b in pairs] == [n < common // PAGE for n in range(len(pairs))]


def test_what_checks_a_constraint_here_is_freed_at_once(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingress compiles a grammar only to refuse invalid grammars early. The replica computes the masks."""
    closed, close = list[Matching](), Matching.close

    def counted(self: Matching) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(Matching, "close", counted)
    opened = open_model(llama_file)

    async def ask() -> None:
        fleet = Fleet(ClusterSecret.drawn())
        try:
            RemoteModel(opened, fleet).request("to see", regex="[a-z]+", max_new_tokens=3)
        finally:
            await fleet.close()
            opened.checkpoint.close()

    asyncio.run(ask())
    assert len(closed) == 1
