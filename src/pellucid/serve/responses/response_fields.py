"""Fields of the Responses API's request bodies.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from pellucid.serve.chat.messages import Content, OutputTextContent, TextContent
from pellucid.serve.chat.tools import MAX_TOOLS, FunctionFields
from pellucid.serve.generation_options import LOGPROBS, OPENAI_DEFAULTS, generation_options
from pellucid.serve.ignored_fields import ignored
from pellucid.serve.openai.answer_constraints import FlatResponseFormat, FlatToolChoiceValue
from pellucid.serve.request_body import BodyRules, BodyType, Count, Fields, ModelFields


class Item(Fields, frozen=True, tag_field="type"):
    """An item of the input. The raw items are used, because the server stores them."""

    id: Annotated[Any, ignored("input[].id")] = None
    status: Annotated[Any, ignored("input[].status")] = None


class MessageItem(Item, frozen=True, tag="message", kw_only=True):
    """A message."""

    role: str
    content: Content
    phase: Annotated[Any, ignored("input[].phase")] = None


class CallItem(Item, frozen=True, tag="function_call", kw_only=True):
    """A call of a tool."""

    call_id: str
    name: str
    arguments: str


class CallOutputItem(Item, frozen=True, tag="function_call_output", kw_only=True):
    """The output of a tool."""

    call_id: str
    output: Content


class SummaryContent(OutputTextContent, frozen=True, tag="summary_text"):
    """A summary of reasoning."""


class ReasoningContent(OutputTextContent, frozen=True, tag="reasoning_text"):
    """Reasoning."""


Reasoning: TypeAlias = Sequence[
    Annotated[
        TextContent | SummaryContent | ReasoningContent, Meta(extra_json_schema={"default": {"type": "text"}})
    ]
]


class ReasoningItem(Item, frozen=True, tag="reasoning", kw_only=True):
    """Reasoning of an earlier response."""

    content: Reasoning = ()
    summary: Reasoning = ()
    encrypted_content: Annotated[Any, ignored("input[].encrypted_content")] = None


class ItemReference(Fields, frozen=True, tag_field="type", tag="item_reference"):
    """A reference to an item of a stored response."""

    id: str


InputItem: TypeAlias = Annotated[
    MessageItem | CallItem | CallOutputItem | ReasoningItem | ItemReference,
    Meta(extra_json_schema={"default": {"type": "message"}}),
]


class ResponseTool(FunctionFields, frozen=True, kw_only=True):
    """A tool."""

    type: Annotated[Literal["function"], Meta(title="function, because this server runs no tools itself")]


class ReasoningFields(Fields, frozen=True):
    """The field ``reasoning``."""

    effort: str | None = None
    summary: Annotated[Any, ignored("reasoning.summary")] = None
    generate_summary: Annotated[Any, ignored("reasoning.generate_summary")] = None


class TextFields(Fields, frozen=True):
    """The field ``text``."""

    format: FlatResponseFormat | None = None
    verbosity: Annotated[Any, ignored("verbosity")] = None


class InputFields(ModelFields, frozen=True, kw_only=True):
    """Fields of a conversation."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    tools: Annotated[Sequence[ResponseTool], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: FlatToolChoiceValue = None
    parallel_tool_calls: bool = True
    reasoning: ReasoningFields = ReasoningFields()


class ResponseStreamOptions(Fields, frozen=True):
    """The field ``stream_options``."""

    include_obfuscation: Annotated[Any, ignored("stream_options.include_obfuscation")] = None


class ResponseFields(InputFields, frozen=True, kw_only=True):
    """Fields of a request for a response."""

    text: TextFields = TextFields()
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    store: bool = True
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    max_tool_calls: Count | None = None


RESPONSE = BodyType(
    ResponseFields,
    BodyRules(
        options=generation_options("watch", *LOGPROBS),
        renamed={"max_output_tokens": "max_new_tokens"},
        defaults=OPENAI_DEFAULTS,
        ignored=frozenset(
            {
                *("include", "service_tier", "prompt_cache_options", "prompt_cache_retention"),
                "context_management",
            }
        ),
        only={"conversation": "", "background": False, "prompt": {}, "top_logprobs": 0, "moderation": None},
    ),
)
COUNT = BodyType(
    InputFields,
    BodyRules(
        ignored=frozenset({"text", "parallel_tool_calls", "tools[].strict"}), only={"conversation": ""}
    ),
)
