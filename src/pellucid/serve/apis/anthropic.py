"""Anthropic's API: messages, and token counts of messages."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.anthropic.message_fields import COUNT, MESSAGE
from pellucid.serve.anthropic.message_response import MessageRequest, error_body
from pellucid.serve.anthropic.messages_conversation import conversation_of
from pellucid.serve.api import NAMED_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.chat.chat_run import prompt_of
from pellucid.serve.generation_response import generation_response


async def _messages(call: ClientCall) -> Response:
    body = await call.read(MESSAGE)
    name, stream = call.model(body.fields.model), NAMED_SSE if body.fields.stream else None
    return await generation_response(call, name, lambda llm: MessageRequest.of(body, llm), stream)


async def _count_tokens(call: ClientCall) -> Response:
    body = await call.read(COUNT)
    async with call.use(call.model(body.fields.model)) as llm:
        conversation = await run_in_threadpool(conversation_of, body, {}, counts=True)
        count = len(await run_in_threadpool(prompt_of, llm, conversation, any_length=True))
        return json_response({"input_tokens": count})


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": Route(_messages, "Answer a conversation.", MESSAGE, NAMED_SSE.media_type),
        "POST /v1/messages/count_tokens": Route(_count_tokens, "Count a conversation's tokens.", COUNT),
    },
    error_body,
    prefixes=("/v1/messages",),
)
