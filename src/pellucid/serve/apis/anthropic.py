"""Anthropic's API: messages, and the number of their tokens."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.anthropic.answer import MessageRequest, error_body
from pellucid.serve.anthropic.request import ANTHROPIC_BODY, conversation_of
from pellucid.serve.api import NAMED, Api, ClientCall, answer
from pellucid.serve.body import Body
from pellucid.serve.chat.request import prompt_of
from pellucid.serve.generate import generated


async def _messages(call: ClientCall) -> Response:
    body = Body(await call.json(), ANTHROPIC_BODY)
    name, streams = body.model(), body.flag("stream")
    return await generated(call, name, lambda llm: MessageRequest.of(body, llm), NAMED if streams else None)


async def _count_tokens(call: ClientCall) -> Response:
    body = Body(await call.json(), ANTHROPIC_BODY)
    async with call.models.use(body.model()) as llm:
        asked = await run_in_threadpool(conversation_of, body, {}, counts=True)
        return answer({"input_tokens": len(await run_in_threadpool(prompt_of, llm, asked))})


ANTHROPIC = Api(
    "anthropic",
    {"POST /v1/messages": _messages, "POST /v1/messages/count_tokens": _count_tokens},
    error_body,
    prefixes=("/v1/messages",),
)
