"""Anthropic's API: messages, and token counts of messages."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.anthropic.conversation import conversation_of
from pellucid.serve.anthropic.fields import COUNT, MESSAGE
from pellucid.serve.anthropic.message import MessageRequest, error_body
from pellucid.serve.api import NAMED, Api, ClientCall, Route, answer
from pellucid.serve.chat.request import prompt_of
from pellucid.serve.generate import generated


async def _messages(call: ClientCall) -> Response:
    body = await call.read(MESSAGE)
    name, stream = call.model(body.fields.model), NAMED if body.fields.stream else None
    return await generated(call, name, lambda llm: MessageRequest.of(body, llm), stream)


async def _count_tokens(call: ClientCall) -> Response:
    body = await call.read(COUNT)
    async with call.use(call.model(body.fields.model)) as llm:
        conversation = await run_in_threadpool(conversation_of, body, {}, counts=True)
        count = len(await run_in_threadpool(prompt_of, llm, conversation, any_length=True))
        return answer({"input_tokens": count})


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": Route(_messages, "Answer a conversation.", MESSAGE, NAMED.media_type),
        "POST /v1/messages/count_tokens": Route(_count_tokens, "Count a conversation's tokens.", COUNT),
    },
    error_body,
    prefixes=("/v1/messages",),
)
