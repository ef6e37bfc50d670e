"""Anthropic's API: messages as blocks of text, thinking and tool calls, and token counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Usage
from pellucid.errors import InvalidRequest, brief
from pellucid.serve.api import NAMED_SSE, NO_DETAILS, Api, ErrorDetails, Events
from pellucid.serve.chat.answer_parser import AnswerReasoning, AnswerText, CallStart, Part
from pellucid.serve.chat.chat_run import ChatRun, ChatRunRequest, Conversation, prompt_of
from pellucid.serve.chat.messages import MAX_TOOLS, NO_PARAMETERS, Tool, ToolChoice, tool, tool_choice
from pellucid.serve.generation_options import LOGPROBS, OPENAI_DEFAULTS, generation_options, ignored
from pellucid.serve.openai_parts import receipt_field
from pellucid.serve.request_body import BodyRules, BodyType, Fields, ModelFields, RequestBody
from pellucid.serve.routes import Tokens, generating_route, model_route


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


def conversation_of(body: RequestBody[Any], recommended: Mapping[str, Any], *, counts: bool = False) -> Conversation:
    """Conversation of a body with ``MessagesFields``.

    With ``counts``, the request only counts tokens: it may omit ``max_tokens``, and the answer's schema is ignored.
    """
    fields: MessagesFields = body.fields
    messages = [{"role": "system", "content": _text(fields.system)}] if fields.system else []
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
    tools = list[Tool]()
    for at, one in enumerate(given):
        schema = one.input_schema
        if one.input_examples:  # the model sees the examples in the schema
            schema = {**(schema or NO_PARAMETERS), "examples": one.input_examples}
        tools.append(tool(f"tools[{at}]", one.name, one.description, schema, one.strict))
    if choice.type == "none":
        return [], ToolChoice()
    if choice.name is not None:
        return tools, tool_choice(tools, [choice.name], required=True, parallel=False)  # exactly one call
    return tools, tool_choice(tools, None, choice.type == "any", not choice.disable_parallel_tool_use)


def _answer_schema(fields: MessagesFields) -> Any:
    """JSON schema of the answer, from ``output_config.format`` or the older field; None: any text."""
    output_format, older = fields.output_config.format, fields.output_format
    if output_format is not None and older is not None:
        raise InvalidRequest("output_format does not go with output_config.format: leave output_format out")
    chosen = output_format or older
    return chosen and chosen.schema


ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's error type for each HTTP status. Source: https://docs.anthropic.com/en/api/errors"""


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    if details.param == THREAD:
        # Anthropic's client then sends its requests again without the field.
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": [THREAD]}
    return {"type": "error", "error": error}


@dataclass(frozen=True)
class MessageRequest(ChatRunRequest):
    """A Messages request that runs on the engine."""

    @classmethod
    def of(cls, body: RequestBody[GenerateMessageFields], llm: BaseLLM[Any]) -> MessageRequest:
        return cls(ChatRun(llm, conversation_of(body, llm.recommended)))

    def answer(self, name: str, number: str) -> dict[str, Any]:
        (generation,) = self.run.group.results()
        answer = self.run.answer(generation)
        content = [_thinking(answer.reasoning)] if answer.reasoning else []
        if answer.text:
            content.append(_text_block(answer.text))
        content += [_tool_use(one.id, one.name, one.as_object) for one in answer.calls]
        reason = _reason(generation.finish_reason, generation.stop_reason, bool(answer.calls))
        ended = {**reason, "usage": self._usage(generation.usage, answer.reasoning), **receipt_field(generation)}
        return {**_message(name, number), "content": content, **ended}

    async def stream(self, name: str, number: str, tokens: Tokens) -> Events:
        blocks, reasoning, unread = BlockEvents(), "", Usage(len(self.run.group.prompt), 0, 0)
        none = {**_reason(None, None, False), "usage": self._usage(unread, "")}
        yield {"type": "message_start", "message": {**_message(name, number), "content": [], **none}}
        async for token in tokens:
            for part in token.parts:
                reasoning += part.text if isinstance(part, AnswerReasoning) else ""
                for event in blocks.of(part):
                    yield event
        for event in blocks.end():
            yield event
        (generation,) = self.run.group.results()
        delta = _reason(generation.finish_reason, generation.stop_reason, blocks.called)
        used = {"usage": self._usage(generation.usage, reasoning), **receipt_field(generation)}
        yield {"type": "message_delta", "delta": delta, **used}
        yield {"type": "message_stop"}

    def _usage(self, usage: Usage, reasoning: str) -> dict[str, Any]:
        """Token counts. ``input_tokens`` excludes the prompt tokens that the prefix cache had."""
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": None,
            "output_tokens": usage.generated_tokens,
            "output_tokens_details": {"thinking_tokens": self.run.tokens(reasoning)},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }


class BlockEvents:
    """Turns the parts of an answer into the events of content blocks, one block after another."""

    def __init__(self) -> None:
        self.called = False
        self._number, self._kind = -1, ""

    def of(self, part: Part) -> list[dict[str, Any]]:
        if isinstance(part, CallStart):
            self.called = True
            return self._begin(_tool_use(part.id, part.name, {}))
        if isinstance(part, AnswerText):
            begin = [] if self._kind == "text" else self._begin(_text_block(""))
            return [*begin, self._delta({"type": "text_delta", "text": part.text})]
        if isinstance(part, AnswerReasoning):
            begin = [] if self._kind == "thinking" else self._begin(_thinking(""))
            return [*begin, self._delta({"type": "thinking_delta", "thinking": part.text})]
        return [self._delta({"type": "input_json_delta", "partial_json": part.text})]

    def end(self) -> list[dict[str, Any]]:
        """Event that ends the open block; none if no block is open."""
        if not self._kind:
            return []
        self._kind = ""
        return [{"type": "content_block_stop", "index": self._number}]

    def _begin(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        ended = self.end()
        self._number, self._kind = self._number + 1, block["type"]
        return [*ended, {"type": "content_block_start", "index": self._number, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._number, "delta": delta}


def _message(name: str, number: str) -> dict[str, Any]:
    about = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": name}
    return {**about, "container": None, "stop_details": None}


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": []}  # Vercel's client refuses null


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(number: str, name: str, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": number, "name": name, "input": given, "caller": {"type": "direct"}}


def _reason(reason: str | None, stop: int | str | None, called: bool) -> dict[str, Any]:
    """Stop reason and stop sequence in Anthropic's form."""
    if reason is None:
        return {"stop_reason": None, "stop_sequence": None}
    if reason == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    ended = "tool_use" if called else "end_turn"
    return {"stop_reason": ended if reason in ("stop", "until", "probe") else "max_tokens", "stop_sequence": None}


def _counted(body: RequestBody[MessagesFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    return {"input_tokens": len(prompt_of(llm, conversation_of(body, {}, counts=True), any_length=True))}


ANTHROPIC = Api(
    "anthropic",
    {
        "POST /v1/messages": generating_route("Answer a conversation.", MESSAGE, MessageRequest.of, NAMED_SSE),
        "POST /v1/messages/count_tokens": model_route("Count a conversation's tokens.", COUNT, _counted),
    },
    error_body,
    prefixes=("/v1/messages",),
)
