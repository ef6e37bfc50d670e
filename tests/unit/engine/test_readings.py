"""Readings of a model run between the steps of requests. They do not change results or order of the requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterator

import numpy as np
import pytest

import pellucid
from pellucid.engine.task import ReadingTask
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.measure.roofs import profile_turns
from pellucid.testing import random_model

GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("readings") / "llama.gguf"
    random_model("llama", path, layers=2, width=96, heads=4, kv_heads=2, context=512)
    with pellucid.load(path, threads=2) as made:
        yield made


def test_a_text_goes_on_beside_readings_in_a_loop(llm: LLM) -> None:
    """A request generates tokens between the turns of another client's endless reading. Its text is unchanged."""
    alone = llm.generate("to see", max_new_tokens=60, **GREEDY).ids
    turns, over = list[int](), threading.Event()
    made = list[int]()

    def reading() -> Generator[int, None, None]:
        while not over.is_set():
            turns.append(len(made))
            yield 0

    def read() -> None:
        for _ in llm.engine.run(ReadingTask(reading()), llm.for_client("look").scheduling):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    for output in llm.for_client("text").start("to see", max_new_tokens=60, **GREEDY):
        made.append(output.id)
    over.set()
    reader.join()
    assert made == alone
    assert len(turns) > 2


def test_profiles_beside_a_text_change_no_bit(llm: LLM) -> None:
    alone = llm.generate("rain", max_new_tokens=100, logprobs=2, **GREEDY)
    found = list[object]()
    reader = threading.Thread(
        target=lambda: found.extend(llm.engine.run(ReadingTask(profile_turns(llm.runner, 3, 70, 1))))
    )
    reader.start()
    beside = llm.generate("rain", max_new_tokens=100, logprobs=2, **GREEDY)
    reader.join()
    assert beside.ids == alone.ids
    assert beside.logprobs is not None
    assert alone.logprobs is not None
    assert np.array_equal(beside.logprobs.chosen, alone.logprobs.chosen)
    assert found[-1] is not None
    assert all(one is None for one in found[:-1])
    llm.engine.settle()
    llm.runner.cache.clear_prefixes()
    assert llm.runner.cache.kv.free_pages == llm.runner.cache.kv.pages


def test_an_error_of_a_reading_is_its_readers(llm: LLM) -> None:
    def fails() -> Generator[int, None, None]:
        yield 1
        raise InvalidRequest("no more")

    results = llm.engine.run(ReadingTask(fails()))
    assert next(results) == 1
    with pytest.raises(InvalidRequest, match="no more"):
        next(results)
    assert len(llm.generate("a", max_new_tokens=3, **GREEDY).ids) == 3


def test_a_reading_that_nobody_reads_ends(llm: LLM) -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    results = llm.engine.run(ReadingTask(endless()), max_unread=1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert closed.wait(10)
