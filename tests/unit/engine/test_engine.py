"""The engine: requests run together with the results of a run alone, and a failed request ends no other request."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from support.pages import in_use, lose_pages
from support.processes import environment, python

import pellucid
from pellucid import pipeline
from pellucid.engine.engine import Engine
from pellucid.engine.job import MAX_UNREAD, Job, SchedulingOptions
from pellucid.engine.scheduler import Scheduler
from pellucid.engine.speculation import MAX_DRAFT_TOKENS, LookupGain
from pellucid.engine.tasks.beam_search import BeamSearchTask
from pellucid.engine.tasks.scoring import ScoringTask
from pellucid.errors import DeadlinePassed, InvalidRequest, KernelError, QueueFull
from pellucid.llm import LLM
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.beams import BeamOptions, BeamSearch
from pellucid.sample.options import Options
from pellucid.sample.steps.cuts import Temperature
from pellucid.testing import random_model

PROMPTS = [[number + 3] * (5 + 11 * number) for number in range(9)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 30, "temperature": 0.9, "ignore_eos": True}
NAMES = ["llama", "gemma3", "qwen3_next", "olmoe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engine")
    for name in NAMES:
        random_model(name, made / name, vocabulary=320, context=2048, layers=4)
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder / "llama", threads=2) as made:
        yield made


def in_threads(work: Any, count: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("name", NAMES)
def test_together_each_gets_what_it_gets_alone(folder: Path, name: str) -> None:
    with pellucid.load(folder / name, threads=2) as llm:
        alone = [llm.generate(prompt, seed=7, **OPTIONS).ids for prompt in PROMPTS]
        llm.runner.cache.clear_prefixes()
        together: dict[int, list[int]] = {}

        def work(number: int) -> None:
            together[number] = llm.generate(PROMPTS[number], seed=7, **OPTIONS).ids

        in_threads(work, len(PROMPTS))
        assert [together[number] for number in range(len(PROMPTS))] == alone
        assert in_use(llm) == 0


def test_requests_share_steps(llm: LLM) -> None:
    steps = list[int]()
    forward = llm.runner.forward_all

    def counted(chunks: Any) -> Any:
        steps.append(len(chunks))
        return forward(chunks)

    llm.runner.forward_all = counted  # type: ignore[method-assign]
    try:
        llm.generate(PROMPTS[:8], **OPTIONS)
    finally:
        del llm.runner.forward_all  # type: ignore[method-assign]
    assert max(steps) >= 4
    assert sum(steps) > len(steps) * 2


@pytest.mark.parametrize("name", NAMES)
def test_with_too_few_pages_all_come_to_their_end(folder: Path, name: str) -> None:
    """Requests are preempted and run prefill again: the bits do not change."""
    with pellucid.load(folder / name, threads=2) as llm:
        options = {**OPTIONS, "max_new_tokens": 90}
        alone = [llm.generate(prompt, seed=3, **options).ids for prompt in PROMPTS]
        llm.runner.cache.clear_prefixes()
        for pool, group in zip(llm.runner.cache.kv.pools, llm.runner.cache.kv.groups):
            for _ in range(pool.free - (8 if group.recurrent else 9)):
                pool.take()
        together: dict[int, list[int]] = {}

        def work(number: int) -> None:
            together[number] = llm.generate(PROMPTS[number], seed=3, **options).ids

        in_threads(work, len(PROMPTS))
        assert [together[number] for number in range(len(PROMPTS))] == alone


def test_an_error_ends_its_own_request_only(llm: LLM) -> None:
    alone = llm.generate(PROMPTS[3], seed=1, **OPTIONS).ids
    found: dict[int, Any] = {}

    def fails(text: str) -> bool:
        if len(text) > 3:
            raise ZeroDivisionError("mine")
        return False

    def work(number: int) -> None:
        try:
            until = fails if number % 2 else None
            found[number] = llm.generate(PROMPTS[3], seed=1, until=until, **OPTIONS).ids
        except ZeroDivisionError as error:
            found[number] = str(error)

    in_threads(work, 6)
    assert [found[number] for number in range(6)] == [alone, "mine"] * 3
    assert in_use(llm) == 0


def test_an_error_ends_no_request_of_another_client(llm: LLM) -> None:
    """A request fails in the engine's thread, in a step with requests of two other clients."""
    alone = llm.generate(PROMPTS[3], seed=1, **OPTIONS).ids
    failing = llm.for_client("c").request(PROMPTS[4], **OPTIONS)

    def fails(found: Any) -> None:
        raise ZeroDivisionError("mine")

    others = [llm.for_client(name).request(PROMPTS[3], seed=1, **OPTIONS) for name in "ab"]
    for other in others:
        other.start()
    failing.start(fails)
    with pytest.raises(ZeroDivisionError, match="mine"):
        failing.wait()
    for other in others:
        other.wait()
    assert [other.result().ids for other in others] == [alone, alone]
    assert in_use(llm) == 0


