"""Checks of users' JSON schemas before llguidance reads them.

The depth, the sizes and the numbers of a schema have limits, because llguidance recurses over a schema, its time
depends on the numbers in the schema, and it rounds large numbers. Stricter patterns replace formats that llguidance
checks too loosely.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from pellucid.errors import InvalidRequest, brief
from pellucid.sample.grammars.problems import refused
from pellucid.sample.grammars.rewrites import as_any_of, is_number, list_in, subschemas, target, without_endless_parts

MAX_CHARACTERS = 1 << 20
ESCAPED = re.compile(r"[\0-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")
"""Characters that need an escape with four digits. Texts of a schema have no such escapes, so that a name has one
spelling (``JSON`` in ``grammar.py``)."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
MAX_DEPTH, MAX_RESOLVED_DEPTH = 64, 256  # nesting of containers: as written, and with references followed
MAX_KEYS, MAX_ITEMS, MAX_PATTERNS = 1000, 2000, 64  # per object, per list, of patternProperties
MAX_NUMBER = 1 << 53  # float64 cannot represent all integers beyond this number
MAX_MULTIPLE = 10_000  # llguidance enumerates multiples digit by digit

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d{2}|00[1-9]\d|000[1-9])"
_LEAP = r"(?:\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
STRICTER = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""Patterns for formats. llguidance checks only the shape of these formats: it accepts 29 February in every year."""

ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})
"""Values of ``propertyNames`` that allow every name. llguidance refuses the keyword, and zod writes it for records."""


def read(kind: str, value: Any) -> str:
    """Convert a schema to JSON text for llguidance. ``value`` is JSON text, a mapping, True, False or a pydantic class.

    Raises InvalidRequest: the value is not a schema, is too large or too deep, or has a part that cannot be enforced.
    """
    if hasattr(value, "model_json_schema"):
        try:
            value = value.model_json_schema()
        except Exception as error:
            raise refused(kind, f"{type(error).__name__}: {error}") from None
    if isinstance(value, str):
        check_length(kind, value, MAX_CHARACTERS)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise refused(kind, f"it is no JSON ({error})") from None
    if not isinstance(value, (Mapping, bool)):
        raise InvalidRequest(f"{kind}={brief(value)}: must be a JSON schema, as a mapping or as JSON")
    _check_bounds(kind, value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise refused(kind, f"it is no JSON ({error})") from None
    check_length(kind, text, MAX_CHARACTERS)
    schema = json.loads(text)
    if schema is True:
        return "{}"
    _SchemaChecker(kind, schema).check()
    for part in without_endless_parts(kind, schema):
        as_any_of(schema, part)
    return json.dumps(schema)


def _generated(number: float) -> float:
    """The number that llguidance generates for a constant."""
    from llguidance import LLMatcher, LLTokenizer

    source = LLMatcher.grammar_from_json_schema(json.dumps({"const": number}))
    return float(LLMatcher(LLTokenizer("byte"), source).compute_ff_bytes())


def check_length(kind: str, text: str, limit: int) -> None:
    """Raise InvalidRequest if a text has more than ``limit`` characters."""
    if len(text) > limit:
        raise InvalidRequest(f"{kind} has {len(text):,} characters; the limit is {limit:,}: make it shorter")


def _check_bounds(kind: str, value: Any) -> None:
    """Check nesting, sizes and numbers against the limits, level by level. A cycle counts as too deep."""
    level, seen = [value], 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                _check_count(kind, len(value), MAX_KEYS, "keys in an object")
                inner += value.values()
            elif isinstance(value, (list, tuple)):
                _check_count(kind, len(value), MAX_ITEMS, "entries in a list")
                inner += value
            elif isinstance(value, (int, float)) and MAX_NUMBER < abs(value) < math.inf:
                raise InvalidRequest(f"{kind} holds {brief(value)}; numbers beyond {MAX_NUMBER:,} would be rounded")
        seen += len(inner)
        _check_count(kind, seen, MAX_CHARACTERS, "values")
        if not inner:
            return
        level = inner
    raise InvalidRequest(f"{kind} is nested more than {MAX_DEPTH} deep: make it simpler")


def _check_count(kind: str, count: int, limit: int, noun: str) -> None:
    if count > limit:
        raise InvalidRequest(f"{kind} has {count:,} {noun}; the limit is {limit:,}: make it simpler")


class _SchemaChecker:
    """Visits each subschema of a schema once, following references."""

    def __init__(self, kind: str, schema: Any) -> None:
        self.kind, self.root, self.patterns = kind, schema, 0

    def check(self) -> None:
        """Check every subschema, and the depth of their nesting."""
        depths: dict[int, int] = {}
        stack: list[tuple[Any, Iterator[Any]]] = []

        def enter(node: Any) -> None:
            # A depth is set before the subschemas are visited, so a cycle ends here. llguidance does not unroll cycles.
            depths[id(node)] = 0
            self._check_schema(node)
            stack.append((node, self._inner(node)))

        enter(self.root)
        while stack:
            node, inner = stack[-1]
            for child in inner:
                if isinstance(child, dict) and id(child) not in depths:
                    enter(child)
                    break
                depths[id(node)] = max(depths[id(node)], depths.get(id(child), 0) + 1)
            else:
                stack.pop()
                if stack:
                    above = id(stack[-1][0])
                    depths[above] = max(depths[above], depths[id(node)] + 1)
            if len(stack) > MAX_RESOLVED_DEPTH or depths[id(node)] > MAX_RESOLVED_DEPTH:
                raise InvalidRequest(
                    f"{self.kind} is nested more than {MAX_RESOLVED_DEPTH} deep if its references are followed: "
                    "make it simpler"
                )

    def _inner(self, node: Any) -> Iterator[Any]:
        """The direct subschemas of a schema, and the target of its reference."""
        yield target(self.root, node)
        for _, part in subschemas(node):
            yield part

    def _check_schema(self, node: Any) -> None:
        """Check one schema without its subschemas.

        Replaces its formats by stricter patterns, and removes a keyword without effect.
        """
        if not isinstance(node, dict):
            return
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise refused(self.kind, f"required is {brief(required)}, not a list of names")
        if isinstance(patterns := node.get("patternProperties"), dict):
            self.patterns += len(patterns)
            _check_count(self.kind, self.patterns, MAX_PATTERNS, "patternProperties")
        least, free = node.get("minProperties", 0), node.get("additionalProperties", True) is not False
        if isinstance(least, (int, float)) and least > 1 and (free or node.get("patternProperties")):
            raise refused(self.kind, f"minProperties is {least}, but names are free: a repeated name would count twice")
        if isinstance(options := node.get("x-guidance"), dict) and options.get("lenient"):
            raise refused(self.kind, "x-guidance is lenient: unknown keywords would be ignored")
        constants = node["enum"] if isinstance(node.get("enum"), list) else []
        self._check_constants([*constants, *([node["const"]] if "const" in node else [])])
        if "multipleOf" in node or "allOf" in node:
            self._check_multiples(node)
        if node.get("propertyNames") in ANY_NAME:
            del node["propertyNames"]
        if node.get("format") in STRICTER and "pattern" not in node:
            node["pattern"] = STRICTER[node.pop("format")]

    def _check_constants(self, values: Sequence[Any]) -> None:
        """Check that llguidance can generate constants exactly.

        It drops characters that need an escape with four digits, and rounds some numbers of 16 digits and more.
        """
        inner = [*values]
        while inner:
            value = inner.pop()
            if isinstance(value, str) and (found := ESCAPED.search(value)):
                raise refused(
                    self.kind,
                    f"the constant {brief(value)} has the character U+{ord(found[0]):04X}, which no text can have here",
                )
            if isinstance(value, float) and (other := _generated(value)) != value:
                raise refused(self.kind, f"the constant {value!r} would be generated as {other!r}", "use fewer digits")
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            names = value if isinstance(value, dict) else ()
            if name := next((name for name in names if SURROGATE.search(name)), ""):
                raise refused(self.kind, f"the name {brief(name)} has half of a character (a surrogate)")

    def _check_multiples(self, node: dict[str, Any]) -> None:
        """Check that the combined ``multipleOf`` of a schema is not too large."""
        common, stack, seen = Fraction(1), [node], set()
        while stack:
            part = stack.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            if is_number(of := part.get("multipleOf")):
                if not of > 0:
                    raise refused(self.kind, f"multipleOf is {brief(of)}, not a number above 0")
                fraction = Fraction(str(of))
                numerator = math.lcm(common.numerator, fraction.numerator)
                common = Fraction(numerator, math.gcd(common.denominator, fraction.denominator))
                if max(common.numerator, fraction.denominator) > MAX_MULTIPLE:
                    raise refused(self.kind, f"multipleOf, as a fraction, has a number above {MAX_MULTIPLE:,}")
            stack += list_in(part, "allOf")
            stack.append(target(self.root, part))
