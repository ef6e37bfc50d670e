"""Constraint masks are computed outside the engine: only the text whose mask is missing waits.

``Gate`` delays masks until it is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.matchers import matchers_called_by
from support.pages import in_use, lose_pages_between_steps
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.engine.job import SchedulingOptions
from pellucid.engine.task import ReadingTask
from pellucid.errors import DeadlinePassed, InvalidRequest
from pellucid.llm import LLM
from pellucid.sample.grammars import matching
from pellucid.sample.grammars.grammar import Grammar
from pellucid.sample.grammars.matching import MAX_FORCED_TOKENS, Matching
from pellucid.sample.step import RequestContext

PROMPT = "to see that it rains in the east"
SLOW_MASK = r"\{[a-z]{3}[,.;]{30}\}"
FREE: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "seed": 3}
DRAWN: dict[str, Any] = {"regex": SLOW_MASK, "seed": 5, "top_k": 0, "top_p": 1.0, "max_new_tokens": 80}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_llama(tmp_path_factory.mktemp("models") / "tiny", vocabulary=320, context=512)
    write_tokenizer(folder)
    with pellucid.load(folder, threads=1) as made:
        yield made


class Gate:
    """Delays all masks after the first ``free`` masks until it is opened."""

    def __init__(self, free: int) -> None:
        self.free, self.held, self.open = free, threading.Event(), threading.Event()

    def wait(self) -> None:
        self.free -= 1
        if self.free < 0 and not self.open.is_set():
            self.held.set()
            assert self.open.wait(60)


@pytest.fixture(params=[False, True], ids=["quick", "apart"])
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate for all masks. Matchings accept tokens in the engine's thread ("quick") or in another ("apart")."""
    made, begin = Gate(4), Matching.__init__

    def called(name: str, method: Callable[..., Any], *given: Any) -> Any:
        if name == "unsafe_compute_mask_ptr":
            made.wait()
        return method(*given)

    def begun(self: Matching, grammar: Grammar, context: RequestContext) -> None:
        begin(self, replace(grammar, long_runs=request.param), context)

    matchers_called_by(monkeypatch, called)
    monkeypatch.setattr(Matching, "__init__", begun)
    yield made
    made.open.set()


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run work in a thread. Its result or exception is appended to the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def ended(running: tuple[threading.Thread, list[Any]]) -> Any:
    """Wait for work in a thread. Returns its result or raises its exception."""
    thread, results = running
    thread.join(60)
    (found,) = results
    if isinstance(found, BaseException):
        raise found
    return found


def test_others_go_on_while_a_mask_is_computed(llm: LLM, gate: Gate) -> None:
    gate.open.set()
    wanted = llm.generate(PROMPT, **DRAWN)
    alone = llm.generate(PROMPT, **FREE).ids
    gate.free, gate.open = 4, threading.Event()
    slow = in_thread(lambda: llm.generate(PROMPT, **DRAWN))
    assert gate.held.wait(60)
    steps = llm.engine.steps
    assert llm.generate(PROMPT, **FREE).ids == alone, "it ran while the mask was held back"
    assert llm.engine.steps >= steps + 59
    assert not slow[1]
    gate.open.set()
    made = ended(slow)
    assert (made.ids, made.text, made.finish_reason) == (wanted.ids, wanted.text, "stop")


def test_logits_are_the_same_wherever_a_text_has_waited_and_lost_its_pages(llm: LLM, gate: Gate) -> None:
    options = {**DRAWN, "logprobs": 5, "watch": True}
    gate.open.set()
    wanted = llm.generate(PROMPT, **options)
    for free in (1, 4, 7, 9, 10, 12, 15):
        gate.free, gate.open, gate.held = free, threading.Event(), threading.Event()
        slow = in_thread(lambda: llm.generate(PROMPT, **options))
        assert gate.held.wait(60)
        lose_pages_between_steps(llm)
        llm.runner.cache.clear_prefixes()
        gate.open.set()
        made = ended(slow)
        assert made.ids == wanted.ids
        assert made.logprobs.chosen.tolist() == wanted.logprobs.chosen.tolist()


def test_readings_go_on_while_all_texts_wait(llm: LLM, gate: Gate) -> None:
    """Readings run even though their client has used more time than the client of the waiting text."""
    slow = in_thread(lambda: llm.for_client("text").generate(PROMPT, **DRAWN))
    assert gate.held.wait(60)
    reading = ReadingTask(number for number in range(50))
    read = in_thread(lambda: list(llm.engine.run(reading, SchedulingOptions(client="look"))))
    assert ended(read) == list(range(50))
    assert not slow[1]
    gate.open.set()
    assert ended(slow).finish_reason == "stop"


