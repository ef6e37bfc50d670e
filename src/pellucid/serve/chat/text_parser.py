"""An incremental parser, written as if the complete text were available.

Its methods are generators. They yield when they need more text, as in ``yield from self.until("</think>", out)``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

import regex  # type: ignore[import-untyped]

T = TypeVar("T")
Parse: TypeAlias = Generator[None, None, T]


class TextParser:
    """Base of incremental parsers. A subclass implements ``parse``."""

    def __init__(self) -> None:
        self._text, self._closed = "", False
        self._running: Parse[None] | None = self.parse()

    def parse(self) -> Parse[None]:
        """Parse the text from its beginning to its end."""
        raise NotImplementedError

    def feed(self, text: str, *, last: bool = False) -> None:
        """Continue parsing with more text. ``last`` is True if no more text follows."""
        self._text, self._closed = self._text + text, last
        if self._running is not None:
            try:
                next(self._running)
            except StopIteration:
                self._running, self._text = None, ""

    def more(self) -> Parse[bool]:
        """Wait for more text. False if the text has ended."""
        if self._closed:
            return False
        yield
        return True

    def match(self, pattern: regex.Pattern[str]) -> Parse[regex.Match[str] | None]:
        """Consume a match at the current position and return it; None if the pattern does not match there.

        Waits for more text while more text could change the match.
        """
        while True:
            match = pattern.match(self._text, partial=True)
            undecided = match and (match.partial or match.end() == len(self._text))
            if undecided and (yield from self.more()):
                continue
            if not match or match.partial:
                return None
            self._text = self._text[match.end() :]
            return match

    def expect(self, literal: str) -> Parse[bool]:
        """Consume a literal at the current position. False if the text differs."""
        while len(self._text) < len(literal) and literal.startswith(self._text):
            if not (yield from self.more()):
                return False
        if not self._text.startswith(literal):
            return False
        self._text = self._text[len(literal) :]
        return True

    def until(self, literal: str, out: Callable[[str], object]) -> Parse[bool]:
        """Pass text to ``out`` up to a literal, and consume the literal. False if the text ends without it."""
        while True:
            if (at := self._text.find(literal)) >= 0:
                self._hand_on(at, out)
                self._text = self._text[len(literal) :]
                return True
            held = next(
                length
                for length in range(min(len(literal) - 1, len(self._text)), -1, -1)
                if self._text.endswith(literal[:length])
            )
            self._hand_on(len(self._text) - held, out)
            if not (yield from self.more()):
                self._hand_on(len(self._text), out)
                return False

    def search(self, pattern: regex.Pattern[str], out: Callable[[str], object]) -> Parse[regex.Match[str] | None]:
        """Pass text to ``out`` up to the first match, and consume the match. None if the text ends without a match."""
        while True:
            match = pattern.search(self._text, partial=True)
            if match and not match.partial:
                self._hand_on(match.start(), out)
                self._text = self._text[len(match[0]) :]
                return match
            self._hand_on(match.start() if match else len(self._text), out)
            if not (yield from self.more()):
                self._hand_on(len(self._text), out)
                return None

    def rest(self, out: Callable[[str], object]) -> Parse[None]:
        """Pass all remaining text to ``out``."""
        while True:
            self._hand_on(len(self._text), out)
            if not (yield from self.more()):
                return

    def json_object(self, out: Callable[[str], object]) -> Parse[None]:
        """Pass the JSON object at the current position to ``out``, unchanged."""
        depth, quoted, escaped = 0, False, False
        while True:
            for at, character in enumerate(self._text):
                if escaped:
                    escaped = False
                elif quoted:
                    quoted, escaped = character != '"', character == "\\"
                elif character == '"':
                    quoted = True
                else:
                    depth += (character in "{[") - (character in "}]")
                    if depth == 0 and not character.isspace():
                        self._hand_on(at + 1, out)
                        return
            self._hand_on(len(self._text), out)
            if not (yield from self.more()):
                return

    def _hand_on(self, length: int, out: Callable[[str], object]) -> None:
        if length:
            out(self._text[:length])
            self._text = self._text[length:]
