"""Anthropic's API: messages, and token counts of messages."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.serve.anthropic.answer import MessageRequest, error_body
from pellucid.serve.anthropic.request import ANTHROPIC_BODY, COUNT_BODY, conversation_of
from pellucid.serve.api import NAMED, Api, ClientCall, Route, answer
from pellucid.serve.body import Body
from pellucid.serve.chat.request import prompt_of
from pellucid.serve.generate import generated
from pellucid.serve.schema import (
    COUNT,
    FLAG,
    LOGPROBS,
    OBJECT,
    TEXT,
    Schema,
    any_of,
    body,
    closed,
    function,
    generation_options,
    harmless,
    listed,
    one_of,
    tools,
)

CACHED = {"cache_control": harmless("cache_control")}


def _block(kind: str, fields: Mapping[str, Schema], *more: str) -> Schema:
    """Schema of a content block. The fields ``more`` are accepted and change nothing."""
    about = {name: harmless(f"content[].{name}") for name in more}
    return closed({"type": one_of(kind), **fields, **CACHED, **about}, "type", *fields)


SOME_TEXT = _block("text", {"text": TEXT}, "citations")
TEXTS = {"anyOf": [TEXT, {"type": "array", "items": any_of(SOME_TEXT)}]}
BLOCK = any_of(
    SOME_TEXT,
    _block("thinking", {"thinking": TEXT}, "signature"),
    _block("redacted_thinking", {}, "data"),
    _block("tool_use", {"id": TEXT, "name": TEXT, "input": OBJECT}, "caller"),
    _block("tool_result", {"tool_use_id": TEXT, "content": TEXTS}, "is_error"),
)
MESSAGE = closed(
    {
        "role": one_of("user", "assistant", "system"),
        "content": {"anyOf": [TEXT, {"type": "array", "items": BLOCK}]},
    },
    "role",
)
FORMAT = closed({"type": one_of("json_schema"), "schema": OBJECT}, "type", "schema")
CONVERSATION = {"model": TEXT, "messages": listed(MESSAGE)}
THINKING = {"type": one_of("enabled", "adaptive", "disabled")}
EFFORT = one_of("low", "medium", "high", "xhigh", "max")


def _about(*, counts: bool) -> dict[str, Schema]:
    """Schemas of a conversation's fields. ``counts``: fields that affect only the answer are accepted and ignored."""

    def of_answer(field: str, schema: Schema) -> Schema:
        return {**schema, **harmless(field)} if counts else schema

    tool = {
        "eager_input_streaming": harmless("tools[].eager_input_streaming"),
        **CACHED,
        "strict": of_answer("tools[].strict", FLAG),
    }
    choice = {
        "type": one_of("auto", "any", "none", "tool"),
        "name": TEXT,
        "disable_parallel_tool_use": of_answer("tool_choice.disable_parallel_tool_use", FLAG),
    }
    thought = {name: harmless(f"thinking.{name}") for name in ("budget_tokens", "display")}
    return {
        "system": TEXTS,
        "tools": tools(function("input_schema", type=one_of("custom"), **tool)),
        "tool_choice": closed(choice, "type"),
        "thinking": closed({**THINKING, **thought}, "type"),
        "output_config": closed(
            {"format": of_answer("output_config.format", OBJECT if counts else FORMAT), "effort": EFFORT}
        ),
        "output_format": of_answer("output_format", OBJECT if counts else FORMAT),
    }


OPTIONS = {**generation_options("watch", *LOGPROBS), "stream": FLAG}


async def _messages(call: ClientCall) -> Response:
    fields = Body(await call.json(), ANTHROPIC_BODY)
    name, streams = call.model(fields), fields.flag("stream")
    return await generated(call, name, lambda llm: MessageRequest.of(fields, llm), NAMED if streams else None)


async def _count_tokens(call: ClientCall) -> Response:
    fields = Body(await call.json(), COUNT_BODY)
    async with call.use(call.model(fields)) as llm:
        asked = await run_in_threadpool(conversation_of, fields, {}, counts=True)
        return answer({"input_tokens": len(await run_in_threadpool(prompt_of, llm, asked, any_length=True))})


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": Route(
            _messages,
            "Answer a conversation.",
            body({**CONVERSATION, "max_tokens": COUNT}, {**_about(counts=False), **OPTIONS}, ANTHROPIC_BODY),
            NAMED.media_type,
        ),
        "POST /v1/messages/count_tokens": Route(
            _count_tokens,
            "Count a conversation's tokens.",
            body(CONVERSATION, _about(counts=True), COUNT_BODY),
        ),
    },
    error_body,
    prefixes=("/v1/messages",),
)
