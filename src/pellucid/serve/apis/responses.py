"""OpenAI's Responses API, without storage: a request sends the whole conversation."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from pellucid.serve.api import NAMED, Api, ClientCall, Route
from pellucid.serve.body import Body
from pellucid.serve.generate import generated
from pellucid.serve.openai.answer import error_body
from pellucid.serve.responses.answer import ResponseRequest
from pellucid.serve.responses.request import RESPONSES_BODY
from pellucid.serve.schema import (
    FLAG,
    LOGPROBS,
    OBJECT,
    TEXT,
    any_of,
    body,
    closed,
    function,
    generation_options,
    harmless,
    listed,
    one_of,
    tools,
)  # fmt: skip


def _read_as_it_stands(*names: str) -> dict[str, Any]:
    return {name: harmless(f"input[].{name}") for name in names}


PART = any_of(
    closed(
        {
            "type": one_of("input_text", "output_text", "text"),
            "text": TEXT,
            **{name: harmless(f"input[].content[].{name}") for name in ("annotations", "logprobs")},
        },
        "type",
        "text",
    ),
    closed({"type": one_of("refusal"), "refusal": TEXT}, "type", "refusal"),
)
THOUGHT = listed(closed({"type": one_of("reasoning_text", "summary_text", "text"), "text": TEXT}, "text"))
TEXTS = {"anyOf": [TEXT, listed(PART)]}
MESSAGE = {
    "type": one_of("message"),
    "role": one_of("system", "developer", "user", "assistant"),
    "content": TEXTS,
}
CALL = {"type": one_of("function_call"), "call_id": TEXT, "name": TEXT, "arguments": TEXT}
OUTPUT = {"type": one_of("function_call_output"), "call_id": TEXT, "output": TEXTS}
REASONING = {"type": one_of("reasoning"), "content": THOUGHT, "summary": THOUGHT}
ITEM = any_of(
    closed({**MESSAGE, **_read_as_it_stands("id", "status", "phase")}, "role", "content"),
    closed({**CALL, **_read_as_it_stands("id", "status")}, "type", "call_id", "name", "arguments"),
    closed({**OUTPUT, **_read_as_it_stands("id", "status")}, "type", "call_id", "output"),
    closed({**REASONING, **_read_as_it_stands("id", "status", "encrypted_content")}, "type"),
)
NAMED_FUNCTION = closed({"type": one_of("function"), "name": TEXT}, "type", "name")
ALLOWED = {
    "type": one_of("allowed_tools"),
    "mode": one_of("auto", "required"),
    "tools": listed(NAMED_FUNCTION),
}
FORMAT = {
    "type": one_of("text", "json_object", "json_schema"),
    "schema": OBJECT,
    **{name: harmless(f"text.format.{name}") for name in ("name", "description", "strict")},
}
CONVERSATION = {
    "instructions": TEXT,
    "tools": tools({**function(type=one_of("function")), "required": ["type", "name"]}),
    "tool_choice": any_of(
        one_of("none", "auto", "required"), NAMED_FUNCTION, closed(ALLOWED, "type", "mode", "tools")
    ),
    "parallel_tool_calls": FLAG,
    "text": closed({"format": closed(FORMAT, "type"), "verbosity": harmless("verbosity")}),
    "reasoning": closed(
        {
            "effort": TEXT,
            **{name: harmless(f"reasoning.{name}") for name in ("summary", "generate_summary")},
        }
    ),
}
RESPONSE = body(
    {"model": TEXT, "input": {"anyOf": [TEXT, listed(ITEM)]}},
    {
        **generation_options("watch", *LOGPROBS),
        **CONVERSATION,
        "stream": FLAG,
        "stream_options": closed({"include_obfuscation": harmless("stream_options.include_obfuscation")}),
        "metadata": OBJECT,
        "store": FLAG,
        "user": TEXT,
        "safety_identifier": TEXT,
        "prompt_cache_key": TEXT,
        "service_tier": TEXT,
        "max_tool_calls": {"type": "integer", "minimum": 1},
    },
    RESPONSES_BODY,
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
