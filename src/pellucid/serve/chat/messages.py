"""The messages and tools of API requests, in the form that chat templates expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from pellucid.errors import InvalidRequest, brief
from pellucid.serve.generation_options import ignored
from pellucid.serve.request_body import Fields
from pellucid.tokenize.chat.conversation import conversation

# The tools of a request: functions that the model may or must call.

MAX_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""Schema of a function without parameters."""


@dataclass(frozen=True)
class Tool:
    """A function: its ``name``, the JSON schema of its ``parameters``, and its ``template_form`` for the chat template.

    If ``strict`` is False, the arguments may be any JSON object.
    """

    name: str
    parameters: Mapping[str, Any]
    template_form: Mapping[str, Any]
    strict: bool = True

    @property
    def schema(self) -> Any:
        """JSON schema that the arguments of a call follow."""
        return self.parameters if self.strict else {"type": "object"}


@dataclass(frozen=True)
class ToolChoice:
    """Tools that may be called.

    With ``required``, an answer must have a call. With ``parallel``, an answer may have several calls.
    """

    tools: Sequence[Tool] = field(default=())
    required: bool = False
    parallel: bool = True


class FunctionFields(Fields, frozen=True):
    """A function in a request."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def tool(
    where: str, name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool | None = None
) -> Tool:
    """Check a function and return it. ``where`` is its place in the request."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.name={brief(name)}: must be 1 to 64 letters, digits, dots, dashes and underscores"
        )
    parameters = dict(NO_PARAMETERS if parameters is None else parameters)
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(f"{where}.parameters.type={brief(parameters['type'])}: must be object")
    function = {"name": name, "description": description or "", "parameters": parameters}
    template_form = {"type": "function", "function": function}
    return Tool(name, {"type": "object", **parameters}, template_form, strict is not False)


def tool_of(where: str, fields: FunctionFields) -> Tool:
    """Convert the function at the place ``where`` of a request to a tool. Raises: as ``tool``."""
    return tool(where, fields.name, fields.description, fields.parameters, fields.strict)


def tool_choice(tools: Sequence[Tool], names: Sequence[str] | None, required: bool, parallel: bool) -> ToolChoice:
    """Choice among tools. ``names`` are the tools that may be called (None: all tools)."""
    known = {one.name: one for one in tools}
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(tools):,} tools; the limit is {MAX_TOOLS}: send fewer")
    if len(known) < len(tools):
        twice = next(one.name for one in tools if sum(other.name == one.name for other in tools) > 1)
        raise InvalidRequest(f"tools has {brief(twice)} twice: remove one of the two")
    for name in names or ():
        if name not in known:
            raise InvalidRequest(f"tool_choice names {brief(name)}; tools has {', '.join(known) or 'none'}")
    allowed = [known[name] for name in dict.fromkeys(names)] if names is not None else list(tools)
    if required and not allowed:
        raise InvalidRequest("tool_choice requires a call, but there are no tools: send tools")
    return ToolChoice(allowed, required, parallel)


# Converts the messages of API requests to the form that chat templates expect.
#
# Text parts are joined, the arguments of a call become an object, a tool message gets the name of its tool, and the
# role "developer" becomes "system" for templates that do not know it.

TEXT_PARTS = (None, "text", "input_text", "output_text", "refusal")


class TextContent(Fields, frozen=True, tag_field="type", tag="text"):
    """A part of a message's content. The Responses API has its own types for the same text."""

    text: str
    cache_control: Annotated[Any, ignored("cache_control")] = None
    annotations: Annotated[Any, ignored("input[].content[].annotations")] = None
    logprobs: Annotated[Any, ignored("input[].content[].logprobs")] = None


class InputTextContent(TextContent, frozen=True, tag="input_text"):
    """Text of the user."""


class OutputTextContent(TextContent, frozen=True, tag="output_text"):
    """Text of an earlier response."""


class RefusalContent(Fields, frozen=True, tag_field="type", tag="refusal"):
    """A refusal of an earlier response."""

    refusal: str


Content: TypeAlias = (
    str
    | list[
        Annotated[
            str | TextContent | InputTextContent | OutputTextContent | RefusalContent,
            Meta(extra_json_schema={"default": {"type": "text"}}),
        ]
    ]
)


class ChatMessage(Struct, frozen=True):
    """A message. The chat template gets the raw message, because it may read other fields."""

    role: str
    content: Content | None = None


def template_messages(messages: Any, *, has_developer: bool) -> list[dict[str, Any]]:
    """Convert the messages of a request."""
    names = dict[str, str]()
    converted = list[dict[str, Any]]()
    for at, message in enumerate(conversation(messages)):
        where = f"messages[{at}]"
        if not isinstance(role := message.get("role"), str):
            raise InvalidRequest(f"{where}.role={brief(role)}: must be a text, such as user")
        if role == "developer" and not has_developer:
            message["role"] = "system"
        message["content"] = joined_texts(message.get("content", ""), f"{where}.content")
        if "tool_calls" in message:
            message["tool_calls"] = _calls(message["tool_calls"], f"{where}.tool_calls", names)
        called = message.get("tool_call_id")
        if role == "tool" and "name" not in message and isinstance(called, str) and called in names:
            message["name"] = names[called]
        converted.append(message)
    return converted


def joined_texts(content: Any, where: str, kinds: Sequence[str | None] = TEXT_PARTS) -> str:
    """Text of a message's content: a string, or its text parts of the given ``kinds``, joined with newlines.

    A part of kind None is a string, or an object without a type.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}={brief(content)}: must be a text or a list of parts")
    texts = list[str]()
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else part
        if kind not in kinds or not isinstance(text, str):
            raise InvalidRequest(f"{where}[{at}]={brief(part)}: must be a part of type text, with a text")
        texts.append(text)
    return "\n".join(texts)


def _calls(calls: Any, where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """Convert the calls of a message. Adds the name of each called function to ``names``, by call id."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidRequest(f"{where}={brief(calls)}: must be a list of calls")
    converted = list[dict[str, Any]]()
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise InvalidRequest(f"{where}[{at}]={brief(call)}: must be an object whose function has a name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _object(arguments or "{}", f"{where}[{at}].function.arguments")
        if isinstance(call.get("id"), str):
            names[call["id"]] = name
        converted.append({"type": "function", **call, "function": {**function, "arguments": arguments}})
    return converted


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}={brief(text)}: is not JSON") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{where}={brief(text)}: must be the JSON of an object")
    return parsed
