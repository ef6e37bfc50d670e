"""Every way to begin a request, to wait for it and to read its results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from support.pages import in_use
from support.small_llm import DRAWN, GREEDY, PROMPT

from pellucid.engine.local_request import LocalRequest
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.trace import scale

OPTIONS: list[dict[str, Any]] = [
    GREEDY,
    {**DRAWN, "seed": 3, "logprobs": 1},
    {**GREEDY, "until": lambda text: len(text) > 5},
    {**GREEDY, "stop": ["e"]},
    {**GREEDY, "edits": [scale("blocks.0.residual", 0.5)]},
    {**GREEDY, "watch": True},
]


def started(request: LocalRequest) -> None:
    request.start()
    request.wait()


def waited(request: LocalRequest) -> None:
    request.wait()
    request.wait()


def iterated(request: LocalRequest) -> None:
    assert [output.id for output in request if not output.sequence] == request.ids
    request.wait()


def iterated_in_part(request: LocalRequest) -> None:
    next(iter(request))
    request.wait()


def finished(request: LocalRequest) -> None:
    asyncio.run(request.finished())


def started_and_finished(request: LocalRequest) -> None:
    async def run() -> None:
        request.start()
        await request.finished()
        await request.finished()

    asyncio.run(run())


def streamed(request: LocalRequest) -> None:
    async def run() -> None:
        async with aclosing(request.stream()) as outputs:
            assert [output.id async for output in outputs if not output.sequence] == request.ids

    asyncio.run(run())


WAYS = [started, waited, iterated, iterated_in_part, finished, started_and_finished, streamed]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_all_ways_end_with_the_same_results(
    llm: LLM, options: dict[str, Any], way: Callable[[LocalRequest], None]
) -> None:
    wanted = llm.generate(PROMPT, **options)
    for count in (1, 3):
        request = llm.request(PROMPT, count, **options)
        way(request)
        first, *others = request.results()
        assert (first.ids, first.text, first.finish_reason) == (wanted.ids, wanted.text, wanted.finish_reason)
        assert len(others) == count - 1
        assert all(one.finish_reason for one in others)
    assert in_use(llm) == 0


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_a_result_is_waited_for(llm: LLM, options: dict[str, Any]) -> None:
    wanted = llm.generate(PROMPT, **options)
    request = llm.start(PROMPT, **options)
    assert request.result().ids == wanted.ids
    assert [output.id for output in request] == []  # the iteration has ended
    request = llm.start(PROMPT, **options)
    next(iter(request))
    assert request.result().ids == wanted.ids[:1]  # between tokens: the text so far


@pytest.mark.parametrize("first", [started, iterated, streamed, finished], ids=lambda way: way.__name__)
def test_a_request_runs_once(llm: LLM, first: Callable[[LocalRequest], None]) -> None:
    request = llm.request(PROMPT, **GREEDY)
    first(request)
    for again in (LocalRequest.start, LocalRequest.stream, lambda request: request.start()):
        with pytest.raises(InvalidRequest, match="the request has begun: it runs once"):
            again(request)
    assert request.result().ids == llm.generate(PROMPT, **GREEDY).ids
