"""How models write calls of tools: what a file of ``formats/`` declares.

A format makes the grammar of an answer, so that a call has the form that its readers expect and its arguments follow
the tool's schema, and it reads the answer. Most formats are a `JsonCalls` or a `TaggedCalls` with other literals.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import regex  # type: ignore[import-untyped]

from pellucid.errors import InvalidRequest
from pellucid.serve.chat.lark import ANYTHING, LarkBuilder, checked_schema, either
from pellucid.serve.chat.text_parser import Parse, TextParser
from pellucid.serve.chat.tools import Tool, ToolChoice
from pellucid.util.registry import discover

SPACE = regex.compile(" ?")
NAME = regex.compile(r"[\w.-]+")
MOST_CALLS = 32
"""Calls of one answer: small models go on and on where a call is required."""
SLOTS = {"{id}": r"[a-zA-Z0-9]{9}", "{index}": r"[0-9]+"}
"""What may stand in a literal for something that differs from call to call."""


FENCE, BARE_END = r"```(json|xml)?\s{0,2}", r"\s{0,4}\}{1,2}(\s{0,2}```)?"
"""What surrounds calls without marks."""


class Answer(TextParser):
    """The text of an answer, and where a format puts the parts of it."""

    tools: Mapping[str, Tool]

    @abstractmethod
    def text(self, text: str) -> object:
        """Text for the user."""

    @abstractmethod
    def reasoning(self, text: str) -> object:
        """Reasoning before it."""

    @abstractmethod
    def call(self, name: str) -> object:
        """A call of a tool begins."""

    @abstractmethod
    def arguments(self, text: str) -> object:
        """More of its arguments, as JSON."""


@dataclass(frozen=True)
class CallFormat:
    """A format: its ``name``, and the ``marks`` of which templates have all that show no call in a conversation.

    ``ends`` are tokens that end an answer, besides the model's own; ``id_length`` is the length of a call's id that the
    template asks for (None: any).
    """

    name: str
    marks: Sequence[str] = ()
    ends: Sequence[str] = ()
    id_length: int | None = None
    always: ClassVar[bool] = False
    """Whether all answers of such a model have to be read, and not only those with tools."""

    @abstractmethod
    def written_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as a template writes it into a conversation."""

    @abstractmethod
    def grammar(self, build: LarkBuilder, choice: ToolChoice, shape: str | None) -> str:
        """An expression for an answer. ``shape`` is the expression that its text follows (None: any text)."""

    @abstractmethod
    def read(self, answer: Answer) -> Parse[None]:
        """Read an answer."""

    @property
    @abstractmethod
    def literals(self) -> Sequence[str]:
        """The texts that are looked for; control tokens in them have to stand in the text."""