def test_a_reader_that_waits_does_not_let_its_request_run_away(llm: LLM) -> None:
    before = llm.engine.steps
    run = llm.start(PROMPTS[0], seed=5, **{**OPTIONS, "max_new_tokens": 300})
    outputs = iter(run)
    next(outputs)
    llm.engine.settle()
    assert MAX_UNREAD / (1 + MAX_DRAFT_TOKENS) <= llm.engine.steps - before <= MAX_UNREAD + 2
    assert len(llm.generate(PROMPTS[1], **OPTIONS).ids) == 30, "others go on"
    assert len(list(outputs)) == 299
    assert run.ids == llm.generate(PROMPTS[0], seed=5, **{**OPTIONS, "max_new_tokens": 300}).ids


def test_closing_a_request_frees_its_pages_within_a_step(llm: LLM) -> None:
    for count in (0, 1, 20):
        outputs = iter(llm.start([9] * 500, **{**OPTIONS, "max_new_tokens": 1000}))
        for _ in range(count):
            next(outputs)
        outputs.close()  # type: ignore[attr-defined]
        assert in_use(llm) == 0


def test_closing_the_outputs_of_a_request_that_is_kept_frees_its_pages(llm: LLM) -> None:
    request = llm.start([9] * 500, **{**OPTIONS, "max_new_tokens": 1000})
    outputs = iter(request)
    next(outputs)
    outputs.close()  # type: ignore[attr-defined]
    assert in_use(llm) == 0
    assert len(request.ids) == 1


def test_dropping_a_request_frees_its_pages_too(llm: LLM) -> None:
    outputs = iter(llm.start([9] * 500, **OPTIONS))
    next(outputs)
    del outputs
    gc.collect()
    assert in_use(llm) == 0
    assert llm.engine.running == llm.engine.waiting == 0


def test_closing_the_model_ends_what_runs(folder: Path) -> None:
    llm = pellucid.load(folder / "llama", threads=2)
    outputs = iter(llm.start(PROMPTS[0], **{**OPTIONS, "max_new_tokens": 1500}))
    next(outputs)
    llm.close()
    with pytest.raises(InvalidRequest, match="closed"):
        for _ in outputs:
            pass
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate(PROMPTS[0])


