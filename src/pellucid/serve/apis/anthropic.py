"""Anthropic's API: messages, and the number of their tokens."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.anthropic.answer import MessageRequest, error_body
from pellucid.serve.anthropic.request import ANTHROPIC_BODY, conversation_of
from pellucid.serve.api import NAMED, Api, ClientCall, Route, answer
from pellucid.serve.body import Body
from pellucid.serve.chat.request import prompt_of
from pellucid.serve.generate import generated
from pellucid.serve.schema import COUNT, FLAG, OBJECT, TEXT, TOOLS, body, generation_options, listed, message

CONVERSATION = {"model": TEXT, "messages": listed(message("user", "assistant"))}
ABOUT = {"system": TEXT, "tools": TOOLS, "tool_choice": OBJECT, "thinking": OBJECT}
OPTIONS = {
    **generation_options(),
    "stop_sequences": {"type": "array", "items": TEXT},
    "stream": FLAG,
    "metadata": OBJECT,
    "output_config": OBJECT,
}


async def _messages(call: ClientCall) -> Response:
    fields = Body(await call.json(), ANTHROPIC_BODY)
    name, streams = call.model(fields), fields.flag("stream")
    return await generated(call, name, lambda llm: MessageRequest.of(fields, llm), NAMED if streams else None)


async def _count_tokens(call: ClientCall) -> Response:
    fields = Body(await call.json(), ANTHROPIC_BODY)
    async with call.models.use(call.model(fields)) as llm:
        asked = await run_in_threadpool(conversation_of, fields, {}, counts=True)
        return answer({"input_tokens": len(await run_in_threadpool(prompt_of, llm, asked))})


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": Route(
            _messages,
            "Answer a conversation.",
            body({**CONVERSATION, "max_tokens": COUNT}, {**ABOUT, **OPTIONS}),
            NAMED.media_type,
        ),
        "POST /v1/messages/count_tokens": Route(
            _count_tokens, "Count a conversation's tokens.", body(CONVERSATION, ABOUT)
        ),
    },
    error_body,
    prefixes=("/v1/messages",),
)
