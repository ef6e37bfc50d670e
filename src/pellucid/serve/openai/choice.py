"""What both of OpenAI's chat APIs say of tools and of the answer's form.

In chat completions what an object is about is in a field of its own, ``{"type": "function", "function": {...}}``; in
responses it is flat, ``{"type": "function", "name": "f"}``. ``Inside`` gives the object that has the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.tools import Tool, ToolChoice, chosen

Inside: TypeAlias = "Callable[[Mapping[str, Any], str], Any]"


def choice_of(
    tools: Sequence[Tool], choice: Any, parallel: bool, inside: Inside
) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and those that it may call, by ``tool_choice``.

    Raises:
        InvalidRequest: the choice is none, or names no tool.
    """
    if choice == "none":
        return [], ToolChoice()
    names, required = _names(choice, inside)
    return tools, chosen(tools, names, required, parallel)


def _names(choice: Any, inside: Inside) -> tuple[list[str] | None, bool]:
    """The names of the tools that may be called (None: all), and whether one must be."""
    if choice is None or choice == "auto":
        return None, False
    if choice == "required":
        return None, True
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function" and isinstance(name := _field(inside(choice, kind), "name"), str):
        return [name], True
    allowed = inside(choice, kind) if kind == "allowed_tools" else None
    listed, mode = _field(allowed, "tools"), _field(allowed, "mode")
    if isinstance(listed, list) and mode in ("auto", "required"):
        found = (inside(one, "function") if isinstance(one, Mapping) else None for one in listed)
        names: list[Any] = [_field(one, "name") for one in found]
        if all(isinstance(one, str) for one in names):
            return names, mode == "required"
    raise InvalidRequest(
        f"tool_choice={brief(choice)}: must be none, auto, required, or an object that names a function"
    )


def shape_of(name: str, wanted: Any, inside: Inside) -> Any:
    """The JSON schema that the field ``name`` asks for; None for any text.

    Raises:
        InvalidRequest: it asks for something else.
    """
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(schema := _field(inside(wanted, kind), "schema"), Mapping):
        return schema
    raise InvalidRequest(
        f"{name}={brief(wanted)}: must be an object whose type is text, json_object, or json_schema with a schema"
    )


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None
