"""Schemas of request bodies of the Responses API."""

from __future__ import annotations

from typing import Any

from pellucid.serve.responses.request import COUNT_BODY, RESPONSES_BODY
from pellucid.serve.responses.truncation import WORDS
from pellucid.serve.schema import (
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
    closed({"type": one_of("item_reference"), "id": TEXT}, "type", "id"),
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


def _about(*, counts: bool) -> dict[str, Schema]:
    """Schemas of a conversation's fields. ``counts``: fields that affect only the answer are accepted and ignored."""

    def of_answer(field: str, schema: Schema) -> Schema:
        return {**schema, **harmless(field)} if counts else schema

    text = closed({"format": closed(FORMAT, "type"), "verbosity": harmless("verbosity")})
    tool = function(type=one_of("function"), strict=of_answer("tools[].strict", FLAG))
    shown = {name: harmless(f"reasoning.{name}") for name in ("summary", "generate_summary")}
    return {
        "instructions": TEXT,
        "previous_response_id": TEXT,
        "truncation": one_of(*WORDS),
        "tools": tools({**tool, "required": ["type", "name"]}),
        "tool_choice": any_of(
            one_of("none", "auto", "required"), NAMED_FUNCTION, closed(ALLOWED, "type", "mode", "tools")
        ),
        "parallel_tool_calls": of_answer("parallel_tool_calls", FLAG),
        "text": of_answer("text", OBJECT if counts else text),
        "reasoning": closed({"effort": TEXT, **shown}),
    }


CONVERSATION = {"model": TEXT, "input": {"anyOf": [TEXT, listed(ITEM)]}}
RESPONSE = body(
    CONVERSATION,
    {
        **generation_options("watch", *LOGPROBS),
        **_about(counts=False),
        "stream": FLAG,
        "stream_options": closed({"include_obfuscation": harmless("stream_options.include_obfuscation")}),
        "metadata": OBJECT,
        "store": FLAG,
        "user": TEXT,
        "safety_identifier": TEXT,
        "prompt_cache_key": TEXT,
        "max_tool_calls": {"type": "integer", "minimum": 1},
    },
    RESPONSES_BODY,
)
COUNTED = body(CONVERSATION, _about(counts=True), COUNT_BODY)
