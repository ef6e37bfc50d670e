"""Formats of tool calls, which the files of ``formats/`` declare.

A format builds a grammar for answers: a call has the format's literals, and its arguments follow the tool's schema. The
format also parses answers. Most formats are instances of `JsonCalls` or `TaggedCalls`.
"""

from __future__ import annotations

import functools
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import regex  # type: ignore[import-untyped]

from pellucid.errors import InvalidRequest
from pellucid.sample.grammars import schema
from pellucid.sample.grammars.grammar import JSON, compiled
from pellucid.serve.chat.messages import Tool, ToolChoice
from pellucid.serve.chat.text_parser import Parse, TextParser
from pellucid.serve.json_schema import closed
from pellucid.tokenize import Tokenizer
from pellucid.util.registry import discover

ANYTHING = r"/(.|\n)*/"


class LarkBuilder:
    """Collects the rules of a grammar in llguidance's Lark form; control tokens of the tokenizer are named by id."""

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


SPACE = regex.compile(" ?")
NAME = regex.compile(r"[\w.-]+")
MOST_CALLS = 32
"""Maximum number of calls in an answer. If a call is required, small models repeat calls endlessly."""
SLOTS = {"{id}": r"[a-zA-Z0-9]{9}", "{index}": r"[0-9]+"}
"""Placeholders in a literal for text that differs from call to call, each with its pattern."""


FENCE, BARE_END = r"```(json|xml)?\s{0,2}", r"\s{0,4}\}{1,2}(\s{0,2}```)?"
"""Patterns of the text around calls without the format's literals (``_Calls.bare``)."""


class Answer(TextParser):
    """Parser of an answer. A format reads the text and reports its parts through the methods below."""

    tools: Mapping[str, Tool]

    @abstractmethod
    def text(self, text: str) -> object:
        """Report text for the user."""

    @abstractmethod
    def reasoning(self, text: str) -> object:
        """Report reasoning."""

    @abstractmethod
    def call(self, name: str) -> object:
        """Report the start of a tool call."""

    @abstractmethod
    def arguments(self, text: str) -> object:
        """Report more JSON of the call's arguments."""


@dataclass(frozen=True)
class CallFormat:
    """A format of tool calls.

    ``marks`` are texts in the source of a template. They identify the format if the template renders no known call.
    ``ends`` are tokens that end an answer, besides the model's EOS tokens. ``id_length`` is the length of call ids that
    the template requires (None: any length).
    """

    name: str
    marks: Sequence[str] = ()
    ends: Sequence[str] = ()
    id_length: int | None = None
    always: ClassVar[bool] = False
    """True if every answer of the model must be parsed, with and without tools."""

    @abstractmethod
    def written_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the template renders it in a conversation."""

    @abstractmethod
    def grammar(self, build: LarkBuilder, choice: ToolChoice, shape: str | None) -> str:
        """Grammar expression for an answer. ``shape`` is the expression for the answer's text (None: any text)."""

    @abstractmethod
    def read(self, answer: Answer) -> Parse[None]:
        """Parse an answer."""

    @property
    @abstractmethod
    def literals(self) -> Sequence[str]:
        """Literals that the parser looks for. Control tokens in them must stay in the decoded text."""


