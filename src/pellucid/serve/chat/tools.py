"""The tools of a request: functions that the model may or must call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.request_body import Fields

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
    where: str,
    name: str,
    description: str | None,
    parameters: dict[str, Any] | None,
    strict: bool | None = None,
) -> Tool:
    """Check a function and return it. ``where`` is its place in the request.

    Raises:
        InvalidRequest: the name is invalid, or the type of the parameters is not object.
    """
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


def tool_choice(
    tools: Sequence[Tool], names: Sequence[str] | None, required: bool, parallel: bool
) -> ToolChoice:
    """Choice among tools. ``names`` are the tools that may be called (None: all tools).

    Raises:
        InvalidRequest: there are too many tools, two tools have one name, a name is unknown, or a call is required and
            no tool may be called.
    """
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
