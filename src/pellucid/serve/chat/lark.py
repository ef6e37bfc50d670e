"""Grammars in llguidance's Lark form: text with control tokens, and JSON schemas.

Regular expressions of a grammar do not match control tokens, so the grammar names control tokens by id.
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
from pellucid.serve.json_schema import closed
from pellucid.tokenize import Tokenizer

ANYTHING = r"/(.|\n)*/"


class LarkBuilder:
    """Collects the rules of a grammar for a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rules = dict[str, str]()
        self._ids = tokenizer.vocabulary.special_tokens
        self._special = _any_of(tuple(filter(None, self._ids))) if self._ids else None

    def text(self, literal: str) -> str:
        """Expression for a literal text."""
        parts, end = list[str](), 0
        for match in self._special.finditer(literal) if self._special else ():
            plain = literal[end : match.start()]
            parts += [json.dumps(plain)] * bool(plain) + [f"<[{self._ids[match[0]]}]>"]
            end = match.end()
        plain = literal[end:]
        return " ".join([*parts, *([json.dumps(plain)] * (bool(plain) or not parts))])

    def is_special(self, literal: str) -> bool:
        """True if a literal begins with a control token."""
        return self.text(literal).startswith("<[")

    def up_to(self, literal: str) -> str:
        """Expression for any text up to and including the first occurrence of a literal."""
        if self.is_special(literal):
            return f"{ANYTHING} {self.text(literal)}"
        quoted = "".join(f"\\x{ord(c):02x}" if ord(c) < 128 else f"\\u{{{ord(c):x}}}" for c in literal)
        return self.rule("up_to", rf"/(.|\n)*{quoted}/", "[lazy]")

    def json(self, name: str, value: Any) -> str:
        """Expression for JSON that follows a schema. The schema's objects are closed (``serve/json_schema.py``)."""
        checked = checked_schema(name, closed(value))
        if isinstance(checked, Mapping):
            given = checked.get("x-guidance")
            checked = {**checked, "x-guidance": {**(given if isinstance(given, Mapping) else {}), **JSON}}
        return self.rule("json", f"%json {json.dumps(checked)}")

    def rule(self, name: str, expression: str, options: str = "") -> str:
        """Add a rule for an expression, and return the rule's name."""
        key = options + ": " + expression
        if key not in self._rules:
            self._rules[key] = f"{name}_{len(self._rules)}"
        return self._rules[key]

    def grammar(self, start: str) -> str:
        """The complete grammar with the start expression ``start``."""
        return "\n".join([f"start: {start}", *(name + rule for rule, name in self._rules.items()), ""])


@functools.lru_cache(maxsize=8)
def _any_of(texts: tuple[str, ...]) -> regex.Pattern[str]:
    """Pattern that matches the longest of several texts."""
    return regex.compile(r"\L<texts>", texts=texts)


def checked_schema(name: str, value: Any) -> Any:
    """Check a JSON schema and return it."""
    checked = json.loads(schema.read(name, value))
    try:
        compiled("json_schema", value)
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("json_schema", name, 1)) from None
    return checked


def either(*expressions: str) -> str:
    """Expression for one of several alternatives."""
    return f"({' | '.join(expressions)})" if len(expressions) > 1 else expressions[0]
