"""OpenAI's API: models, chat and text completions, embeddings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.llm import LLM
from pellucid.serve.api import DATA, Api, ClientCall, answer
from pellucid.serve.body import Body
from pellucid.serve.generate import Streaming, generated
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.chat import ChatRequest
from pellucid.serve.openai.completions import CompletionRequest
from pellucid.serve.openai.embeddings import EmbeddingRequest
from pellucid.serve.openai.fields import OPENAI_BODY


def _generates(read: Callable[[Body, LLM], Streaming]) -> Callable[[ClientCall], Awaitable[Response]]:
    async def run(call: ClientCall) -> Response:
        body = Body(await call.json(), OPENAI_BODY)
        name, streams = body.model(), body.flag("stream")
        return await generated(call, name, lambda llm: read(body, llm), DATA if streams else None)

    return run


async def _embeddings(call: ClientCall) -> Response:
    body = Body(await call.json(), OPENAI_BODY)
    name = body.model()
    async with call.models.use(name) as llm:
        return answer(
            await run_in_threadpool(lambda: EmbeddingRequest.of(body, llm).answer(name, call.number))
        )


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
    error_body,
    prefixes=("/",),
)
