"""Parts that a replica remembers by name: the newest, up to limits on their number and bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pellucid.cluster import known, wire
from pellucid.cluster.known import AskedPart, KnownParts
from pellucid.cluster.replica import Replica
from pellucid.cluster.secret import ClusterSecret
from pellucid.llm import LLM


def part(name: str, whole: bool = True) -> AskedPart:
    return AskedPart(b"ingress", 1, name, whole=whole)


def text(size: int) -> list[Any]:
    return ["token", 1, b"x" * size]


def test_the_oldest_that_have_ended_go_first() -> None:
    parts = KnownParts(most_bytes=4000)
    running, first, second, third = (part(name) for name in ("running", "first", "second", "third"))
    for one in (running, first, second, third):
        parts.add(one)
        parts.keep(one, text(800))
    for one in (second, first):
        one.ended = 1.0
    parts.keep(third, text(800))
    assert [parts.get(one.name) is one for one in (running, first, second, third)] == [
        True,
        False,
        True,
        True,
    ]
    assert first.messages == []
    parts.keep(third, text(800))
    assert [parts.get(one.name) is one for one in (running, second, third)] == [True, False, True]
    parts.keep(third, text(600))  # no ended part is left to forget
    assert [parts.get(one.name) is one for one in (running, third)] == [False, True]
    parts.keep(running, text(100))  # it still runs, but is forgotten
    assert running.messages == []
    parts.keep(third, text(4000))
    assert (len(parts), parts.bytes) == (0, 0)


def test_a_name_has_one_part() -> None:
    parts = KnownParts()
    before, after, resumed = part("a"), part("a"), part("a", whole=False)
    parts.add(before)
    parts.keep(before, text(10))
    parts.add(after)
    assert (parts.get("a"), parts.bytes, before.messages) == (after, 0, [])
    parts.forget(before)  # another part has its name now
    assert parts.get("a") is after
    parts.add(resumed)  # its first messages are on another replica
    assert parts.get("a") is None
    parts.add(part(""))
    assert len(parts) == 0


def test_what_has_ended_is_forgotten_after_its_time() -> None:
    parts = KnownParts(most=3)
    made = [part(str(number)) for number in range(4)]
    for number, one in enumerate(made):
        parts.add(one)
        one.ended = float(number) if number < 3 else None
    assert parts.get("0") is None
    parts.forget_ended(2.0)
    assert [parts.get(one.name) is one for one in made] == [False, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("akef"), st.integers(0, 500)), max_size=60))
def test_the_sum_is_that_of_the_parts(steps: list[tuple[int, str, int]]) -> None:
    parts, made = KnownParts(most=5, most_bytes=3000), {number: part(str(number)) for number in range(10)}
    for number, what, size in steps:
        if what == "a":
            made[number] = part(str(number))
            parts.add(made[number])
        elif what == "k":
            parts.keep(made[number], text(size))
        elif what == "e":
            made[number].ended = 1.0
        else:
            parts.forget(made[number])
        there = [one for one in made.values() if parts.get(one.name) is one]
        assert len(parts) == len(there) <= 5
        assert parts.bytes == sum(one.bytes for one in there) <= 3000
        assert all(not one.messages for one in made.values() if one not in there)


def test_sizes_are_about_what_python_takes() -> None:
    """The size of a token includes its arrays of log-probabilities."""
    plain = ["token", 1, 0, 17, 5, " text", 0.01, None, None, "", 3, 0.5, None, None]
    assert 400 < known._size(plain) < 1200
    assert known._size([*plain, [1, -0.5, 1, b"x" * 8000, b"y" * 8000]]) > 16_000
    assert known._size({0: [3, 4]}) > 100


def test_a_replica_answers_that_it_has_forgotten_a_part(alone: LLM, llama_file: Path) -> None:
    """The ingress then requests the part again, from the beginning."""

    async def work() -> None:
        replica = Replica(alone, ClusterSecret.drawn(), "replica")
        replica._loop = asyncio.get_running_loop()
        replica._known = KnownParts(most_bytes=50_000)
        replica._flush = lambda: None  # type: ignore[method-assign]
        body = {
            "prompt": [5, 6, 7], "options": {"max_new_tokens": 300, "seed": 1, "ignore_eos": True}, "numbers": [0],
            "begun": {}, "edits": [], "watch": [], "priority": 0, "deadline": None, "client": "",
        }  # fmt: skip
        replica._act(b"a", ["hello", wire.VERSION, "session a"])
        for number, tokens in enumerate((5, 300)):
            options = {**body["options"], "max_new_tokens": tokens}  # type: ignore[dict-item]
            replica._act(b"a", ["run", number, "generate", f"name {number}", {**body, "options": options}])
        while replica._parts:
            await asyncio.sleep(0.01)
        replica._outbox.clear()
        for number in range(2):
            replica._act(b"b", ["join", number, f"name {number}"])
        sent = [message for to, message in replica._outbox if to == b"b"]
        assert sent == [["unknown", 0], ["unknown", 1]]

    asyncio.run(work())
