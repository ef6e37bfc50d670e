"""Tool choice and response format in OpenAI's two chat APIs.

Chat completions nest the fields of a function in an object, ``{"type": "function", "function": {"name": "f"}}``. The
Responses API has the fields on the same level as the type, ``{"type": "function", "name": "f"}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from pellucid.serve.chat.tools import FunctionFields, Tool, ToolChoice, tool_choice
from pellucid.serve.ignored_fields import ignored
from pellucid.serve.request_body import Fields


class FunctionName(Fields, frozen=True):
    """The name of a function."""

    name: str


class NamedFunction(Fields, frozen=True, tag_field="type", tag="function"):
    """A function that must be called, or an entry of the allowed tools."""

    function: FunctionName


class AllowedFunctions(Fields, frozen=True):
    """Functions that the model may call. If ``mode`` is "required", the model must call a function."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1)]


class AllowedTools(Fields, frozen=True, tag_field="type", tag="allowed_tools"):
    """A choice that allows only some tools."""

    allowed_tools: AllowedFunctions


class FlatNamedFunction(FunctionName, frozen=True, tag_field="type", tag="function"):
    """``NamedFunction`` in the form of the Responses API."""


class FlatAllowedTools(Fields, frozen=True, tag_field="type", tag="allowed_tools"):
    """``AllowedTools`` in the form of the Responses API."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatNamedFunction], Meta(min_length=1)]


CHOICES = Meta(title="none, auto, required, or an object that names a function")
ToolChoiceValue = Annotated[
    Literal["none", "auto", "required"] | NamedFunction | AllowedTools | None, CHOICES
]
FlatToolChoiceValue = Annotated[
    Literal["none", "auto", "required"] | FlatNamedFunction | FlatAllowedTools | None, CHOICES
]


def choice_of(
    tools: Sequence[Tool], choice: ToolChoiceValue | FlatToolChoiceValue, parallel: bool
) -> tuple[Sequence[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call, from ``tool_choice``.

    Raises:
        InvalidRequest: the choice names an unknown tool.
    """
    if choice == "none":
        return [], ToolChoice()
    if choice is None or isinstance(choice, str):
        return tools, tool_choice(tools, None, choice == "required", parallel)
    if isinstance(choice, (NamedFunction, FlatNamedFunction)):  # exactly one call
        return tools, tool_choice(tools, [_name(choice)], required=True, parallel=False)
    allowed = choice.allowed_tools if isinstance(choice, AllowedTools) else choice
    return tools, tool_choice(tools, list(map(_name, allowed.tools)), allowed.mode == "required", parallel)


def _name(choice: NamedFunction | FlatNamedFunction) -> str:
    return choice.name if isinstance(choice, FlatNamedFunction) else choice.function.name


class ResponseSchema(Fields, frozen=True):
    """The JSON schema of an answer."""

    schema: dict[str, Any]
    name: Annotated[Any, ignored("response_format.json_schema.name")] = None
    description: Annotated[Any, ignored("response_format.json_schema.description")] = None
    strict: Annotated[Any, ignored("response_format.json_schema.strict")] = None


class ResponseFormat(Fields, frozen=True):
    """The field ``response_format`` of chat completions. ``schema`` belongs to the type json_object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: ResponseSchema | None = None
    schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing: the type json_schema needs it")
        for name, kind in (("json_schema", "json_schema"), ("schema", "json_object")):
            if getattr(self, name) is not None and self.type != kind:
                raise ValueError(f"{name} does not go with the type {self.type}: remove one of the two")

    @property
    def answer_schema(self) -> Any:
        """JSON schema of the answer; None: any text."""
        if self.json_schema is not None:
            return self.json_schema.schema
        return {"type": "object"} if self.type == "json_object" and self.schema is None else self.schema


class FlatResponseFormat(Fields, frozen=True):
    """The field ``text.format`` of the Responses API."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: Annotated[Any, ignored("text.format.name")] = None
    description: Annotated[Any, ignored("text.format.description")] = None
    strict: Annotated[Any, ignored("text.format.strict")] = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and self.schema is None:
            raise ValueError("schema is missing: the type json_schema needs it")
        if self.type == "text" and self.schema is not None:
            raise ValueError("schema does not go with the type text: remove one of the two")

    @property
    def answer_schema(self) -> Any:
        """JSON schema of the answer; None: any text."""
        return {"type": "object"} if self.type == "json_object" and self.schema is None else self.schema


class FunctionTool(Fields, frozen=True):
    """An entry of ``tools`` of chat completions."""

    type: Literal["function"]
    function: FunctionFields