def test_closing_waits_for_no_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.engine.engine.IDLE_SECONDS", 3600.0)
    llm = pellucid.load(folder / "llama", threads=2)
    llm.generate(PROMPTS[0], **OPTIONS)
    closing = threading.Thread(target=llm.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()


def test_there_is_no_thread_without_work(llm: LLM) -> None:
    llm.generate(PROMPTS[0], **OPTIONS)
    end = time.perf_counter() + 5
    while any(thread.name == "pellucid-engine" for thread in threading.enumerate()):
        assert time.perf_counter() < end
        time.sleep(0.01)


def test_a_conversation_and_scores_and_beams_at_once(llm: LLM) -> None:
    text = "to see that it rains"
    wanted = (
        llm.generate(PROMPTS[2], seed=2, **OPTIONS).ids,
        llm.score(text).total,
        llm.beam_search(PROMPTS[1], num_beams=3, max_new_tokens=9).texts[0].ids,
        [one.ids for one in llm.samples(PROMPTS[4], 3, seed=2, **OPTIONS)],
    )
    llm.runner.cache.clear_prefixes()
    found: dict[int, Any] = {}
    work = (
        lambda: llm.generate(PROMPTS[2], seed=2, **OPTIONS).ids,
        lambda: llm.score(text).total,
        lambda: llm.beam_search(PROMPTS[1], num_beams=3, max_new_tokens=9).texts[0].ids,
        lambda: [one.ids for one in llm.samples(PROMPTS[4], 3, seed=2, **OPTIONS)],
    )
    for _ in range(5):
        in_threads(lambda number: found.__setitem__(number, work[number]()), 4)
        assert tuple(found[number] for number in range(4)) == wanted
    assert in_use(llm) == 0


def test_sentences_from_several_threads() -> None:
    with pellucid.load("minilm", threads=2) as llm:
        texts = ["a stone", "rain in the east " * 20, "to see that it rains", "one"] * 8
        wanted = llm.embed(texts)
        found: dict[int, Any] = {}
        in_threads(lambda number: found.__setitem__(number, llm.embed(texts)), 3)
        assert all((found[number] == wanted).all() for number in range(3))


def test_log_probabilities_of_a_prompt_are_those_that_it_has_alone(llm: LLM) -> None:
    wanted = llm.generate(PROMPTS[8], prompt_logprobs=2, seed=1, **OPTIONS).prompt_logprobs
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = llm.generate(PROMPTS[8], prompt_logprobs=2, seed=1, **OPTIONS).prompt_logprobs

    in_threads(work, 3)
    assert wanted is not None
    assert all((found[number].chosen == wanted.chosen).all() for number in range(3))


def test_a_list_of_prompts_is_each_of_them(llm: LLM) -> None:
    texts = ["to see", "that it rains", "a"]
    made = llm.generate(texts, seed=4, **OPTIONS)
    assert [one.text for one in made] == [llm.generate(text, seed=4, **OPTIONS).text for text in texts]
    made = llm.generate(PROMPTS, seed=4, **OPTIONS)
    assert [one.ids for one in made] == [llm.generate(ids, seed=4, **OPTIONS).ids for ids in PROMPTS]
    assert [len(one.ids) for one in llm.generate(["one"], max_new_tokens=3, ignore_eos=True)] == [3]
    with pytest.raises(InvalidRequest, match="at least 1 character"):
        llm.generate(["one", ""], **OPTIONS)
    assert in_use(llm) == 0


def test_more_requests_than_a_step_has_room_for(llm: LLM) -> None:
    prompts = [[number + 2, 7, number + 5] for number in range(150)]
    made = llm.generate(prompts, temperature=0, max_new_tokens=12, ignore_eos=True)
    for number in (0, 63, 64, 149):
        alone = llm.generate(prompts[number], temperature=0, max_new_tokens=12, ignore_eos=True)
        assert made[number].ids == alone.ids


def test_an_event_loop_runs_requests_together(llm: LLM) -> None:
    wanted = [llm.generate(prompt, seed=6, **OPTIONS) for prompt in PROMPTS]

    async def streamed(number: int) -> str:
        return "".join([text async for text in llm.astream(PROMPTS[number], seed=6, **OPTIONS)])

    async def main() -> tuple[list[str], list[Any]]:
        texts = asyncio.gather(*(streamed(number) for number in range(len(PROMPTS))))
        whole = asyncio.gather(*(llm.agenerate(prompt, seed=6, **OPTIONS) for prompt in PROMPTS))
        return list(await texts), list(await whole)

    texts, whole = asyncio.run(main())
    assert texts == [one.text for one in wanted]
    assert [one.ids for one in whole] == [one.ids for one in wanted]
    assert in_use(llm) == 0


def test_a_task_of_an_event_loop_that_is_cancelled_frees_its_pages(llm: LLM) -> None:
    async def main() -> None:
        long = asyncio.create_task(llm.agenerate([9] * 300, **{**OPTIONS, "max_new_tokens": 1500}))
        stream = llm.astream([8] * 300, **{**OPTIONS, "max_new_tokens": 1500})
        async for _ in stream:
            break
        await stream.aclose()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long

    asyncio.run(main())
    assert in_use(llm) == 0


def test_an_error_in_an_event_loop_is_raised_there(llm: LLM) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await llm.agenerate(PROMPTS[0], until=lambda text: bool(1 // 0), **OPTIONS)

    asyncio.run(main())
    assert in_use(llm) == 0


def test_a_slow_function_of_one_request_stalls_no_other(llm: LLM) -> None:
    """The function runs in the thread that reads the request, and only this request waits for it."""
    greedy = {**OPTIONS, "temperature": 0, "max_new_tokens": 200}
    done, main = threading.Event(), list[str]()

    def slow(text: str) -> bool:
        main.append(threading.current_thread().name)
        return not done.wait(20)

    waiting = threading.Thread(target=llm.generate, args=(PROMPTS[0],), kwargs={**greedy, "until": slow}, name="mine")
    waiting.start()
    while not main:
        time.sleep(0.001)
    assert len(llm.generate(PROMPTS[1], **greedy).ids) == 200
    assert len(main) == 1
    done.set()
    waiting.join()
    assert set(main) == {"mine"}
    assert len(main) == 200


def test_the_function_sees_the_text_with_what_is_held_back_and_ends_it(llm: LLM) -> None:
    greedy = {**OPTIONS, "temperature": 0, "max_new_tokens": 30}
    whole = llm.generate(PROMPTS[2], **greedy).text
    stop = whole[4:7] + "\x00"  # its beginning is in the text, but never all of it
    seen = list[str]()

    def until(text: str) -> bool:
        seen.append(text)
        return len(text) >= 6

    made = llm.generate(PROMPTS[2], stop=stop, until=until, **greedy)
    assert made.text == seen[-1] == whole[: len(seen[-1])]
    assert (made.finish_reason, made.stop_reason) == ("until", None)
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)
    several = llm.samples(PROMPTS[2], 3, until=lambda text: len(text) >= 3, **{**greedy, "temperature": 1.0})
    assert {one.finish_reason for one in several} <= {"until", "length"}
    assert in_use(llm) == 0


def test_a_deadline_counts_the_time_of_waiting_and_of_running(llm: LLM) -> None:
    with pytest.raises(DeadlinePassed, match=r"within 0.01 s"):
        llm.generate(PROMPTS[0], deadline=0.01, **{**OPTIONS, "max_new_tokens": 1900})
    paused = iter(llm.start(PROMPTS[0], deadline=0.05, **{**OPTIONS, "max_new_tokens": 1900}))
    next(paused)
    time.sleep(0.1)
    with pytest.raises(DeadlinePassed):
        list(paused)
    assert len(llm.generate(PROMPTS[0], deadline=60, priority=3, **OPTIONS).ids) == 30
    assert isinstance(DeadlinePassed("x"), TimeoutError)
    assert in_use(llm) == 0
    assert llm.engine.waiting == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": 1.5}, "priority=1.5: must be a whole number from -100 to 100"),
        ({"priority": 101}, "priority=101"),
        ({"deadline": 0}, "deadline=0: must be a number above 0"),
        ({"deadline": "soon"}, "deadline='soon'"),
    ],
)
def test_admissions_that_cannot_be(llm: LLM, options: dict[str, Any], message: str) -> None:
    for call in (llm.generate, llm.start, lambda prompt, **more: llm.samples(prompt, 2, **more)):
        with pytest.raises(InvalidRequest) as caught:
            call(PROMPTS[0], **options)
        assert message in str(caught.value)


