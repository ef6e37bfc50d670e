"""OpenAI's Responses API, without storage: a request sends the whole conversation."""

from __future__ import annotations

from starlette.responses import Response

from pellucid.serve.api import NAMED, Api, ClientCall, Route
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.openai.answer import error_body
from pellucid.serve.responses.answer import ResponseRequest
from pellucid.serve.responses.request import RESPONSES_BODY
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    OBJECT,
    TEXT,
    TOOLS,
    body,
    generation_options,
    listed,
    message,
    one_of,
)

ITEMS = listed(message("system", "developer", "user", "assistant"))
RESPONSE = body(
    {"model": TEXT, "input": {"anyOf": [TEXT, ITEMS]}},
    {
        **generation_options(),
        "instructions": TEXT,
        "max_output_tokens": COUNT,
        "stream": FLAG,
        "tools": TOOLS,
        "tool_choice": {"anyOf": [one_of("none", "auto", "required"), OBJECT]},
        "parallel_tool_calls": FLAG,
        "text": OBJECT,
        "reasoning": OBJECT,
        "metadata": OBJECT,
        "store": FLAG,
    },
)


async def _responses(call: ClientCall) -> Response:
    given = await call.json()
    fields = Body(given, RESPONSES_BODY)
    name, streams = call.model(fields), fields.flag("stream")
    return await generated(
        call, name, lambda llm: ResponseRequest.of(fields, given, llm), NAMED if streams else None
    )


RESPONSES = Api(
    "responses",
    {"POST /v1/responses": Route(_responses, "Answer a conversation.", RESPONSE, NAMED.media_type)},
    error_body,
)
