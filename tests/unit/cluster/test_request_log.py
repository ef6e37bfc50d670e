"""Parts that a replica remembers by name: the newest, up to limits on their number and bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pellucid.cluster import request_log, wire
from pellucid.cluster.replica import Replica
from pellucid.cluster.request_log import ReplicaRequest, RequestLog
from pellucid.cluster.secret import ClusterSecret
from pellucid.llm import LLM


def request(name: str, complete: bool = True) -> ReplicaRequest:
    return ReplicaRequest(b"ingress", 1, name, complete=complete)


def text(size: int) -> list[Any]:
    return ["token", 1, b"x" * size]


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
    assert 400 < request_log._size(plain) < 1200
    assert request_log._size([*plain, [1, -0.5, 1, b"x" * 8000, b"y" * 8000]]) > 16_000
    assert request_log._size({0: [3, 4]}) > 100


def test_a_replica_answers_that_it_has_forgotten_a_request(alone: LLM, llama_file: Path) -> None:
    """The ingress then requests the request again, from the beginning."""

    async def work() -> None:
        replica = Replica(alone, ClusterSecret.drawn(), "replica")
        replica._loop = asyncio.get_running_loop()
        replica._log = RequestLog(max_bytes=50_000)
        replica._flush = lambda: None  # type: ignore[method-assign]
        body = {
            "prompt": [5, 6, 7], "options": {"max_new_tokens": 300, "seed": 1, "ignore_eos": True}, "numbers": [0],
            "begun": {}, "read": 3, "edits": [], "probes": [], "watch": [], "priority": 0, "deadline": None,
            "client": "",
        }  # fmt: skip
        replica._act(b"a", ["hello", wire.VERSION, "session a"])
        for number, tokens in enumerate((5, 300)):
            options = {**body["options"], "max_new_tokens": tokens}  # type: ignore[dict-item]
            replica._act(b"a", ["run", number, "generate", f"name {number}", {**body, "options": options}])
        while replica._requests:
            await asyncio.sleep(0.01)
        replica._outbox.clear()
        for number in range(2):
            replica._act(b"b", ["resume", number, f"name {number}"])
        sent = [message for to, message in replica._outbox if to == b"b"]
        assert sent == [["unknown", 0], ["unknown", 1]]

    asyncio.run(work())
