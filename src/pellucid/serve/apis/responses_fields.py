"""Fields of the Responses API: its input as a conversation, and truncation to the context.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, field

from pellucid.base_llm import BaseLLM
from pellucid.errors import ContextOverflow
from pellucid.serve.apis.openai_chat import FlatResponseFormat, FlatToolChoiceValue, choice_of
from pellucid.serve.chat.chat_run import Conversation, prompt_of
from pellucid.serve.chat.messages import (
    MAX_TOOLS,
    Content,
    FunctionFields,
    OutputTextContent,
    TextContent,
    joined_texts,
    tool_of,
)
from pellucid.serve.generation_options import LOGPROBS, OPENAI_DEFAULTS, generation_options, ignored
from pellucid.serve.request_body import BodyRules, BodyType, Count, Fields, ModelFields, RequestBody
from pellucid.serve.response_store import OwnResponses


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
    Annotated[TextContent | SummaryContent | ReasoningContent, Meta(extra_json_schema={"default": {"type": "text"}})]
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
            {*("include", "service_tier", "prompt_cache_options", "prompt_cache_retention"), "context_management"}
        ),
        only={"conversation": "", "background": False, "prompt": {}, "top_logprobs": 0, "moderation": None},
    ),
)
COUNT = BodyType(
    InputFields,
    BodyRules(ignored=frozenset({"text", "parallel_tool_calls", "tools[].strict"}), only={"conversation": ""}),
)


THOUGHTS = (None, "reasoning_text", "summary_text", "text")
"""Types of reasoning parts."""
REASONING = {"role", "content", "reasoning_content"}
"""Keys of a message that so far holds only reasoning."""


def items_of(given: str | list[Mapping[str, Any]], own: OwnResponses) -> list[Mapping[str, Any]]:
    """Items of the raw field ``input``. Referenced items are looked up in the client's ``own`` responses."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [own.item(one["id"]) if one.get("type") == "item_reference" else one for one in given]


def conversation_of(
    body: RequestBody[Any],
    items: Sequence[Mapping[str, Any]],
    recommended: Mapping[str, Any],
    own: OwnResponses,
    schema: Any = None,
) -> Conversation:
    """Conversation of a body with ``InputFields``: earlier turns, then its ``items``. The answer follows ``schema``."""
    fields: InputFields = body.fields
    before = fields.previous_response_id
    messages = [{"role": "developer", "content": fields.instructions}] if fields.instructions else []
    for turn in own.turns(before) if before else ():
        for item in turn.items:
            _add(item, messages, f"previous_response_id={before}")
    for at, item in enumerate(items):
        _add(item, messages, f"input[{at}]")
    functions = [tool_of(f"tools[{at}]", one) for at, one in enumerate(fields.tools)]
    tools, choice = choice_of(functions, fields.tool_choice, fields.parallel_tool_calls)
    effort = fields.reasoning.effort
    variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        variables["enable_thinking"] = False
    options = body.options(recommended)
    return Conversation(messages, options, 1, tools, choice, schema, "text.format", variables)


def _add(item: Mapping[str, Any], messages: list[dict[str, Any]], where: str) -> None:
    """Add an input item to the messages. Calls and reasoning become part of the assistant's message."""
    kind = item.get("type", "message")
    if kind == "message":
        message = {"role": item.get("role"), "content": item.get("content", "")}
        if message["role"] == "assistant" and messages and set(messages[-1]) == REASONING:
            messages[-1].update(message)  # the reasoning before a message belongs to the message
        else:
            messages.append(message)
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _assistant(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output", "")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if text := joined_texts(parts, f"{where}.content", THOUGHTS):
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message for a call: the last message, or a new message if the last message has another role."""
    if not messages or messages[-1].get("role") != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


# ``truncation: "auto"``: drops the first messages of a conversation until it fits into the context.

USUAL_ROOM = 512  # tokens of room for the answer if the request does not limit it


def truncated(llm: BaseLLM[Any], conversation: Conversation) -> Conversation:
    """Drop the first messages of a conversation, as few as possible, so that the answer has room.

    The room is the request's limit of tokens (512 without a limit), but at most a quarter of the context. System
    messages at the beginning and the last message stay. A tool message is dropped with its call.
    """
    messages = list(conversation.messages)
    fixed = next((at for at, one in enumerate(messages) if one.get("role") not in ("system", "developer")), 0)
    most = conversation.options.get("max_new_tokens")
    limit = llm.context - min(most if isinstance(most, int) else USUAL_ROOM, llm.context // 4)

    def without(count: int) -> Conversation:
        return replace(conversation, messages=[*messages[:fixed], *messages[fixed + count :]])

    def fits(count: int) -> bool:
        try:
            return len(prompt_of(llm, without(count))) <= limit
        except ContextOverflow:
            return False

    if fits(0):
        return conversation
    rest = messages[fixed:]
    # The remaining messages begin with a user message if possible.
    for roles in (("user",), ("user", "assistant")):
        starts = [at for at, one in enumerate(rest) if at and one.get("role") in roles]
        if starts and fits(starts[-1]):
            return without(starts[bisect_left(starts[:-1], True, key=fits)])  # the last number fits
    raise ContextOverflow(
        f"the prompt is too long: the system messages and the last message leave less than {llm.context - limit:,} of "
        f"{llm.context:,} tokens for the answer: shorten them"
    )


def counted(body: RequestBody[InputFields], llm: BaseLLM[Any], own: OwnResponses) -> int:
    cuts = body.fields.truncation == "auto"
    conversation = conversation_of(body, items_of(body.raw["input"], own), {}, own)
    return len(prompt_of(llm, truncated(llm, conversation) if cuts else conversation, any_length=True))
