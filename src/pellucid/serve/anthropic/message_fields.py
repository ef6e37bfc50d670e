"""Fields of the Messages API's request bodies.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from pellucid.errors.messages import brief
from pellucid.serve.chat.tools import MAX_TOOLS
from pellucid.serve.generation_options import LOGPROBS, OPENAI_DEFAULTS, generation_options
from pellucid.serve.ignored_fields import ignored
from pellucid.serve.request_body import BodyRules, BodyType, Fields, ModelFields


class MessageBlock(Fields, frozen=True, tag_field="type"):
    """A block of a message's content."""

    cache_control: Annotated[Any, ignored("cache_control")] = None


class TextBlock(MessageBlock, frozen=True, tag="text", kw_only=True):
    """Text."""

    text: str
    citations: Annotated[Any, ignored("content[].citations")] = None


class ThinkingBlock(MessageBlock, frozen=True, tag="thinking", kw_only=True):
    """Reasoning of an earlier answer."""

    thinking: str
    signature: Annotated[Any, ignored("content[].signature")] = None


class RedactedThinkingBlock(MessageBlock, frozen=True, tag="redacted_thinking"):
    """Encrypted reasoning, which the model does not see."""

    data: Annotated[Any, ignored("content[].data")] = None


class ToolUseBlock(MessageBlock, frozen=True, tag="tool_use", kw_only=True):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict)
    caller: Annotated[Any, ignored("content[].caller")] = None


class ToolResultBlock(MessageBlock, frozen=True, tag="tool_result", kw_only=True):
    """The result of a call."""

    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: Annotated[Any, ignored("content[].is_error")] = None


ContentBlock: TypeAlias = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class MessageFields(Fields, frozen=True):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock] = ""


class ToolFields(Fields, frozen=True):
    """A tool."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: Annotated[Literal["custom"], Meta(title="custom, because this server runs no tools itself")] = (
        "custom"
    )
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    defer_loading: bool = False
    allowed_callers: Sequence[str] = ()
    eager_input_streaming: Annotated[Any, ignored("tools[].eager_input_streaming")] = None
    cache_control: Annotated[Any, ignored("cache_control")] = None

    def __post_init__(self) -> None:
        if self.defer_loading:
            raise ValueError("defer_loading=true: this server has no search of tools: leave it out")
        if self.allowed_callers and "direct" not in self.allowed_callers:
            raise ValueError(
                f"allowed_callers={brief(self.allowed_callers)}: must have 'direct', because this server runs no code"
            )


class ToolChoiceFields(Fields, frozen=True):
    """The field ``tool_choice``."""

    type: Literal["auto", "any", "none", "tool"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool = False

    def __post_init__(self) -> None:
        if self.type != "none" and (self.type == "tool") != (self.name is not None):
            raise ValueError(f"name={self.name!r}: the type tool needs a name, and other types have no name")


class ThinkingFields(Fields, frozen=True):
    """The field ``thinking``."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[Any, ignored("thinking.budget_tokens")] = None
    display: Annotated[Any, ignored("thinking.display")] = None


class OutputFormat(Fields, frozen=True):
    """The JSON schema of an answer."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Fields, frozen=True):
    """The field ``output_config``."""

    format: OutputFormat | None = None
    effort: str | None = None


class MessagesFields(ModelFields, frozen=True, kw_only=True):
    """Fields of a conversation."""

    messages: Annotated[list[MessageFields], Meta(min_length=1)]
    system: str | list[TextBlock] = ""
    tools: Annotated[Sequence[ToolFields], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: ToolChoiceFields = ToolChoiceFields()
    thinking: ThinkingFields | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None


class GenerateMessageFields(MessagesFields, frozen=True, kw_only=True):
    """Fields of a request for a message."""

    stream: bool = False


THREAD = "thread"
"""The field for a conversation that the server keeps. Each request here has its whole conversation."""
IGNORED = frozenset(
    {
        *("metadata", "service_tier", "cache_control", "context_management", "diagnostics"),
        *("speed", "inference_geo", "billing_policy", "fallback_credit_token", "fallbacks"),
    }
)
UNSUPPORTED: dict[str, Any] = {"container": "", "mcp_servers": [], "compaction": None, THREAD: None}
MESSAGE = BodyType(
    GenerateMessageFields,
    BodyRules(
        options=generation_options("watch", *LOGPROBS, "probes"),
        renamed={"max_tokens": "max_new_tokens", "stop_sequences": "stop"},
        defaults=OPENAI_DEFAULTS,
        ignored=IGNORED,
        only=UNSUPPORTED,
    ),
    required=("max_tokens",),
)
COUNT = BodyType(
    MessagesFields,
    BodyRules(
        ignored=IGNORED
        | {
            "output_format",
            "output_config.format",
            "tools[].strict",
            "tool_choice.disable_parallel_tool_use",
        },
        only=UNSUPPORTED,
    ),
)
