"""Grammars in Lark's form, as llguidance reads it: texts with control tokens in them, and JSON schemas.

A grammar's regular expressions match no control token, so these are named by their ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.sample.grammars import schema
from pellucid.sample.grammars.grammar import JSON, compiled
from pellucid.tokenize import Tokenizer

ANYTHING = r"/(.|\n)*/"


class LarkBuilder:
    """Collects the rules of a grammar for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._rules = tokenizer, dict[str, str]()

    def text(self, literal: str) -> str:
        """An expression for a literal text."""
        if not literal:
            return '""'
        parts, plain = list[str](), ""
        special = {self._tokenizer.token_text(one): one for one in self._tokenizer.vocabulary.special_ids}
        while literal:
            found = next((one for one in special if one and literal.startswith(one)), None)
            if found is None:
                plain, literal = plain + literal[0], literal[1:]
                continue
            parts += [json.dumps(plain)] * bool(plain) + [f"<[{special[found]}]>"]
            plain, literal = "", literal[len(found) :]
        return " ".join([*parts, *([json.dumps(plain)] * bool(plain))])

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
        """An expression for JSON of a schema.

        Raises:
            InvalidRequest: it is no schema that can be enforced; the message begins with ``name``.
        """
        checked = json.loads(schema.read(name, value))
        try:
            compiled("json_schema", value)
        except InvalidRequest as error:
            raise InvalidRequest(str(error).replace("json_schema", name, 1)) from None
        if isinstance(checked, Mapping):
            checked = {**checked, "x-guidance": {**checked.get("x-guidance", {}), **JSON}}
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


def either(*expressions: str) -> str:
    """An expression for one of several."""
    return f"({' | '.join(expressions)})" if len(expressions) > 1 else expressions[0]