def test_a_client_is_a_text() -> None:
    """A client name must be a string: the fair shares refuse a list from another machine."""
    with pytest.raises(InvalidRequest, match="must be a text"):
        SchedulingOptions(client=["a"])  # type: ignore[arg-type]


class Waits:
    """A task that blocks the engine's thread until it is released."""

    def __init__(self, llm: LLM, go: threading.Event, order: list[str], name: str) -> None:
        self.llm, self.go, self.order, self.name, self.done = llm, go, order, name, False

    def begin(self, waited: float) -> None:
        pass

    def runnable(self) -> list[CachedSequence]:
        return [] if self.done else [self.text]

    sequences = runnable

    @cached_property
    def text(self) -> CachedSequence:
        return CachedSequence([5] * 200)

    def process(self, sequence: CachedSequence, outputs: Any, seconds: float) -> Iterator[str]:
        self.go.wait(20)
        self.done = True
        self.order.append(self.name)
        yield self.name

    def close(self) -> None:
        self.llm.runner.cache.release(self.text.table)


def test_a_queue_has_an_end_and_an_order(llm: LLM) -> None:
    engine, go, order = Engine(llm.runner, pipeline.step), threading.Event(), list[str]()
    engine.limit_queue(3)
    first = engine.submit(Waits(llm, go, order, "first"))
    while engine.waiting:
        time.sleep(0.001)
    others = [
        engine.submit(Waits(llm, go, order, name), SchedulingOptions(priority))
        for name, priority in (("low", -1), ("usual", 0), ("high", 1))
    ]
    with pytest.raises(QueueFull, match=r"the queue is full \(3\)"):
        engine.submit(Waits(llm, go, order, "one too many"))
    go.set()
    assert list(first) == ["first"]
    assert [list(run) for run in others] == [["low"], ["usual"], ["high"]]
    assert order == ["first", "high", "usual", "low"]
    assert engine.waiting == 0
    engine.close()
    assert in_use(llm) == 0


