"""A model's text as parts: reasoning, text for the user, tool calls."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pellucid.engine.output import TokenOutput
from pellucid.serve.chat.call_format import Answer, CallFormat
from pellucid.serve.chat.messages import Tool
from pellucid.serve.chat.text_parser import Parse

# The marks of reasoning: the texts before and after a model's reasoning, such as <think> and </think>.
#
# The reasoning comes before the answer.


@dataclass(frozen=True)
class ReasoningMarks:
    """Texts before and after a model's reasoning."""

    open: str
    close: str


KNOWN = (
    ReasoningMarks("<think>", "</think>"),
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|channel>thought\n", "<channel|>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),
)


def reasoning_marks(template: str) -> ReasoningMarks | None:
    """The marks that a chat template contains; None if it contains no known marks."""
    return next((marks for marks in KNOWN if marks.close in template), None)


def is_open(prompt_end: str, marks: ReasoningMarks) -> bool:
    """True if the prompt has begun the reasoning, because the prompt ends with the opening mark."""
    return prompt_end.rstrip().endswith(marks.open.rstrip())


def is_closed(prompt_end: str, marks: ReasoningMarks) -> bool:
    """True if the answer has no reasoning, because the prompt ends with the closing mark."""
    return prompt_end.rstrip().endswith(marks.close)


@dataclass(frozen=True)
class AnswerText:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class AnswerReasoning:
    """Reasoning of the model."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """Start of tool call ``number`` to the tool ``name``."""

    number: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More JSON of the arguments of tool call ``number``."""

    number: int
    text: str


Part: TypeAlias = "AnswerText | AnswerReasoning | CallStart | CallArguments"


class AnswerParser(Answer):
    """Parses an answer incrementally.

    ``begun`` is True if the prompt ends with the text that opens the reasoning. If ``calls`` is None, the answer has no
    tool calls.
    """

    def __init__(
        self, reasoning: ReasoningMarks | None, begun: bool, calls: CallFormat | None, tools: Mapping[str, Tool]
    ) -> None:
        self.tools = tools
        self._reasoning, self._begun, self._calls = reasoning, begun, calls
        self._parts, self._space, self._stripped, self._count = list[Part](), "", False, 0
        self._kind: type[Part] | None = None
        super().__init__()

    def push(self, text: str, *, last: bool = False) -> list[Part]:
        """Parse more text. Returns the parts that later text cannot change."""
        self.feed(text, last=last)
        if last:
            self._flush()
        parts, self._parts = self._parts, []
        return parts

    def parse(self) -> Parse[None]:
        marks = self._reasoning
        if marks is not None and (self._begun or (yield from self._opened(marks))):
            self._stripped = True
            yield from self.until(marks.close, self.reasoning)
            self._space, self._stripped = "", True
        if self._calls is not None:
            yield from self._calls.read(self)
        else:
            yield from self.rest(self.text)

    def _opened(self, marks: ReasoningMarks) -> Parse[bool]:
        """Read the text that opens the reasoning. True if the answer begins with reasoning."""
        while not self._text.strip() and (yield from self.more()):
            pass
        spaces = self._text[: len(self._text) - len(self._text.lstrip())]
        self._text = self._text[len(spaces) :]
        opened = yield from self.expect(marks.open)
        if not opened:
            self._text = spaces + self._text
        return opened

    def text(self, text: str) -> None:
        """Add text. White space at its end is held back until more text follows. A tool call drops this white space."""
        self._add(AnswerText, text)

    def reasoning(self, text: str) -> None:
        self._add(AnswerReasoning, text)

    def call(self, name: str) -> None:
        self._space = ""
        id_length = self._calls.id_length if self._calls else None
        call_id = f"call_{secrets.token_hex(12)}" if id_length is None else secrets.token_hex(id_length)[:id_length]
        self._parts.append(CallStart(self._count, call_id, name))
        self._count += 1

    def arguments(self, text: str) -> None:
        self._parts.append(CallArguments(self._count - 1, text))

    def _add(self, kind: type[AnswerText] | type[AnswerReasoning], text: str) -> None:
        if kind is not self._kind:
            self._space, self._kind = "", kind
        pending = self._space + text
        if self._stripped:
            pending = pending.lstrip()
        stripped = pending.rstrip()
        self._space = pending[len(stripped) :]
        if stripped:
            self._stripped = False
            self._parts.append(kind(stripped))

    def _flush(self) -> None:
        if self._space and not self._count and self._kind is AnswerText:
            self._parts.append(AnswerText(self._space))
        self._space = ""


@dataclass
class AssembledCall:
    """A complete tool call."""

    id: str
    name: str
    arguments: str = ""

    @property
    def as_object(self) -> Any:
        """Arguments as an object. It is empty if the answer was cut off inside the arguments."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return {}


@dataclass
class ChatAnswer:
    """A complete answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[AssembledCall] = field(default_factory=list)


def assemble(parts: Iterable[Part]) -> ChatAnswer:
    """Join the parts of an answer."""
    answer = ChatAnswer()
    for part in parts:
        if isinstance(part, AnswerText):
            answer.text += part.text
        elif isinstance(part, AnswerReasoning):
            answer.reasoning += part.text
        elif isinstance(part, CallStart):
            answer.calls.append(AssembledCall(part.id, part.name))
        else:
            answer.calls[part.number].arguments += part.text
    return answer


async def parsed(
    running: AsyncGenerator[TokenOutput, None], parsers: Sequence[AnswerParser]
) -> AsyncGenerator[tuple[TokenOutput, list[Part]], None]:
    """Each token with the parts that it completes. Without ``parsers``, a token's text is its only part."""
    async with aclosing(running) as outputs:
        async for token in outputs:
            if parsers:
                yield token, parsers[token.sequence].push(token.text, last=token.finish_reason is not None)
            else:
                yield token, [AnswerText(token.text)] if token.text else []
