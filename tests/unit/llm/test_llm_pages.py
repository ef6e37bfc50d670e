"""Requests share pages of a model's cache or are preempted; threads send requests concurrently."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
from support.pages import in_use
from support.small_llm import CONTEXT, DRAWN, GREEDY, PROMPT

import pellucid
from pellucid.errors import CacheFull, InvalidRequest
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


def test_abandoned_stream_gives_its_pages_back(llm: LLM) -> None:
    wanted = llm.generate(PROMPT, **DRAWN).text
    for taken in (0, 1, 5):
        stream = llm.stream(PROMPT, **DRAWN)
        for _ in range(taken):
            next(stream)
        del stream
        gc.collect()
        assert llm.generate(PROMPT, **DRAWN).text == wanted
        assert in_use(llm) == 0
    assert len(llm.generate([9] * 100, temperature=0).ids) == 28


def leave_two_pages(llm: LLM) -> None:
    """Occupy all but two pages of the cache."""
    llm.runner.cache.kv.allocate(BlockTable(), (llm.runner.cache.kv.free_pages - 2) * PAGE)


def test_what_is_kept_makes_way_for_what_runs(llm: LLM) -> None:
    leave_two_pages(llm)
    wanted = llm.generate([7] * 60, temperature=0, max_new_tokens=20).ids
    run = llm.start([7] * 60, temperature=0, max_new_tokens=20)
    pieces = iter(run)
    next(pieces)
    llm.generate([9] * 30, **GREEDY)
    assert len(list(pieces)) == 19
    assert run.ids == wanted


def test_a_request_that_waits_for_its_reader_makes_way_and_goes_on_as_if_nothing_had_been(llm: LLM) -> None:
    alone = [llm.generate(prompt, **GREEDY).ids for prompt in ([7] * 60, [9] * 100)]
    leave_two_pages(llm)
    run = llm.start([7] * 60, **GREEDY)
    pieces = iter(run)
    next(pieces)
    assert llm.generate([9] * 100, **GREEDY).ids == alone[1]
    assert len(list(pieces)) == 23
    assert run.ids == alone[0]


def test_pages_that_nobody_gives_back_are_an_error_that_says_so(llm: LLM) -> None:
    leave_two_pages(llm)
    llm.runner.cache.kv.allocate(BlockTable(), 1)
    with pytest.raises(CacheFull, match=r"2 more pages.* 1 of 128 are free"):
        llm.generate([9] * 100, **GREEDY)
    assert len(llm.generate([9] * 30, **GREEDY).ids) == 24


def test_rows_that_a_chunk_has_not(llm: LLM) -> None:
    sequence = BlockTable()
    for outputs in (3, -1):
        with pytest.raises(InvalidRequest, match=rf"2 tokens cannot have {outputs} rows"):
            llm.runner.forward([Chunk(sequence, [5, 6], outputs)])
    assert (sequence.length, sequence.blocks) == (0, [])


def test_threads_that_generate_at_once_get_what_they_would_alone(llm: LLM) -> None:
    prompts = ["rain in", "the east", "a stone or"]
    options = {**DRAWN, "max_new_tokens": 16}
    alone = {p: llm.generate(p, **options).ids for p in prompts}
    roomy = pellucid.load(llm.checkpoint.path, threads=2)
    found: dict[str, list[list[int]]] = {p: [] for p in prompts[:2]}

    def work(prompt: str) -> None:
        for _ in range(10):
            found[prompt].append(roomy.generate(prompt, **options).ids)

    workers = [threading.Thread(target=work, args=(p,)) for p in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    roomy.close()
    assert found == {p: [alone[p]] * 10 for p in found}


def test_a_follow_up_begins_where_the_last_request_ended_and_gives_the_same(llm: LLM, folder: Path) -> None:
    first = llm.generate(PROMPT, **DRAWN)
    prompt = llm.tokenizer.encode(PROMPT)
    follow_up = [*prompt, *first.ids, *llm.tokenizer.encode(" or so")]
    cached = llm.generate(follow_up, **DRAWN)
    assert cached.usage.cached_tokens == len(prompt) + len(first.ids) - 1
    again = llm.generate(PROMPT, **DRAWN)
    assert (again.usage.cached_tokens, again.ids) == (len(prompt) - 1, first.ids)
    fresh = pellucid.load(folder, threads=1)
    whole = fresh.generate(follow_up, **DRAWN)
    fresh.close()
    assert (whole.usage.cached_tokens, whole.ids) == (0, cached.ids)


def test_an_abandoned_request_gives_its_pages_back_without_the_garbage_collector(llm: LLM) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(60):
            run = llm.start([7] * 70, **DRAWN)
            next(iter(run))
            del run
            assert in_use(llm) == 0
    finally:
        gc.enable()


def test_many_long_answers_have_room(llm: LLM) -> None:
    made = llm.samples([7] * 60, 16, temperature=5.0, ignore_eos=True, seed=1)
    assert [len(one.ids) for one in made] == [CONTEXT - 60] * 16
    found = llm.beam_search([7] * 60, num_beams=16, ignore_eos=True)
    assert len(found.texts[0].ids) == CONTEXT - 60