def test_a_refused_task_can_be_submitted_again(llm: LLM) -> None:
    """The remains of a refused call, such as its traceback, do not touch the task that runs later."""
    engine, go = Engine(llm.runner, pipeline.step), threading.Event()
    engine.limit_queue(1)
    first = engine.submit(Waits(llm, go, [], "first"))
    while engine.waiting:
        time.sleep(0.001)
    queued, task = engine.submit(Waits(llm, go, [], "queued")), Waits(llm, go, [], "again")
    try:
        engine.submit(task)
    except QueueFull:
        engine.limit_queue(None)
        again = engine.submit(task)
        assert engine.running == 1
        assert engine.waiting == 2
        go.set()
    assert [list(results) for results in (first, queued, again)] == [["first"], ["queued"], ["again"]]
    assert (engine.running, engine.waiting) == (0, 0)
    engine.close()


def test_an_error_before_the_first_step_ends_this_request_alone(llm: LLM) -> None:
    alone = llm.generate(PROMPTS[1], seed=1, **OPTIONS).ids
    begun = list[int]()

    def fails() -> None:
        begun.append(1)
        raise ZeroDivisionError("mine")

    failing, other = llm.request(PROMPTS[0], seed=1, **OPTIONS), llm.request(PROMPTS[1], seed=1, **OPTIONS)
    failing.start(on_begin=fails)
    other.start()
    with pytest.raises(ZeroDivisionError, match="mine"):
        failing.wait()
    other.wait()
    assert (other.result().ids, begun) == (alone, [1])
    assert in_use(llm) == 0


def test_a_task_of_several_sequences_that_cannot_prepare_ends_alone(llm: LLM) -> None:
    class Fails(Waits):
        def begin(self, waited: float) -> None:
            raise ZeroDivisionError("mine")

        def runnable(self) -> list[CachedSequence]:
            return [] if self.done else [self.text, self.other]

        sequences = runnable

        @cached_property
        def other(self) -> CachedSequence:
            return CachedSequence([6] * 100)

        def close(self) -> None:
            self.llm.runner.cache.release(self.text.table, self.other.table)

    alone = llm.generate(PROMPTS[1], seed=1, **OPTIONS).ids
    other = llm.request(PROMPTS[1], seed=1, **OPTIONS)
    other.start()
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(llm.engine.submit(Fails(llm, threading.Event(), [], "fails")))
    other.wait()
    assert other.result().ids == alone
    assert in_use(llm) == 0


def test_a_task_prepares_once(llm: LLM) -> None:
    begun = list[int]()
    request = llm.request([9] * 300, seed=1, **OPTIONS)
    request.start(on_begin=lambda: begun.append(1))
    for _ in range(4):
        lose_pages(llm)
    request.wait()
    assert begun == [1]


def test_a_stream_is_cancelled_by_its_request(llm: LLM) -> None:
    async def cancelled() -> int:
        request = llm.request(PROMPTS[0], **{**OPTIONS, "max_new_tokens": 1000})
        count = 0
        async for _ in request.stream():
            count += 1
            if count == 3:
                request.close()
        return count

    assert asyncio.run(cancelled()) < 200
    llm.engine.settle()
    assert in_use(llm) == 0


