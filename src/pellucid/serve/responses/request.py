"""Reads request bodies of OpenAI's Responses API as conversations.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import PLAIN, Body, BodyForm
from pellucid.serve.chat.messages import joined_texts
from pellucid.serve.chat.request import Conversation
from pellucid.serve.chat.tools import Tool, ToolChoice, tool_of
from pellucid.serve.openai.choice import choice_of, shape_of
from pellucid.serve.responses.store import OwnResponses

HARMLESS_FIELDS = frozenset({"include", "prompt_cache_retention", "service_tier"})
RESPONSES_BODY = BodyForm(
    harmless=HARMLESS_FIELDS,
    only={"conversation": "", "background": False, "prompt": {}, "top_logprobs": 0},
    renamed={"max_output_tokens": "max_new_tokens"},
    defaults=PLAIN,
)
COUNT_BODY = BodyForm(only={"conversation": ""})
"""Form of the bodies of input_tokens requests."""
THOUGHTS = (None, "reasoning_text", "summary_text", "text")
"""Types of reasoning parts."""
REASONING = {"role", "content", "reasoning_content"}
"""Keys of a message that so far holds only reasoning."""


def items_of(body: Body, own: OwnResponses) -> list[Mapping[str, Any]]:
    """Items of a body's ``input``. Referenced items are looked up in the client's ``own`` responses.

    Raises:
        InvalidRequest: ``input`` is neither text nor a list of items.
        NotFound: a referenced item is not stored.
    """
    given = body.required("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
        raise InvalidRequest(f"input={brief(given)}: must be a text or a list of items")
    return [own.item(str(one.get("id"))) if one.get("type") == "item_reference" else one for one in given]


def conversation_of(
    body: Body, items: Sequence[Mapping[str, Any]], recommended: Mapping[str, Any], own: OwnResponses
) -> Conversation:
    """Read the conversation of a body: earlier turns, then its ``items``.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    instructions, before = body.text("instructions"), body.text("previous_response_id")
    messages = [{"role": "developer", "content": instructions}] if instructions else []
    for turn in own.turns(before) if before else ():
        for item in turn.items:
            _add(item, messages, f"previous_response_id={before}")
    for at, item in enumerate(items):
        _add(item, messages, f"input[{at}]")
    body.mapping("metadata")
    tools, choice = _tools(body)
    shape = shape_of("text.format", body.mapping("text").get("format"), _inside)
    effort = body.mapping("reasoning").get("effort")
    variables = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        variables["enable_thinking"] = False
    options = body.options(recommended)
    return Conversation(messages, options, 1, tools, choice, shape, "text.format", variables)


def _add(item: Any, messages: list[dict[str, Any]], where: str) -> None:
    """Add an input item to the messages. Calls and reasoning become part of the assistant's message."""
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
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
    else:
        raise InvalidRequest(
            f"{where}={brief(item)}: must be an item of type message, function_call, function_call_output or reasoning"
        )


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message for a call: the last message, or a new message if the last is not the assistant's."""
    if not messages or messages[-1].get("role") != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _inside(value: Mapping[str, Any], kind: str) -> Any:
    return value


def _tools(body: Body) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call."""
    tools = []
    for at, one in enumerate(body.objects("tools")):
        if one.get("type") != "function":
            raise InvalidRequest(
                f"tools[{at}].type={brief(one.get('type'))}: this server runs no tools; only function is known"
            )
        tools.append(tool_of(f"tools[{at}]", one))
    choice, parallel = body.take("tool_choice"), body.flag("parallel_tool_calls", True)
    return choice_of(tools, choice, parallel, _inside)