def test_several_texts_and_beams_wait_too(llm: LLM, gate: Gate) -> None:
    gate.open.set()
    wanted = [one.ids for one in llm.samples(PROMPT, 3, **DRAWN)]
    beams = llm.beam_search(PROMPT, num_beams=3, **{**DRAWN, "temperature": 1.0}).texts[0].ids
    for work, result in (
        (lambda: [one.ids for one in llm.samples(PROMPT, 3, **DRAWN)], wanted),
        (lambda: llm.beam_search(PROMPT, num_beams=3, **{**DRAWN, "temperature": 1.0}).texts[0].ids, beams),
    ):
        gate.free, gate.open, gate.held = 12, threading.Event(), threading.Event()
        slow = in_thread(work)
        assert gate.held.wait(60)
        assert len(llm.generate(PROMPT, **FREE).ids) == 60
        assert not slow[1]
        gate.open.set()
        assert ended(slow) == result
    assert in_use(llm) == 0


def test_a_request_ends_while_its_mask_is_computed(llm: LLM, gate: Gate) -> None:
    pieces = llm.start(PROMPT, **DRAWN)
    slow = in_thread(lambda: list(pieces))
    assert gate.held.wait(60)
    llm.engine.between_steps(lambda: None)  # the engine hears messages
    other = in_thread(lambda: llm.generate(PROMPT, **FREE))
    assert len(ended(other).ids) == 60
    gate.free = 2  # a request with slow masks waits for its first masks before it starts: { has one way
    with pytest.raises(DeadlinePassed, match=r"0\.3 s"):
        llm.generate(PROMPT, **DRAWN, deadline=0.3)
    gate.open.set()
    ended(slow)
    assert in_use(llm) == 0


def test_an_abandoned_request_gives_its_pages_back_at_once(llm: LLM, gate: Gate) -> None:
    task = llm.request(PROMPT, **DRAWN)
    task.start()
    assert gate.held.wait(60)
    task.close()
    assert len(llm.generate(PROMPT, **FREE).ids) == 60
    assert in_use(llm) == 0
    gate.open.set()


def test_a_model_can_be_closed_while_a_mask_is_computed(tmp_path: Path, gate: Gate) -> None:
    folder = write_llama(tmp_path / "tiny", vocabulary=320, context=512)
    write_tokenizer(folder)
    with pellucid.load(folder, threads=1) as llm:
        slow = in_thread(lambda: llm.generate(PROMPT, **DRAWN))
        assert gate.held.wait(60)
    with pytest.raises(InvalidRequest, match="closed"):
        ended(slow)


# Limits


def test_a_grammar_that_takes_too_long_ends_its_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(matching, "MAX_SECONDS_PER_TOKEN", 0.0)
    with pytest.raises(InvalidRequest, match=r"grammar took 0\.\d s .* the limit is 0\.\d s: make it less ambig"):
        llm.generate(PROMPT, grammar='start: "a" e\ne: e e | e e e | /[a-z ]/', **{**FREE, "max_new_tokens": 400})
    assert llm.generate(PROMPT, choices=["fine"]).text == "fine"


BOMBS: list[dict[str, Any]] = [
    {"regex": "(a{1000}){1000}"},
    {"regex": "[ab]c{1000000}"},
    {"json_schema": {"type": "string", "pattern": "^(a{1000}){500}$"}},
    {"grammar": 'start: /[ab]/ T30\nT0: "x"\n' + "".join(f"T{n + 1}: T{n} T{n}\n" for n in range(16))},
    {"grammar": "start: e\ne: e e | e e e | /[a-z ]/"},
    {"grammar": 'start: e\ne: e e | e e e | "a" | '},
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: str(bomb)[:40])
def test_no_call_with_the_interpreters_lock_consumes_many_tokens(
    llm: LLM, bomb: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing a mask releases the lock; consuming forced tokens holds it. bench/constraints.py measures the time."""
    forced = list[int]()

    def called(name: str, method: Callable[..., Any], *given: Any) -> Any:
        if name == "try_consume_tokens":
            forced.append(len(given[0]))
        return method(*given)

    matchers_called_by(monkeypatch, called)
    for temperature in (1.0, 30.0):
        try:
            llm.generate(PROMPT, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=60, **bomb)
        except InvalidRequest:
            continue
    assert all(count <= MAX_FORCED_TOKENS for count in forced), "thousands without limits"
