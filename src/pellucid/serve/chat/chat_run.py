"""A conversation as an engine request, for every API: its prompt, its grammar, and the parsing of its answers."""

from __future__ import annotations

import functools
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex  # type: ignore[import-untyped]

from pellucid.base_llm import BaseLLM
from pellucid.engine.output import Generation, TokenOutput
from pellucid.engine.request import Request
from pellucid.errors import InvalidRequest, TemplateError
from pellucid.sample.step import options_of
from pellucid.sample.steps.forbidden import Constraint
from pellucid.serve.chat.answer_parser import (
    AnswerParser,
    ChatAnswer,
    Part,
    ReasoningMarks,
    assemble,
    is_closed,
    is_open,
    parsed,
    reasoning_marks,
)
from pellucid.serve.chat.call_format import SLOTS, CallFormat, LarkBuilder, known_formats
from pellucid.serve.chat.messages import Tool, ToolChoice, template_messages
from pellucid.serve.generation_options import add_stop_tokens
from pellucid.tokenize import Tokenizer

# The model's format of tool calls and reasoning: it is seen in a rendered conversation with a call.

NAME, ARGUMENTS = "lookup", {"city": "Paris", "days": 1}
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Looks it up.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": list(ARGUMENTS),
        },
    },
}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
]
"""A conversation with a tool call."""


@dataclass(frozen=True)
class ChatStyle:
    """A model's format of tool ``calls`` and ``reasoning``. ``calls`` is None if the template has no known tool format.

    ``kept`` are control tokens that must stay in the decoded text for parsing. ``ends`` are tokens that end an answer.
    ``has_developer`` is True if the template knows the role "developer".
    """

    calls: CallFormat | None
    reasoning: ReasoningMarks | None
    kept: tuple[int, ...]
    ends: tuple[int, ...]
    has_developer: bool

    @property
    def reasons(self) -> bool:
        """True if answers may have reasoning."""
        return self.reasoning is not None or (self.calls is not None and self.calls.always)


_styles: weakref.WeakKeyDictionary[Tokenizer, ChatStyle] = weakref.WeakKeyDictionary()


def chat_style(tokenizer: Tokenizer) -> ChatStyle:
    """Style of a tokenizer's chat template, cached for each tokenizer."""
    if tokenizer not in _styles:
        _styles[tokenizer] = _found(tokenizer)
    return _styles[tokenizer]


def _found(tokenizer: Tokenizer) -> ChatStyle:
    source = tokenizer.chat_template or ""
    try:
        written = tokenizer.apply_chat_template(PROBE, tools=[TOOL], add_generation_prompt=False)
    except TemplateError:
        written = ""
    calls = call_format(source, written)
    reasoning = None if calls and calls.always else reasoning_marks(source)
    literals = [*(calls.literals if calls else ()), *((reasoning.open, reasoning.close) if reasoning else ())]
    special = tokenizer.vocabulary.special_tokens
    kept = [token for text, token in special.items() if text and any(text in literal for literal in literals)]
    ends = [special[text] for text in (calls.ends if calls else ()) if text in special]
    return ChatStyle(calls, reasoning, tuple(kept), tuple(ends), "developer" in source)


def call_format(source: str, written: str) -> CallFormat | None:
    """Format of the calls of a chat template. ``written`` is the template's rendering of `PROBE`."""
    if "tools" not in source:
        return None
    formats = known_formats().values()
    matches = [(pattern, one) for one in formats if (pattern := call_pattern(one)).search(written)]
    # Take the longest match, because a format may match only the end of another format's call.
    if matches:
        return max(matches, key=lambda one: len(one[0].pattern))[1]
    return next((one for one in formats if one.marks and all(mark in source for mark in one.marks)), None)


@functools.cache
def call_pattern(calls: CallFormat) -> regex.Pattern[str]:
    """Pattern of the call in `PROBE`, in the given format."""
    pattern = regex.escape(calls.written_call(NAME, ARGUMENTS), literal_spaces=True)
    for slot, one in SLOTS.items():
        pattern = pattern.replace(regex.escape(slot), one)
    return regex.compile(pattern)


# A conversation as an engine request, for every API: its prompt, its grammar, and the parsing of its answers.

SPACE = r"/[ \n]{0,4}/"
PROMPT_END = 32  # number of last tokens of a prompt; they show whether the prompt begins the reasoning


@dataclass(frozen=True)
class Conversation:
    """A chat request in the form that all APIs share.

    The model sees all ``tools`` and may call the tools of ``choice``. ``answer_schema`` is a JSON schema for the text
    of the answer. If ``answer_schema`` is None, any text is allowed. ``schema_field`` is the name of the request field
    that holds the schema. Error messages contain this name. ``variables`` are extra variables of the chat template.
    ``continues_last`` is True if the answer continues the last message. ``options`` configure the generation.
    ``prefix`` are tokens before the messages.
    """

    messages: Any
    options: Mapping[str, Any]
    count: int = 1
    tools: Sequence[Tool] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    answer_schema: Any = None
    schema_field: str = "response_format"
    variables: Mapping[str, Any] = field(default_factory=dict)
    continues_last: bool = False
    prefix: Sequence[int] = ()


