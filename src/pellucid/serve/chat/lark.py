"""Grammars in Lark's form, as llguidance reads it: texts with control tokens in them, and JSON schemas.

A grammar's regular expressions match no control token, so these are named by their ids.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import regex  # type: ignore[import-untyped]

from pellucid.errors import InvalidRequest
from pellucid.sample.grammars import schema
from pellucid.sample.grammars.grammar import JSON, compiled
from pellucid.serve.shape import closed
from pellucid.tokenize import Tokenizer

ANYTHING = r"/(.|\n)*/"


class LarkBuilder:
    """Collects the rules of a grammar for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rules = dict[str, str]()
        self._ids = tokenizer.vocabulary.special_tokens
        self._special = _any_of(tuple(filter(None, self._ids))) if self._ids else None

    def text(self, literal: str) -> str:
        """An expression for a literal text."""
        parts, end = list[str](), 0
        for found in self._special.finditer(literal) if self._special else ():
            plain = literal[end : found.start()]
            parts += [json.dumps(plain)] * bool(plain) + [f"<[{self._ids[found[0]]}]>"]
            end = found.end()
        plain = literal[end:]
        return " ".join([*parts, *([json.dumps(plain)] * (bool(plain) or not parts))])

    def is_special(self, literal: str) -> bool:
        """Whether a literal is a control token."""
        return self.text(literal).startswith("<[")

    def up_to(self, literal: str) -> str:
        """An expression for any text that ends with the first occurrence of a literal."""
        if self.is_special(literal):
            return f"{ANYTHING} {self.text(literal)}"
        quoted = "".join(f"\\x{ord(c):02x}" if ord(c) < 128 else f"\\u{{{ord(c):x}}}" for c in literal)
        return self.rule("up_to", rf"/(.|\n)*{quoted}/", "[lazy]")

    def json(self, name: str, value: Any) -> str:
        """An expression for JSON of a schema, whose objects are closed (``serve/shape.py``).

        Raises:
            InvalidRequest: it is no schema that can be enforced; the message begins with ``name``.
        """
        checked = checked_schema(name, closed(value))
        if isinstance(checked, Mapping):
            given = checked.get("x-guidance")
            checked = {**checked, "x-guidance": {**(given if isinstance(given, Mapping) else {}), **JSON}}
        return self.rule("json", f"%json {json.dumps(checked)}")

    def rule(self, name: str, expression: str, options: str = "") -> str:
        """A rule for an expression; its name."""
        key = options + ": " + expression
        if key not in self._rules:
            self._rules[key] = f"{name}_{len(self._rules)}"
        return self._rules[key]

    def grammar(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *(name + rule for rule, name in self._rules.items()), ""])


@functools.lru_cache(maxsize=8)
def _any_of(texts: tuple[str, ...]) -> regex.Pattern[str]:
    """A pattern for one of several texts, the longest that fits."""
    return regex.compile(r"\L<texts>", texts=texts)


def checked_schema(name: str, value: Any) -> Any:
    """A JSON schema, checked.

    Raises:
        InvalidRequest: it is none that can be enforced; the message begins with ``name``.
    """
    checked = json.loads(schema.read(name, value))
    try:
        compiled("json_schema", value)
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("json_schema", name, 1)) from None
    return checked


def either(*expressions: str) -> str:
    """An expression for one of several."""
    return f"({' | '.join(expressions)})" if len(expressions) > 1 else expressions[0]
