"""The rooms (work buffers) of a compiled tokenizer: bounded memory, unchanged ids."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from pellucid.runtime.processors import processors
from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.compiled import texts
from pellucid.tokenize.compiled.texts import Room, Rooms


def nbytes(room: Room) -> int:
    return room.memory.nbytes + room.long_memory.nbytes


def test_a_room_for_short_texts_is_small() -> None:
    room = Room()
    for _ in range(1000):
        room.grow(50)
    assert nbytes(room) < 1 << 20


def test_a_room_stays_small_however_long_short_texts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(texts.time, "monotonic", lambda: now)
    room = Room()
    for _ in range(20_000):
        now += 0.1
        room.grow(4000)
    assert nbytes(room) < 1 << 20


def test_a_room_grows_with_its_text_to_a_limit() -> None:
    room, sizes = Room(), list[int]()
    for _ in range(2000):
        room.grow(20_000)
        sizes.append(nbytes(room))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(texts.ENTRIES)
    assert sizes[-1] < 40 << 20
    assert all(two <= 20 * one for one, two in pairwise(sizes))


def test_a_room_for_each_core_is_kept() -> None:
    rooms = Rooms()
    taken = [rooms.take() for _ in range(40)]
    assert len({id(one) for one in taken}) == 40, "no two threads share a room"
    for one in taken:
        rooms.give_back(one)
    assert len(rooms._free) <= processors().usable


def test_a_room_that_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms, now = Rooms(), 100.0
    monkeypatch.setattr(texts.time, "monotonic", lambda: now)
    first, second = rooms.take(), rooms.take()
    rooms.give_back(first)
    rooms.give_back(second)
    now += texts.UNUSED + 1
    assert rooms.take() is second, "the room that was used last is warm"
    rooms.give_back(second)
    assert list(rooms._free) == [second]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("smollm2")


@pytest.mark.model
@pytest.mark.slow
def test_ids_do_not_depend_on_the_size_of_the_caches(tokenizer: Tokenizer) -> None:
    """The caches grow while the same texts are encoded, alone and in many threads."""
    drawn = random.Random(7)
    words = ["".join(drawn.choices("abcdefghij éß日", k=drawn.randint(1, 40))) for _ in range(2000)]
    asked = [" ".join(drawn.choices(words, k=3000)) for _ in range(30)]
    wanted = [tokenizer.encode(text) for text in asked]
    for _ in range(3):
        assert [tokenizer.encode(text) for text in asked] == wanted
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(tokenizer.encode, asked * 3)) == wanted * 3
