"""Converts request bodies of Anthropic's Messages API to conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.serve.anthropic.message_fields import (
    MessageFields,
    MessagesFields,
    TextBlock,
    ThinkingBlock,
    ToolChoiceFields,
    ToolFields,
    ToolResultBlock,
    ToolUseBlock,
)
from pellucid.serve.chat.chat_run import Conversation
from pellucid.serve.chat.tools import NO_PARAMETERS, Tool, ToolChoice, tool, tool_choice
from pellucid.serve.request_body import RequestBody


def conversation_of(
    body: RequestBody[Any], recommended: Mapping[str, Any], *, counts: bool = False
) -> Conversation:
    """Conversation of a body with ``MessagesFields``.

    With ``counts``, the request only counts tokens. It may then omit ``max_tokens``, and the schema of the answer is
    ignored.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    fields: MessagesFields = body.fields
    system = _text(fields.system)
    messages = [{"role": "system", "content": system}] if fields.system else []
    for message in fields.messages:
        messages += _messages(message)
    tools, choice = _tools(fields.tools, fields.tool_choice)
    variables: dict[str, Any] = {}
    if fields.thinking is not None:
        variables["enable_thinking"] = fields.thinking.type != "disabled"
    if fields.output_config.effort is not None:
        variables["reasoning_effort"] = fields.output_config.effort
    options, schema = body.options(recommended), None if counts else _answer_schema(fields)
    if not counts and "max_new_tokens" not in options:
        raise InvalidRequest("max_tokens is missing: the request must have it")
    continues_last = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    return Conversation(
        messages, options, 1, tools, choice, schema, "output_format", variables, continues_last
    )


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(one.text for one in content)


def _messages(message: MessageFields) -> list[dict[str, Any]]:
    """Convert a message to messages for the chat template. Each tool result becomes a separate message."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts, thoughts, calls, results = list[str](), list[str](), list[Any](), list[dict[str, Any]]()
    for block in message.content:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            results.append(
                {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
            )
    converted: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        converted["reasoning_content"] = "\n".join(thoughts)
    if calls:
        converted["tool_calls"] = calls
    return results if results and not texts else [*results, converted]


def _tools(given: Sequence[ToolFields], choice: ToolChoiceFields) -> tuple[list[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call."""
    tools = [
        tool(f"tools[{at}]", one.name, one.description, _parameters(one), one.strict)
        for at, one in enumerate(given)
    ]
    if choice.type == "none":
        return [], ToolChoice()
    if choice.name is not None:
        return tools, tool_choice(tools, [choice.name], required=True, parallel=False)  # exactly one call
    return tools, tool_choice(tools, None, choice.type == "any", not choice.disable_parallel_tool_use)


def _parameters(fields: ToolFields) -> dict[str, Any] | None:
    """JSON schema of a tool's arguments, which shows the model the examples of arguments."""
    if not fields.input_examples:
        return fields.input_schema
    return {**(fields.input_schema or NO_PARAMETERS), "examples": fields.input_examples}


def _answer_schema(fields: MessagesFields) -> Any:
    """JSON schema of the answer, from ``output_config.format`` or the older field; None: any text."""
    output_format, older = fields.output_config.format, fields.output_format
    if output_format is not None and older is not None:
        raise InvalidRequest("output_format does not go with output_config.format: leave output_format out")
    output_format = output_format or older
    return None if output_format is None else output_format.schema