@dataclass(frozen=True)
class _Calls(CallFormat):
    """Calls one after another: ``begin`` (``before`` name ``middle`` arguments ``after``) ``between`` … ``end``.

    An answer that has ``trigger`` has calls from there on; ``at_start``: only where it begins with it.

    Small models forget the marks. ``bare`` is what their calls look like then, up to the arguments, as a regular
    expression with {name}: at the beginning of an answer, or in a block of Markdown.
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
        """The literal from the trigger to the first name."""
        whole = self.begin + self.before
        assert whole.startswith(self.trigger), self.name
        return whole[len(self.trigger) :]

    @property
    def next(self) -> str:
        """The literal from the end of a call's arguments to the next name."""
        return self.after + self.between + self.before

    @property
    def last(self) -> str:
        """The literal after the last call's arguments."""
        return self.after + self.end

    @property
    def literals(self) -> Sequence[str]:
        return [self.trigger, self.first, self.middle, self.next, self.last]

    def written_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        whole = self.before + name + self.middle + self.written_arguments(arguments) + self.after
        return self.begin + whole + self.end

    @abstractmethod
    def written_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Arguments as a template writes them."""

    @abstractmethod
    def arguments_grammar(self, build: LarkBuilder, tool: Tool) -> str:
        """An expression for the arguments of a tool."""

    @abstractmethod
    def read_arguments(self, answer: Answer, tool: Tool) -> Parse[None]:
        """Read the arguments of a tool."""

    def grammar(self, build: LarkBuilder, choice: ToolChoice, shape: str | None) -> str:
        calls = [
            f"{_literal(build, one.name + self.middle)} {self.arguments_grammar(build, one)}"
            for one in choice.tools
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
        """Expressions for calls without marks: at the beginning of an answer, and in a block of Markdown."""
        if not self.bare:
            return []
        made = list[str]()
        for begin in (r"\s{0,2}", rf"(.|\n)*{FENCE}"):
            calls = []
            for tool in choice.tools:
                head = build.rule(
                    "bare", f"/{begin}{self.bare.replace('{name}', regex.escape(tool.name))}/", "[lazy]"
                )
                calls.append(f'{head} (" ")? {self.arguments_grammar(build, tool)}')
            made.append(f"{either(*calls)} /{BARE_END}/")
        return made

    def read(self, answer: Answer) -> Parse[None]:
        if self.bare:
            bare = self.bare.replace("{name}", f"(?P<name>{'|'.join(map(regex.escape, answer.tools))})")
            found = yield from answer.match(regex.compile(rf"\s{{0,2}}{bare}"))
            block = rf"|{FENCE}{bare}"
        else:
            found, block = None, ""
        if found is None and not self.at_start:
            found = yield from answer.search(regex.compile(regex.escape(self.trigger) + block), answer.text)
        elif found is None:
            found = yield from answer.match(regex.compile(regex.escape(self.trigger)))
        if found and (name := found.groupdict().get("name")):
            answer.call(name)
            yield from answer.match(SPACE)
            yield from self.read_arguments(answer, answer.tools[name])
            return
        if not found or (yield from answer.match(_pattern(self.first))) is None:
            if found:  # no call follows: it was cut off, or is about such marks
                answer.text(self.trigger)
            yield from answer.rest(answer.text)
            return
        while name := (yield from answer.match(NAME)):
            # A dot or a dash may belong to the literal after the name.
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

    A text stands as it is, other values as JSON.
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
        if not tool.strict or (not properties and _is_open(tool)):
            key = f"{build.text(self.before_key)} /[^<>\\n=]+/ {build.text(self.after_key)}"
            return f"({key} {build.up_to(self.after_value)})*"
        required, made = tool.parameters.get("required", []), list[str]()
        for key, value in properties.items():
            one = (
                f"{build.text(self.before_key + key + self.after_key)} {self._value(build, tool, key, value)}"
            )
            made.append(one if key in required else f"({one})?")
        return " ".join(made) or '""'

    def _value(self, build: LarkBuilder, tool: Tool, key: str, value: Any) -> str:
        if not _is_text(value):
            whole = {**value, **_definitions(tool)} if isinstance(value, Mapping) else value
            name = f"tool {tool.name}: parameters.properties.{key}"
            return f"{build.json(name, whole)} {build.text(self.after_value)}"
        if isinstance(known := value.get("enum", [value["const"]] if "const" in value else None), list):
            texts = [one for one in known if isinstance(one, str)]
            if not texts:
                raise InvalidRequest(
                    f"tool {tool.name}: parameters.properties.{key} allows no text: mend it, or leave it out"
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
            if not tool.strict:  # whatever the model writes
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
    """A value that stands without quotes, as JSON."""
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False)
    return value


def _properties(tool: Tool) -> Mapping[str, Any]:
    found = tool.parameters.get("properties", {})
    return found if isinstance(found, Mapping) else {}


def _definitions(tool: Tool) -> dict[str, Any]:
    return {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}


def _is_open(tool: Tool) -> bool:
    """Whether names that the schema does not have are allowed."""
    return tool.parameters.get("additionalProperties", True) is not False


def _is_text(value: Any) -> bool:
    """Whether a schema's values are texts, which stand without quotes."""
    if not isinstance(value, Mapping):
        return False
    known = value.get("enum", [value["const"]] if "const" in value else None)
    if "type" not in value and isinstance(known, list) and known:
        return all(isinstance(one, str) for one in known)
    return value.get("type") == "string"


def _split(literal: str) -> list[str]:
    return regex.split(r"(\{(?:id|index)\})", literal)  # type: ignore[no-any-return]


def _literal(build: LarkBuilder, literal: str) -> str:
    """An expression for a literal with slots."""
    made = [f"/{SLOTS[part]}/" if part in SLOTS else build.text(part) for part in _split(literal) if part]
    return " ".join(made) or '""'


def _pattern(literal: str) -> regex.Pattern[str]:
    """A pattern for a literal with slots."""
    return regex.compile(
        "".join(SLOTS.get(part) or regex.escape(part, literal_spaces=True) for part in _split(literal))
    )


def known_formats() -> Mapping[str, CallFormat]:
    """Every format in the folder, by name."""
    return discover("pellucid.serve.chat.formats", CallFormat, lambda one: (one.name,))  # type: ignore[type-abstract]