def test_a_bug_of_the_engine_leaves_no_reader_waiting(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler) -> Any:
        raise AssertionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "schedule", broken)
        with pytest.raises(AssertionError, match="a bug"):
            llm.generate(PROMPTS[0], **OPTIONS)
    assert len(llm.generate(PROMPTS[0], **OPTIONS).ids) == 30


@pytest.mark.parametrize("name", NAMES)
def test_beams_that_lose_their_pages_read_their_texts_again(folder: Path, name: str) -> None:
    with pellucid.load(folder / name, threads=2) as llm:
        prompt, options = [9] * 500, {"num_beams": 3, "max_new_tokens": 40}
        wanted = llm.beam_search(prompt, **options)
        search = BeamSearch(
            BeamOptions(num_beams=3),
            Options().chain().without_drawing().start(llm.tokenizer, prompt, llm.tokenizer.eos_ids),
            llm.tokenizer.eos_ids,
            40,
        )
        task = BeamSearchTask(llm.engine.cache, prompt, search)
        steps = llm.engine.run(task, max_unread=2)
        for number, _ in enumerate(steps):
            if number in (3, 11):
                lose_pages(llm)
        assert search.results()[0].ids == wanted.texts[0].ids
        assert in_use(llm) == 0


def test_samples_that_lose_their_pages_share_them_again(llm: LLM) -> None:
    prompt = [5, 6, 7, 8] * 160
    wanted = [one.ids for one in llm.samples(prompt, 6, seed=1, **{**OPTIONS, "max_new_tokens": 60})]
    group = llm.request(prompt, 6, **{**OPTIONS, "max_new_tokens": 60}, seed=1)
    outputs = iter(group)
    for _ in range(30):
        next(outputs)
    lose_pages(llm)
    for _ in range(60):
        next(outputs)
    used = llm.runner.cache.kv.pages - llm.runner.cache.kv.free_pages
    for _ in outputs:
        pass
    assert [one.ids for one in group.results()] == wanted
    assert used < 30, "the prompt has ten pages, each text another one or two"
    assert in_use(llm) == 0


def test_a_step_of_the_chain_that_asks_its_own_model_is_refused(llm: LLM) -> None:
    class Asks(Temperature):
        def apply(self, candidates: Any, history: Any) -> Any:
            llm.score([3, 4, 5])

    with pytest.raises(InvalidRequest, match="would wait forever"):
        llm.generate(PROMPTS[0], samplers=[Asks()], max_new_tokens=3)
    assert len(llm.generate(PROMPTS[0], **OPTIONS).ids) == 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_during_a_step_does_not_hang(llm: LLM) -> None:
    running = threading.Thread(target=llm.generate, args=(PROMPTS[0],), kwargs={**OPTIONS, "max_new_tokens": 1500})
    running.start()
    for _ in range(6):
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                llm.generate(PROMPTS[1])
            except InvalidRequest as error:
                llm.engine.close()
                llm.runner.close()
                code = 0 if "before a fork" in str(error) else 2
            finally:
                os._exit(code)
        end = time.monotonic() + 20
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, 9)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            time.sleep(0.01)
    running.join()


def test_until_ends_a_text_within_a_step_whatever_was_read_ahead(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LookupGain, "length", lambda self, costs: len(costs) - 1)
    steps = list[int]()
    forward = llm.runner.forward_all

    def counted(chunks: Any) -> Any:
        steps.append(1)
        return forward(chunks)

    monkeypatch.setattr(llm.runner, "forward_all", counted)
    for length in range(12, 24):
        made = llm.generate(
            [7] * 40,
            temperature=0,
            max_new_tokens=400,
            ignore_eos=True,
            until=lambda text: len(text) >= length,  # noqa: B023
        )
        assert made.finish_reason == "until"
    assert len(steps) < 12 * 30
    assert in_use(llm) == 0


