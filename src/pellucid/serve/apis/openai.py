"""OpenAI's API: models, chat and text completions, embeddings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.engine.request import RequestGroup
from pellucid.llm import LLM
from pellucid.serve.api import Api, ClientCall, answer, event_stream
from pellucid.serve.openai.answer import failure
from pellucid.serve.openai.asked import Streamed
from pellucid.serve.openai.body import Body
from pellucid.serve.openai.chat import ChatRequest
from pellucid.serve.openai.completions import CompletionRequest
from pellucid.serve.openai.embeddings import EmbeddingRequest


def _generates(read: Callable[[Body, LLM], Streamed]) -> Callable[[ClientCall], Awaitable[Response]]:
    async def run(call: ClientCall) -> Response:
        body = Body(await call.json())
        name, streams, with_usage = body.model(), body.flag("stream"), body.stream_usage()
        async with AsyncExitStack() as stack:
            llm = await stack.enter_async_context(call.models.use(name))

            def prepared() -> tuple[Streamed, list[RequestGroup]]:
                asked = read(body, llm)
                return asked, asked.groups(llm)

            asked, groups = await run_in_threadpool(prepared)
            if streams:
                kept = stack.pop_all()

                async def events() -> AsyncGenerator[dict[str, Any], None]:
                    async with kept:
                        async for event in asked.stream(groups, llm, name, call.number, with_usage):
                            yield event

                return await event_stream(events(), failure)
            await call.unless_gone(_finished(groups))
            return answer(await run_in_threadpool(asked.answer, groups, llm, name, call.number))

    return run


async def _finished(groups: Sequence[RequestGroup]) -> None:
    """Start all groups and wait for their ends."""
    try:
        for group in groups:
            group.start()
        for group in groups:
            await group.finished()
    finally:
        for group in groups:
            group.close()


async def _embeddings(call: ClientCall) -> Response:
    body = Body(await call.json())
    name = body.model()
    async with call.models.use(name) as llm:

        def run() -> dict[str, Any]:
            return EmbeddingRequest.of(body, llm).answer([], llm, name, call.number)

        return answer(await run_in_threadpool(run))


def _model(call: ClientCall, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": call.models.created, "owned_by": "pellucid"}


async def _models(call: ClientCall) -> Response:
    return answer({"object": "list", "data": [_model(call, name) for name in call.models.names]})


async def _one_model(call: ClientCall) -> Response:
    return answer(_model(call, call.models.known(call.request.path_params["name"])))


OPENAI = Api(
    "openai",
    {
        "GET /v1/models": _models,
        "GET /v1/models/{name:path}": _one_model,
        "POST /v1/chat/completions": _generates(ChatRequest.of),
        "POST /v1/completions": _generates(CompletionRequest.of),
        "POST /v1/embeddings": _embeddings,
    },
    failure,
)