@dataclass(frozen=True)
class _Calls(CallFormat):
    """Consecutive calls: ``begin`` (``before`` name ``middle`` arguments ``after``) ``between`` … ``end``.

    Calls start at the ``trigger``. With ``at_start``, the trigger must be at the start of the answer.

    Small models forget these literals. ``bare`` is a regular expression for the beginning of a call without the
    literals, up to the call's arguments. In the expression, {name} stands for the tool's name. The expression matches
    at the start of an answer or of a Markdown code block.
    """

    trigger: str = ""
    begin: str = ""
    before: str = ""
    middle: str = ""
    after: str = ""
    between: str = ""
    end: str = ""
    at_start: bool = False
    bare: str = ""

    @cached_property
    def first(self) -> str:
        """Literal from the trigger to the first name."""
        literal = self.begin + self.before
        assert literal.startswith(self.trigger), self.name
        return literal[len(self.trigger) :]

    @property
    def next(self) -> str:
        """Literal from the end of a call's arguments to the next name."""
        return self.after + self.between + self.before

    @property
    def last(self) -> str:
        """Literal after the last call's arguments."""
        return self.after + self.end

    @property
    def literals(self) -> Sequence[str]:
        return [self.trigger, self.first, self.middle, self.next, self.last]

    def written_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        call = self.before + name + self.middle + self.written_arguments(arguments) + self.after
        return self.begin + call + self.end

    @abstractmethod
    def written_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Arguments as the template renders them."""

    @abstractmethod
    def arguments_grammar(self, build: LarkBuilder, tool: Tool) -> str:
        """Grammar expression for the arguments of a tool."""

    @abstractmethod
    def read_arguments(self, answer: Answer, tool: Tool) -> Parse[None]:
        """Parse the arguments of a tool."""

    def grammar(self, build: LarkBuilder, choice: ToolChoice, shape: str | None) -> str:
        calls = [
            f"{_literal(build, one.name + self.middle)} {self.arguments_grammar(build, one)}" for one in choice.tools
        ]
        call = build.rule("call", either(*calls))
        more = f" ({_literal(build, self.next)} {call}){{0,{MOST_CALLS - 1}}}" if choice.parallel else ""
        several = f"{_literal(build, self.first)} {call}{more} {_literal(build, self.last)}"
        if choice.required:
            return f"{build.text(self.trigger)} {several}"
        bare = self._bare_grammar(build, choice)
        if shape is not None or self.at_start:
            other = rf"/[^{regex.escape(self.trigger[0])}](.|\n)*/"
            return either(f"{build.text(self.trigger)} {several}", *bare[:1], shape or other)
        return either(f"{build.up_to(self.trigger)} {several}", *bare, ANYTHING)

    def _bare_grammar(self, build: LarkBuilder, choice: ToolChoice) -> list[str]:
        """Grammar expressions for ``bare`` calls: at the start of an answer, and in a Markdown code block."""
        if not self.bare:
            return []
        expressions = list[str]()
        for begin in (r"\s{0,2}", rf"(.|\n)*{FENCE}"):
            calls = []
            for tool in choice.tools:
                head = build.rule("bare", f"/{begin}{self.bare.replace('{name}', regex.escape(tool.name))}/", "[lazy]")
                calls.append(f'{head} (" ")? {self.arguments_grammar(build, tool)}')
            expressions.append(f"{either(*calls)} /{BARE_END}/")
        return expressions

    def read(self, answer: Answer) -> Parse[None]:
        if self.bare:
            bare = self.bare.replace("{name}", f"(?P<name>{'|'.join(map(regex.escape, answer.tools))})")
            start = yield from answer.match(regex.compile(rf"\s{{0,2}}{bare}"))
            block = rf"|{FENCE}{bare}"
        else:
            start, block = None, ""
        if start is None and not self.at_start:
            start = yield from answer.search(regex.compile(regex.escape(self.trigger) + block), answer.text)
        elif start is None:
            start = yield from answer.match(regex.compile(regex.escape(self.trigger)))
        if start and (name := start.groupdict().get("name")):
            answer.call(name)
            yield from answer.match(SPACE)
            yield from self.read_arguments(answer, answer.tools[name])
            return
        if not start or (yield from answer.match(_pattern(self.first))) is None:
            if start:  # no call follows: the answer was cut off, or it mentions the trigger
                answer.text(self.trigger)
            yield from answer.rest(answer.text)
            return
        while name := (yield from answer.match(NAME)):
            # NAME is greedy, so ``middle`` must not begin with a dot or a dash.
            if (yield from answer.match(_pattern(self.middle))) is None or name[0] not in answer.tools:
                return
            answer.call(name[0])
            yield from self.read_arguments(answer, answer.tools[name[0]])
            if (yield from answer.match(_pattern(self.next))) is None:
                return


@dataclass(frozen=True)
class JsonCalls(_Calls):
    """Calls whose arguments are a JSON object."""

    def written_arguments(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments)

    def arguments_grammar(self, build: LarkBuilder, tool: Tool) -> str:
        return build.json(f"tool {tool.name}: parameters", tool.schema)

    def read_arguments(self, answer: Answer, tool: Tool) -> Parse[None]:
        yield from answer.json_object(answer.arguments)


@dataclass(frozen=True)
class TaggedCalls(_Calls):
    """Calls with each argument in tags: ``before_key`` key ``after_key`` value ``after_value``.

    Strings are unquoted; other values are JSON.
    """

    before_key: str = ""
    after_key: str = ""
    after_value: str = ""

    @property
    def literals(self) -> Sequence[str]:
        return [*super().literals, self.before_key, self.after_key, self.after_value]

    def written_arguments(self, arguments: Mapping[str, Any]) -> str:
        return "".join(
            f"{self.before_key}{key}{self.after_key}{value if isinstance(value, str) else json.dumps(value)}"
            f"{self.after_value}"
            for key, value in arguments.items()
        )

    def arguments_grammar(self, build: LarkBuilder, tool: Tool) -> str:
        checked_schema(f"tool {tool.name}: parameters", tool.schema)
        properties = _properties(tool)
        is_open = tool.parameters.get("additionalProperties", True) is not False  # it allows unlisted properties
        if not tool.strict or (not properties and is_open):
            key = f"{build.text(self.before_key)} /[^<>\\n=]+/ {build.text(self.after_key)}"
            return f"({key} {build.up_to(self.after_value)})*"
        required, entries = tool.parameters.get("required", []), list[str]()
        for key, value in properties.items():
            one = f"{build.text(self.before_key + key + self.after_key)} {self._value(build, tool, key, value)}"
            entries.append(one if key in required else f"({one})?")
        return " ".join(entries) or '""'

    def _value(self, build: LarkBuilder, tool: Tool, key: str, value: Any) -> str:
        if not _is_text(value):
            shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
            schema = {**value, **shared} if isinstance(value, Mapping) else value
            name = f"tool {tool.name}: parameters.properties.{key}"
            return f"{build.json(name, schema)} {build.text(self.after_value)}"
        if isinstance(known := value.get("enum", [value["const"]] if "const" in value else None), list):
            texts = [one for one in known if isinstance(one, str)]
            if not texts:
                raise InvalidRequest(
                    f"tool {tool.name}: parameters.properties.{key} allows no string: correct it, or remove it"
                )
            return f"{either(*map(build.text, texts))} {build.text(self.after_value)}"
        return build.up_to(self.after_value)

    def read_arguments(self, answer: Answer, tool: Tool) -> Parse[None]:
        properties, before = _properties(tool), "{"
        while (yield from answer.expect(self.before_key)):
            key = list[str]()
            if not (yield from answer.until(self.after_key, key.append)):
                break
            name = "".join(key)
            answer.arguments(f"{before}{json.dumps(name, ensure_ascii=False)}: ")
            before = ", "
            if not tool.strict:  # any value is accepted
                value = list[str]()
                yield from answer.until(self.after_value, value.append)
                answer.arguments(_as_json("".join(value)))
                continue
            if name in properties and not _is_text(properties[name]):
                yield from answer.until(self.after_value, answer.arguments)
                continue
            answer.arguments('"')
            yield from answer.until(
                self.after_value, lambda text: answer.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
            )
            answer.arguments('"')
        answer.arguments("{}" if before == "{" else "}")


def _as_json(value: str) -> str:
    """Convert an unquoted value to JSON: unchanged if it is valid JSON, otherwise a string."""
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False)
    return value


def _properties(tool: Tool) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties", {})
    return properties if isinstance(properties, Mapping) else {}


def _is_text(value: Any) -> bool:
    """True if all values of a schema are strings. Strings are unquoted between tags."""
    if not isinstance(value, Mapping):
        return False
    known = value.get("enum", [value["const"]] if "const" in value else None)
    if "type" not in value and isinstance(known, list) and known:
        return all(isinstance(one, str) for one in known)
    return value.get("type") == "string"


def _split(literal: str) -> list[str]:
    return regex.split(r"(\{(?:id|index)\})", literal)  # type: ignore[no-any-return]


def _literal(build: LarkBuilder, literal: str) -> str:
    """Grammar expression for a literal with slots."""
    expressions = [f"/{SLOTS[part]}/" if part in SLOTS else build.text(part) for part in _split(literal) if part]
    return " ".join(expressions) or '""'


def _pattern(literal: str) -> regex.Pattern[str]:
    """Regular expression for a literal with slots."""
    return regex.compile(
        "".join(SLOTS.get(part) or regex.escape(part, literal_spaces=True) for part in _split(literal))
    )


def known_formats() -> Mapping[str, CallFormat]:
    """All formats in ``formats/``, by name."""
    return discover("pellucid.serve.chat.formats", CallFormat, lambda one: (one.name,))  # type: ignore[type-abstract]
