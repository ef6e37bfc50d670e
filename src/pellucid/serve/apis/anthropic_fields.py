"""Fields of Anthropic's Messages API, and its messages as a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.chat_run import Conversation
from pellucid.serve.chat.messages import MAX_TOOLS, NO_PARAMETERS, Tool, ToolChoice, tool, tool_choice
from pellucid.serve.generation_options import LOGPROBS, OPENAI_DEFAULTS, generation_options
from pellucid.serve.ignored_fields import ignored
from pellucid.serve.request_body import BodyRules, BodyType, Fields, ModelFields, RequestBody

# Fields of the Messages API's request bodies.
#
# Source: https://docs.anthropic.com/en/api/messages


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
    type: Annotated[Literal["custom"], Meta(title="custom, because this server runs no tools itself")] = "custom"
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
        | {"output_format", "output_config.format", "tools[].strict", "tool_choice.disable_parallel_tool_use"},
        only=UNSUPPORTED,
    ),
)


# Converts request bodies of Anthropic's Messages API to conversations.


def conversation_of(body: RequestBody[Any], recommended: Mapping[str, Any], *, counts: bool = False) -> Conversation:
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
    return Conversation(messages, options, 1, tools, choice, schema, "output_format", variables, continues_last)


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
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)})
    converted: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if thoughts:
        converted["reasoning_content"] = "\n".join(thoughts)
    if calls:
        converted["tool_calls"] = calls
    return results if results and not texts else [*results, converted]


def _tools(given: Sequence[ToolFields], choice: ToolChoiceFields) -> tuple[list[Tool], ToolChoice]:
    """The tools that the model sees, and the tools that it may call."""
    tools = [
        tool(f"tools[{at}]", one.name, one.description, _parameters(one), one.strict) for at, one in enumerate(given)
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
