"""Reads request bodies of Anthropic's Messages API as conversations.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import PLAIN, Body, BodyForm
from pellucid.serve.chat.messages import joined_texts
from pellucid.serve.chat.request import Conversation
from pellucid.serve.chat.tools import Tool, ToolChoice, chosen, tool_of

HARMLESS_FIELDS = frozenset({"metadata", "service_tier", "cache_control", "context_management"})
ANTHROPIC_BODY = BodyForm(
    harmless=HARMLESS_FIELDS,
    only={"container": "", "mcp_servers": []},
    renamed={"max_tokens": "max_new_tokens", "stop_sequences": "stop"},
    defaults=PLAIN,
)
COUNT_BODY = BodyForm(HARMLESS_FIELDS, ANTHROPIC_BODY.only)
"""Form of the bodies of count_tokens requests."""
BLOCKS = ("text",)
"""Types of content blocks that hold text."""


def conversation_of(body: Body, recommended: Mapping[str, Any], *, counts: bool = False) -> Conversation:
    """Read the conversation of a body. ``counts``: the request only counts tokens, so ``max_tokens`` may be absent.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    system, messages = body.take("system", ""), body.required("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(f"messages={brief(messages)}: must be a list of at least one message")
    made = [{"role": "system", "content": joined_texts(system, "system", BLOCKS)}] if system else []
    for at, message in enumerate(messages):
        made += _messages(message, f"messages[{at}]")
    tools, choice = _tools(body)
    variables, output = _thinking(body.take("thinking")), body.mapping("output_config")
    if (effort := output.get("effort")) is not None:
        variables["reasoning_effort"] = effort
    older = body.take("output_format")
    shape = None if counts else _shape(output.get("format"), older)
    options = body.options(recommended)
    if not counts and "max_new_tokens" not in options:
        raise InvalidRequest("max_tokens is missing: the request must have it")
    goes_on = made[-1]["role"] == "assistant" and not made[-1].get("tool_calls")
    return Conversation(made, options, 1, tools, choice, shape, "output_format", variables, goes_on)


def _messages(message: Any, where: str) -> list[dict[str, Any]]:
    """Convert a message to messages for the chat template. Each tool result becomes a separate message."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("user", "assistant", "system"):
        raise InvalidRequest(f"{where}={brief(message)}: must be an object whose role is user or assistant")
    content = message.get("content", "")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content={brief(content)}: must be a text or a list of blocks")
    texts, thoughts, calls, results = list[str](), list[str](), list[Any](), list[dict[str, Any]]()
    for at, block in enumerate(content):
        here, kind = f"{where}.content[{at}]", block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            texts.append(_text(block, "text", here))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking", here))
        elif kind == "redacted_thinking":
            continue
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input", {})}
            calls.append({"id": _text(block, "id", here), "type": "function", "function": function})
        elif kind == "tool_result":
            result = joined_texts(block.get("content", ""), f"{here}.content", BLOCKS)
            results.append(
                {"role": "tool", "tool_call_id": _text(block, "tool_use_id", here), "content": result}
            )
        else:
            raise InvalidRequest(
                f"{here}={brief(block)}: must be a block of type text, thinking, tool_use or tool_result"
            )
    made = {"role": role, "content": "\n".join(texts)}
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return results if results and not texts else [*results, made]


def _text(block: Mapping[str, Any], name: str, where: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{name}={brief(text)}: must be a text")
    return text


def _tools(body: Body) -> tuple[list[Tool], ToolChoice]:
    tools = []
    for at, one in enumerate(body.objects("tools")):
        if one.get("type", "custom") != "custom":
            raise InvalidRequest(
                f"tools[{at}].type={brief(one['type'])}: this server runs no tools; only custom ones are known"
            )
        tools.append(tool_of(f"tools[{at}]", one, "input_schema"))
    choice = body.mapping("tool_choice")
    kind, alone = choice.get("type", "auto"), choice.get("disable_parallel_tool_use", False)
    if not isinstance(alone, bool):
        raise InvalidRequest(f"tool_choice.disable_parallel_tool_use={brief(alone)}: must be true or false")
    if kind == "none":
        return [], ToolChoice()
    if kind not in ("auto", "any", "tool") or (kind == "tool" and not isinstance(choice.get("name"), str)):
        raise InvalidRequest(
            f"tool_choice={brief(choice)}: its type must be auto, any, none, or tool with a name"
        )
    if kind == "tool":
        return tools, chosen(tools, [choice["name"]], required=True, parallel=False)  # exactly one call
    if choice.get("name") is not None:
        raise InvalidRequest(f"tool_choice={brief(choice)}: a name goes with the type tool: leave it out")
    return tools, chosen(tools, None, kind != "auto", not alone)


def _thinking(value: Any) -> dict[str, Any]:
    """Template variable that turns reasoning on or off; empty if the request does not say."""
    if value is None:
        return {}
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in ("enabled", "adaptive", "disabled"):
        raise InvalidRequest(
            f"thinking={brief(value)}: must be an object of type enabled, adaptive or disabled"
        )
    return {"enable_thinking": kind != "disabled"}


def _shape(wanted: Any, older: Any) -> Any:
    """JSON schema of the answer, from ``output_config.format`` or the ``older`` field; None: any text."""
    if wanted is not None and older is not None:
        raise InvalidRequest("output_format does not go with output_config.format: leave it out")
    wanted = older if wanted is None else wanted
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema" or "schema" not in wanted:
        raise InvalidRequest(
            f"output_format={brief(wanted)}: must be an object of type json_schema, with a schema"
        )
    return wanted["schema"]