def test_texts_that_a_function_has_ended_give_their_pages_back(llm: LLM) -> None:
    seen = list[str]()

    def until(text: str) -> bool:
        seen.append(text)
        return len(seen) == 8  # for one of the two texts

    options = {**OPTIONS, "max_new_tokens": 200, "seed": 2}
    group = llm.request([5] * 200, 3, **options, until=until)
    outputs = iter(group)
    while sum(one.ended for one in group.outputs) == 0:
        next(outputs)
    for _ in range(9):
        next(outputs)
    llm.engine.settle()
    assert llm.engine.pages_in_use == 3 + 2, "three pages that all share, and a page of each text that goes on"
    del outputs, group
    gc.collect()
    assert in_use(llm) == 0


class Nothing(Waits):
    """A task that never ends and has no tokens to run."""

    def runnable(self) -> list[CachedSequence]:
        return []

    sequences = runnable

    def close(self) -> None:
        raise OSError("mine")


def test_tasks_that_are_wrong_end_with_an_error(llm: LLM) -> None:
    go, order = threading.Event(), list[str]()
    with pytest.raises(KernelError, match="no tokens to compute"):
        list(llm.engine.submit(Nothing(llm, go, order, "x")))
    busy, twice = llm.engine.submit(Waits(llm, go, order, "busy")), Waits(llm, go, order, "twice")
    while llm.engine.waiting:
        time.sleep(0.001)
    runs = [llm.engine.submit(twice), llm.engine.submit(twice)]
    go.set()
    assert list(busy) == ["busy"]
    assert list(runs[0]) == ["twice"]
    with pytest.raises(InvalidRequest, match="already running"):
        list(runs[1])
    assert list(llm.engine.run(ScoringTask(llm.engine.cache, [5], 1))) == []
    assert len(llm.generate(PROMPTS[0], **OPTIONS).ids) == 30
    assert llm.engine.waiting == 0
    assert in_use(llm) == 0


def jobs() -> set[int]:
    """The jobs that something still refers to, such as a message to an engine."""
    gc.collect()
    return {id(one) for one in gc.get_objects() if isinstance(one, Job)}


def test_nothing_is_left_of_a_request_that_has_ended(llm: LLM) -> None:
    before = jobs()
    outputs = iter(llm.start(PROMPTS[0], **{**OPTIONS, "max_new_tokens": 3}))
    next(outputs)
    llm.engine.settle()
    end = time.monotonic() + 10
    while any(thread.name == "pellucid-engine" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.001)
    del outputs
    assert jobs() <= before
    with pytest.raises(ZeroDivisionError) as caught:
        llm.generate(PROMPTS[0], until=lambda text: bool(1 // 0), **OPTIONS)
    assert caught.value.__context__ is None


def test_a_result_keeps_its_own_logits_only(llm: LLM) -> None:
    kept: dict[int, Any] = {}
    in_threads(lambda number: kept.__setitem__(number, next(iter(llm.start(PROMPTS[number], **OPTIONS)))), 6)
    for output in kept.values():
        raw = output.draw.logits.raw
        base = raw if raw.base is None else raw.base
        assert base.nbytes <= 2 * raw.nbytes


FIRST = """
import pickle, sys
from types import SimpleNamespace
import pellucid
from pellucid.engine import programs
from pellucid.kernels.core import background
from pellucid.kernels.core.library import Library
from pellucid.sample import candidates

asked, used, load = [], set(), Library.load

def loaded(self, keys, progress=None):
    used.update(keys := list(keys))
    return load(self, keys, progress)

programs.shared = lambda: SimpleNamespace(is_cached=lambda keys: False)
background.compile_in_parallel = lambda keys, *_: asked.extend(keys)
Library.load = loaded
with pellucid.load(sys.argv[1]) as llm:
    llm.generate([1, 2, 3], max_new_tokens=2, seed=1)
assert {key for key in used if not key.name.startswith("text.")} <= set(asked)
assert {candidates.TOP, candidates.SUMS} <= used
assert pickle.loads(pickle.dumps(asked)) == asked, "they go to other processes"
"""


def test_what_a_first_answer_needs_is_compiled_together(tmp_path: Path) -> None:
    path = random_model("llama", tmp_path / "llama.gguf", vocabulary=320, form="Q8_0")
    done = subprocess.run(python(FIRST, str(path)), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
