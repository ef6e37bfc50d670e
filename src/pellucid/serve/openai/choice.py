"""Tool choice and response format in OpenAI's two chat APIs.

Chat completions nest the fields of an object, ``{"type": "function", "function": {...}}``; responses have them flat,
``{"type": "function", "name": "f"}``. An ``Inside`` function returns the object that has the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.tools import Tool, ToolChoice, chosen

SHAPES = ("text", "json_object", "json_schema")
Inside: TypeAlias = "Callable[[Mapping[str, Any], str], Any]"


def choice_of(
    tools: Sequence[Tool], choice: Any, parallel: bool, inside: Inside
) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call, from ``tool_choice``.

    Raises:
        InvalidRequest: the choice is malformed, or names an unknown tool.
    """
    if choice == "none":
        return [], ToolChoice()
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function" and isinstance(name := _field(inside(choice, kind), "name"), str):
        return tools, chosen(tools, [name], required=True, parallel=False)  # exactly one call
    names, required = _names(choice, kind, inside)
    return tools, chosen(tools, names, required, parallel)


def _names(choice: Any, kind: Any, inside: Inside) -> tuple[list[str] | None, bool]:
    """Names of the tools that may be called (None: all), and True if a call is required."""
    if choice is None or choice == "auto":
        return None, False
    if choice == "required":
        return None, True
    allowed = inside(choice, kind) if kind == "allowed_tools" else None
    listed, mode = _field(allowed, "tools"), _field(allowed, "mode")
    if isinstance(listed, list) and mode in ("auto", "required"):
        found = (inside(one, "function") if _field(one, "type") == "function" else None for one in listed)
        names: list[Any] = [_field(one, "name") for one in found]
        if all(isinstance(one, str) for one in names):
            return names, mode == "required"
    raise InvalidRequest(
        f"tool_choice={brief(choice)}: must be none, auto, required, or an object that names a function"
    )


def shape_of(name: str, wanted: Any, inside: Inside) -> Any:
    """JSON schema of the response format in the field ``name``; None: any text.

    Raises:
        InvalidRequest: the format is malformed.
    """
    if wanted is None:
        return None
    kind = _field(wanted, "type")
    holder = wanted if kind == "json_object" else inside(wanted, kind) if kind == "json_schema" else None
    schema = _field(holder, "schema")
    if kind == "json_object" and schema is None:
        schema = {"type": "object"}
    if kind not in SHAPES or (kind != "text" and not isinstance(schema, Mapping)):
        raise InvalidRequest(
            f"{name}={brief(wanted)}: must be an object whose type is text, json_object, or json_schema with a schema"
        )
    for other in ("json_schema", "schema"):
        found = wanted.get(other)
        if found is not None and found is not holder and found is not schema:
            raise InvalidRequest(f"{name}.{other} does not go with the type {kind}: remove one of the two")
    return schema


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None