def prompt_of(llm: BaseLLM[Any], conversation: Conversation, *, any_length: bool = False) -> list[int]:
    """Tokens of a conversation. They must leave room for an answer, unless ``any_length`` is set."""
    ids = llm.inputs.prompt(*template_input(llm, conversation), any_length=any_length)
    again = bool(conversation.prefix) and ids[0] == llm.tokenizer.bos_id
    return [*conversation.prefix, *ids[again:]]


def template_input(llm: BaseLLM[Any], conversation: Conversation) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and extra variables for the chat template.

    Raises: as ``prompt_of``.
    """
    style = chat_style(llm.tokenizer)
    if conversation.tools and style.calls is None:
        raise InvalidRequest(
            "tools: this model's chat template has no tools, or an unknown format of tool calls: leave tools out"
        )
    messages = template_messages(conversation.messages, has_developer=style.has_developer)
    variables = dict(conversation.variables)
    if conversation.tools:
        variables["tools"] = [dict(one.template_form) for one in conversation.tools]
    if conversation.continues_last:
        variables["continue_final_message"] = True
    return messages, variables


class ChatRun:
    """A conversation that a model answers ``count`` times. The constructor raises the errors of the request."""

    def __init__(self, llm: BaseLLM[Any], conversation: Conversation) -> None:
        style, ids = chat_style(llm.tokenizer), prompt_of(llm, conversation)
        end = llm.tokenizer.decode(ids[-PROMPT_END:], skip_special=False)
        marks = style.reasoning
        self._marks = None if conversation.continues_last or (marks and is_closed(end, marks)) else marks
        self._begun = self._marks is not None and is_open(end, self._marks)
        self._tools = {one.name: one for one in conversation.choice.tools}
        parses_calls = style.calls is not None and (bool(self._tools) or style.calls.always)
        self._calls: CallFormat | None = style.calls if parses_calls else None
        self.count, self.tokenizer = conversation.count, llm.tokenizer
        self.group = llm.request(ids, conversation.count, **self._options(llm, style, conversation))

    def _options(self, llm: BaseLLM[Any], style: ChatStyle, conversation: Conversation) -> dict[str, Any]:
        options = dict(conversation.options)
        given = [name for name in options_of(Constraint) if options.get(name) is not None]
        constrained = [
            *(["tools"] if conversation.choice.tools else []),
            *([conversation.schema_field] if conversation.answer_schema is not None else []),
        ]
        if given and constrained:
            raise InvalidRequest(f"{given[0]} does not go with {constrained[0]}: remove one of the two")
        if self._marks or self._calls:
            options.setdefault("keep_special", style.kept)
        if self._calls:
            add_stop_tokens(options, style.ends)
        if constrained:
            build = LarkBuilder(llm.tokenizer)
            field, schema = conversation.schema_field, conversation.answer_schema
            shape = None if schema is None else build.json(field, schema)
            body = self._calls.grammar(build, conversation.choice, shape) if self._calls else shape
            assert body is not None
            options["grammar"] = build.grammar(self._reasoned(build, body))
        return options

    def _reasoned(self, build: LarkBuilder, body: str) -> str:
        """Grammar expression for an answer with its reasoning."""
        if self._marks is None:
            return body
        thought = f"{build.up_to(self._marks.close)} {SPACE}"
        return f"{thought} {body}" if self._begun else f"({build.text(self._marks.open)} {thought})? {body}"

    def parser(self) -> AnswerParser:
        """A new parser for one answer."""
        return AnswerParser(self._marks, self._begun, self._calls, self._tools)

    def parsers(self) -> list[AnswerParser]:
        """A new parser for each answer."""
        return [self.parser() for _ in range(self.count)]

    def answer(self, generation: Generation) -> ChatAnswer:
        """Parse a finished answer."""
        return assemble(self.parser().push(generation.text, last=True))

    def tokens(self, reasoning: str) -> int:
        """Number of tokens of a reasoning text."""
        return len(self.tokenizer.encode(reasoning, add_special=False)) if reasoning else 0

    def stream(self) -> AsyncGenerator[tuple[TokenOutput, list[Part]], None]:
        """Run the request. Yields each token with the parts that it completes.

        Raises:
            QueueFull: the queue is full. The call itself raises this error, before the iteration begins.
        """
        return parsed(self.group.stream(), self.parsers())


@dataclass(frozen=True)
class ChatRunRequest:
    """A request with one conversation, in any API."""

    run: ChatRun

    @property
    def groups(self) -> list[Request]:
        return [self.run.group]

    def parsers(self) -> list[AnswerParser]:
        return self.run.parsers()
