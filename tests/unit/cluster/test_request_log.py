"""Parts that a replica remembers by name: the newest, up to limits on their number and bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.links import messages_changed_by

from pellucid.cluster import replica as replica_module
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.replica import Replica
from pellucid.cluster.replica_link import ReplicaLink
from pellucid.cluster.replica_tasks import ReplicaRequest, RequestLog
from pellucid.cluster.secret import ClusterSecret
from pellucid.llm import LLM
from pellucid.loading import open_model


def request(name: str, complete: bool = True) -> ReplicaRequest:
    return ReplicaRequest(b"ingress", 1, name, complete=complete)


def text(size: int) -> list[Any]:
    return ["token", 1, b"x" * size]


def size(message: list[Any]) -> int:
    """The bytes that a log counts for a message."""
    requests, one = RequestLog(), request("a")
    requests.add(one)
    requests.keep(one, message)
    return requests.bytes


def test_the_oldest_that_have_ended_go_first() -> None:
    requests = RequestLog(max_bytes=4000)
    running, first, second, third = (request(name) for name in ("running", "first", "second", "third"))
    for one in (running, first, second, third):
        requests.add(one)
        requests.keep(one, text(800))
    for one in (second, first):
        one.ended = 1.0
    requests.keep(third, text(800))
    assert [requests.get(one.name) is one for one in (running, first, second, third)] == [True, False, True, True]
    assert first.messages == []
    requests.keep(third, text(800))
    assert [requests.get(one.name) is one for one in (running, second, third)] == [True, False, True]
    requests.keep(third, text(600))  # no ended request is left to forget
    assert [requests.get(one.name) is one for one in (running, third)] == [False, True]
    requests.keep(running, text(100))  # it still runs, but is forgotten
    assert running.messages == []
    requests.keep(third, text(4000))
    assert (len(requests), requests.bytes) == (0, 0)


def test_a_name_has_one_request() -> None:
    requests = RequestLog()
    before, after, resumed = request("a"), request("a"), request("a", complete=False)
    requests.add(before)
    requests.keep(before, text(10))
    requests.add(after)
    assert (requests.get("a"), requests.bytes, before.messages) == (after, 0, [])
    requests.forget(before)  # another request has its name now
    assert requests.get("a") is after
    requests.add(resumed)  # its first messages are on another replica
    assert requests.get("a") is None
    requests.add(request(""))
    assert len(requests) == 0


def test_what_has_ended_is_forgotten_after_its_time() -> None:
    requests = RequestLog(max_requests=3)
    made = [request(str(number)) for number in range(4)]
    for number, one in enumerate(made):
        requests.add(one)
        one.ended = float(number) if number < 3 else None
    assert requests.get("0") is None
    requests.forget_ended(2.0)
    assert [requests.get(one.name) is one for one in made] == [False, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("akef"), st.integers(0, 500)), max_size=60))
def test_the_sum_is_that_of_the_requests(steps: list[tuple[int, str, int]]) -> None:
    requests, made = (
        RequestLog(max_requests=5, max_bytes=3000),
        {number: request(str(number)) for number in range(10)},
    )
    for number, what, size in steps:
        if what == "a":
            made[number] = request(str(number))
            requests.add(made[number])
        elif what == "k":
            requests.keep(made[number], text(size))
        elif what == "e":
            made[number].ended = 1.0
        else:
            requests.forget(made[number])
        there = [one for one in made.values() if requests.get(one.name) is one]
        assert len(requests) == len(there) <= 5
        assert requests.bytes == sum(one.bytes for one in there) <= 3000
        assert all(not one.messages for one in made.values() if one not in there)


def test_sizes_are_about_what_python_takes() -> None:
    """The size of a token includes its arrays of log-probabilities."""
    plain = ["token", 1, 0, 17, 5, " text", 0.01, None, None, "", 3, 0.5, None, None]
    assert 400 < size(plain) < 1200
    assert size([*plain, [1, -0.5, 1, b"x" * 8000, b"y" * 8000]]) > 16_000
    assert size(["end", 1, {0: [3, 4]}]) > size(["end", 1, {}]) + 100


def test_a_request_that_a_replica_has_forgotten_begins_again(
    alone: LLM, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "RequestLog", lambda: RequestLog(max_bytes=50_000))
    opened, kinds = open_model(llama_file), Counter[str]()

    def change(link: ReplicaLink, message: Sequence[Any]) -> Sequence[Any]:
        kinds[message[0]] += 1
        return message

    async def ingress(address: str, resumes: bool) -> list[list[int]]:
        """The ids of two requests of a fleet; the second request is larger than the log."""
        fleet, made = Fleet(secret), list[list[int]]()
        fleet.add(address)
        await fleet.ready(60)
        for tokens in (5, 300):
            group = RemoteModel(opened, fleet).request("a", max_new_tokens=tokens, seed=1, ignore_eos=True)
            group.set_name(f"{tokens} tokens", resumes)
            group.start()
            await group.finished()
            made.append(group.results()[0].ids)
        await fleet.close()
        return made

    async def work() -> None:
        replica = Replica(alone, secret, "replica")
        address = await replica.listen()
        serving = asyncio.ensure_future(replica.serve())
        with messages_changed_by(change):
            first = await ingress(address, False)
            assert not kinds["unknown"]
            assert await ingress(address, True) == first
            assert kinds["unknown"] == 2
        assert kinds["token"] == 2 * 305
        replica.close()
        await serving

    secret = ClusterSecret.drawn()
    asyncio.run(asyncio.wait_for(work(), 120))
    opened.checkpoint.close()
