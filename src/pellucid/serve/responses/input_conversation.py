"""Reads request bodies of OpenAI's Responses API as conversations.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.serve.chat.chat_run import Conversation
from pellucid.serve.chat.messages import joined_texts
from pellucid.serve.chat.tools import tool_of
from pellucid.serve.openai.answer_constraints import choice_of
from pellucid.serve.request_body import RequestBody
from pellucid.serve.responses.response_fields import InputFields
from pellucid.serve.responses.response_store import OwnResponses

THOUGHTS = (None, "reasoning_text", "summary_text", "text")
"""Types of reasoning parts."""
REASONING = {"role", "content", "reasoning_content"}
"""Keys of a message that so far holds only reasoning."""


def items_of(given: str | list[Mapping[str, Any]], own: OwnResponses) -> list[Mapping[str, Any]]:
    """Items of the raw field ``input``. Referenced items are looked up in the client's ``own`` responses.

    Raises:
        NotFound: a referenced item is not stored.
    """
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [own.item(one["id"]) if one.get("type") == "item_reference" else one for one in given]


def conversation_of(
    body: RequestBody[Any],
    items: Sequence[Mapping[str, Any]],
    recommended: Mapping[str, Any],
    own: OwnResponses,
    schema: Any = None,
) -> Conversation:
    """Conversation of a body with ``InputFields``: earlier turns, then its ``items``. The answer follows ``schema``.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
        NotFound: the previous response is not stored.
    """
    fields: InputFields = body.fields
    before = fields.previous_response_id
    messages = [{"role": "developer", "content": fields.instructions}] if fields.instructions else []
    for turn in own.turns(before) if before else ():
        for item in turn.items:
            _add(item, messages, f"previous_response_id={before}")
    for at, item in enumerate(items):
        _add(item, messages, f"input[{at}]")
    functions = [tool_of(f"tools[{at}]", one) for at, one in enumerate(fields.tools)]
    tools, choice = choice_of(functions, fields.tool_choice, fields.parallel_tool_calls)
    effort = fields.reasoning.effort
    variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        variables["enable_thinking"] = False
    options = body.options(recommended)
    return Conversation(messages, options, 1, tools, choice, schema, "text.format", variables)


def _add(item: Mapping[str, Any], messages: list[dict[str, Any]], where: str) -> None:
    """Add an input item to the messages. Calls and reasoning become part of the assistant's message."""
    kind = item.get("type", "message")
    if kind == "message":
        message = {"role": item.get("role"), "content": item.get("content", "")}
        if message["role"] == "assistant" and messages and set(messages[-1]) == REASONING:
            messages[-1].update(message)  # the reasoning before a message belongs to the message
        else:
            messages.append(message)
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _assistant(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output", "")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if text := joined_texts(parts, f"{where}.content", THOUGHTS):
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message for a call: the last message, or a new message if the last message has another role."""
    if not messages or messages[-1].get("role") != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]
