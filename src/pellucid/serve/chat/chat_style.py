"""Detects a model's format of tool calls and reasoning by rendering a conversation with a call."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any

import regex  # type: ignore[import-untyped]

from pellucid.errors import TemplateError
from pellucid.serve.chat.answer_parser import ReasoningMarks, reasoning_marks
from pellucid.serve.chat.call_format import SLOTS, CallFormat, known_formats
from pellucid.tokenize import Tokenizer

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
