"""Constraints for tests, invalid constraints, and independent validators of the generated texts.

``SCHEMAS`` (40), ``GRAMMARS`` (20) and ``CHOICES`` are by name. ``ALL`` has the 60 schemas and grammars as (option,
value). Strings and lists are short, so that a random model completes most texts.

``valid`` asks jsonschema (draft 2020-12), Python's ``re``, or lark's Earley parser, which tries every division of a
text into terminals. Constraints in ``BAD`` are refused when the constraint is checked, constraints in ``LATE`` when a
text starts. Each entry is (option, value, part of the error message).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from lark import Lark, LarkError

Schema = dict[str, Any]
Case = tuple[str, Any, str]


def whole(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def real(low: float, high: float, **more: Any) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, **more}


def text(longest: int, shortest: int = 0, **more: Any) -> Schema:
    least = {"minLength": shortest} if shortest else {}
    return {"type": "string", "maxLength": longest, **least, **more}


def pattern(regex: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": regex, **more}


def several(items: Any, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "maxItems": most, **({"minItems": least} if least else {})}


def closed(properties: Schema, *optional: str, **more: Any) -> Schema:
    """An object with exactly these properties, all required except ``optional``."""
    required = [name for name in properties if name not in optional]
    kind = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {**kind, **more}


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


SCHEMAS: dict[str, Schema] = {
    "flat object": closed({"name": text(12), "age": whole(0, 120), "member": {"type": "boolean"}}),
    "optional properties": closed({"a": whole(0, 9), "b": {"type": "null"}, "c": text(4)}, "a", "c"),
    "all optional": closed({"x": whole(-5, 5), "y": whole(-5, 5), "z": whole(-5, 5)}, "x", "y", "z"),
    "nested objects": closed(
        {"user": closed({"at": closed({"street": text(10), "zip": pattern(r"^[0-9]{5}$")}), "id": whole(1, 99)})}
    ),
    "additional of a schema": {
        "type": "object",
        "properties": {"id": whole(0, 9)},
        "required": ["id"],
        "additionalProperties": {"type": "boolean"},
    },
    "names of any text": {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": whole(0, 9),
        "maxProperties": 3,
    },
    "additional of any": {"type": "object", "properties": {"a": whole(0, 9)}, "required": ["a"]},
    "pattern properties": {
        "type": "object",
        "patternProperties": {r"^k[0-9]$": whole(0, 9), r"^s[a-c]$": text(3)},
        "additionalProperties": False,
        "maxProperties": 4,
    },
    "strange keys": closed({'a"b\\': whole(0, 9), "é/~": whole(0, 9), "": whole(0, 9), "😀\n": text(2)}, "é/~"),
    "enum of all kinds": {"enum": ["red", 3, None, True, {"a": 1, "b": [1, 2]}, [1, 2], 'é"\\\n', 1.5, -2, 1e3]},
    "const": {"const": {"a": [1, "x\u2028/"], "b": None, "c": {"d": -0.25}}},
    "whole numbers": closed({"a": whole(-40, 40), "b": whole(7, 7), "c": whole(-1234, -1), "d": whole(0, 99999)}),
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000},
    "multiples": several(whole(0, 500, multipleOf=7), 4, 2),
    "numbers": several({"anyOf": [real(-1.5, 2.25), real(100, 1000)]}, 3, 1),
    "multiples of a fraction": real(0, 10, multipleOf=0.25),
    "lengths": closed({"a": text(8, 3), "b": text(0), "c": text(2, 2)}),
    "pattern": pattern(r"^[A-Z]{2}-[0-9]{3,5}$"),
    "pattern within": pattern("ab|ba", minLength=3, maxLength=9),
    "pattern and lengths": pattern(r'^["\\/\n a-f]+$', minLength=2, maxLength=6),
    "dates": closed({"date": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "time"}}),
    "date and time": closed({"from": {"type": "string", "format": "date-time"}}),
    "duration": {"type": "string", "format": "duration"},
    "uuid": closed({"id": {"type": "string", "format": "uuid"}, "of": {"type": ["string", "null"], "maxLength": 3}}),
    "addresses": closed({"v4": {"type": "string", "format": "ipv4"}, "v6": {"type": "string", "format": "ipv6"}}),
    "mail": closed({"mail": text(24, format="email"), "host": text(16, format="hostname")}),
    "uri": text(30, format="uri"),
    "array": several(whole(-9, 9), 5, 2),
    "tuple": {"type": "array", "prefixItems": [text(4), whole(0, 9), {"type": "null"}], "items": False, "minItems": 3},
    "tuple and more": {"type": "array", "prefixItems": [text(4)], "items": {"type": "null"}, "maxItems": 4},
    "matrix": several(several(whole(0, 9), 3, 2), 3, 2),
    "any of": {"anyOf": [text(5), whole(0, 9), closed({"a": {"type": "null"}}), several({"type": "boolean"}, 2)]},
    "one of": {
        "oneOf": [
            closed({"kind": {"const": "circle"}, "radius": whole(1, 50)}),
            closed({"kind": {"const": "box"}, "width": whole(1, 50), "height": whole(1, 50)}, "height"),
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": whole(0, 9)}, "required": ["a"]},
            {"properties": {"b": text(5), "a": {"maximum": 4}}, "required": ["b"]},
        ],
    },
    "references": {
        "$defs": {"point": closed({"x": ref("axis"), "y": ref("axis")}), "axis": whole(-99, 99)},
        **closed({"from": ref("point"), "to": {"anyOf": [ref("point"), {"type": "null"}]}}),
    },
    "tree": {"$defs": {"node": closed({"value": whole(0, 9), "children": several(ref("node"), 2)})}, **ref("node")},
    "expression": {
        "$defs": {
            "sum": {"anyOf": [whole(0, 99), ref("call")]},
            "call": closed({"op": {"enum": ["+", "-", "*"]}, "of": several({"$ref": "#"}, 2, 2)}),
        },
        **ref("sum"),
    },
    "function call": closed(
        {
            "name": {"enum": ["get_weather", "search"]},
            "arguments": {
                "anyOf": [
                    closed({"city": text(10, 1), "unit": {"enum": ["c", "f"]}}, "unit"),
                    closed({"query": text(12, 1), "limit": whole(1, 20)}),
                ]
            },
        }
    ),
    "chat with tool calls": closed(
        {
            "role": {"const": "assistant"},
            "content": {"type": ["string", "null"], "maxLength": 16},
            "tool_calls": several(
                closed(
                    {
                        "id": pattern(r"^call_[a-z0-9]{4}$"),
                        "type": {"const": "function"},
                        "function": closed({"name": pattern(r"^[a-z_]{1,8}$"), "arguments": text(12)}),
                    }
                ),
                2,
            ),
        },
        "tool_calls",
    ),
    "invoice": closed(
        {
            "number": pattern(r"^INV-[0-9]{4}$"),
            "date": {"type": "string", "format": "date"},
            "currency": {"enum": ["EUR", "USD", "JPY"]},
            "lines": several(closed({"what": text(8, 1), "n": whole(1, 9), "at": real(0, 9, multipleOf=0.25)}), 2, 1),
            "paid": {"type": ["boolean", "null"]},
        },
        "paid",
    ),
    "geo feature": closed(
        {
            "type": {"const": "Feature"},
            "geometry": closed(
                {
                    "type": {"const": "Point"},
                    "coordinates": {
                        "type": "array",
                        "prefixItems": [real(-180, 180), real(-90, 90)],
                        "items": False,
                        "minItems": 2,
                    },
                }
            ),
            "properties": {"anyOf": [{"type": "null"}, closed({"name": text(8)})]},
        }
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Grammar:
    """A grammar of kind "lark", "gbnf" or "regex". ``oracle`` is the grammar in lark's own syntax, if that differs."""

    kind: str
    source: str
    oracle: str | None = None


def lark(source: str, oracle: str | None = None) -> Grammar:
    return Grammar("lark", source, oracle or source)


def gbnf(source: str, oracle: str) -> Grammar:
    return Grammar("gbnf", source, oracle)


def regex(source: str) -> Grammar:
    return Grammar("regex", source)


GRAMMARS: dict[str, Grammar] = {
    "lark: sums": lark(
        r"""
        start: sum
        sum: product | sum "+" product | sum "-" product
        product: atom | product "*" atom | product "/" atom
        atom: NUMBER | "-" atom | "(" sum ")"
        NUMBER: /[0-9]{1,3}(\.[0-9]{1,2})?/
        """
    ),
    "lark: lists with blanks": lark(
        r"""
        start: list
        list: "[" (item ("," item)*)? "]"
        item: WORD | list
        WORD: /[a-z]{1,6}/
        %ignore / {1,2}/
        """
    ),
    "lark: settings": lark(
        r"""
        start: line line? line?
        line: KEY "=" value "\n"
        KEY: /[a-z][a-z_]{0,7}/
        value: NUMBER | TRUE | FALSE | STRING
        NUMBER: DIGIT DIGIT~0..3
        TRUE: "yes" | "on"
        FALSE: "no" | "off"
        STRING: "\"" /[^"\\\n]{0,8}/ "\""
        %import common.DIGIT
        """,
        r"""
        start: line line? line?
        line: KEY "=" value "\n"
        KEY: /[a-z][a-z_]{0,7}/
        value: NUMBER | TRUE | FALSE | STRING
        NUMBER: /[0-9]{1,4}/
        TRUE: "yes" | "on"
        FALSE: "no" | "off"
        STRING: /"[^"\\\n]{0,8}"/
        """,
    ),
    "lark: repetitions": lark(
        r"""
        start: group{2,4} end
        group: "(" LETTER{1,3} ")" | "<" DIGITS ">"
        end: "."{2} | "!"+
        LETTER: /[a-f]/
        DIGITS: /[0-9]{2}/
        """,
        r"""
        start: group ~ 2..4 end
        group: "(" LETTER ~ 1..3 ")" | "<" DIGITS ">"
        end: "." ~ 2 | "!"+
        LETTER: /[a-f]/
        DIGITS: /[0-9]{2}/
        """,
    ),
    "lark: whatever the case": lark(
        r"""
        start: "select"i " " columns " from "i NAME (" where "i NAME "=" /[0-9]{1,3}/)? ";"
        columns: "*" | NAME ("," NAME)~0..2
        NAME: /[a-z][a-z0-9]{0,5}/i
        """
    ),
    "lark: and, not": lark(
        r"""
        start: WORD (" " WORD)~0..3 "."
        WORD: /[a-z]{2,7}/ & ~/(?s:.*)(a|ee|st)(?s:.*)/
        """,
        r"""
        start: WORD (" " WORD)~0..3 "."
        WORD: /(?![a-z]*(a|ee|st))[a-z]{2,7}/
        """,
    ),
    "lark: JSON within": lark(
        r"""
        start: NAME "(" arguments ")"
        NAME: "move" | "turn"
        arguments: %json {"type": "object", "properties": {"by": {"type": "integer", "minimum": 0, "maximum": 99}},
                          "required": ["by"], "additionalProperties": false}
        """,
        r"""
        start: NAME "(" arguments ")"
        NAME: "move" | "turn"
        arguments: "{" _B? "\"by\"" _B? ":" _B? NUMBER _B? "}"
        NUMBER: /-?0|[1-9][0-9]?/
        _B: /[ \t\r\n]+/
        """,
    ),
    "lark: ambiguous": lark(
        r"""
        start: s
        s: s s | "(" s ")" | "a" | "aa" | b?
        b: "b" b | "b"
        """
    ),
    "gbnf: arithmetic": gbnf(
        r"""
root  ::= (expr "=" ws term "\n"){1,3}
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]{0,5} ws
num   ::= [0-9]{1,4} ws
ws    ::= [ \t]{0,2}
""",
        r"""
        start: line ~ 1..3
        line: expr "=" ws term "\n"
        expr: term (/[-+*\/]/ term)*
        term: ident | num | "(" ws expr ")" ws
        ident: /[a-z][a-z0-9_]{0,5}/ ws
        num: /[0-9]{1,4}/ ws
        ws: /[ \t]/ ~ 0..2
        """,
    ),
    "gbnf: list": gbnf(
        r"""
# as many points as there are
root ::= item{1,4}

# a point ends with its line, whatever that is
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]{1,12} "\n"
""",
        r"""
        start: item ~ 1..4
        item: "- " /[^\r\n\x0b\x0c\x85\u2028\u2029]{1,12}/ "\n"
        """,
    ),
    "gbnf: chess": gbnf(
        r"""
root     ::= "1. " move " " move "\n" ([2-9] ". " move " " move "\n"){0,2}
move     ::= (pawn | nonpawn | castle) [+#]?
nonpawn  ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn     ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle   ::= "O-O" "-O"?
""",
        r"""
        start: "1. " move " " move "\n" (/[2-9]/ ". " move " " move "\n") ~ 0..2
        move: (pawn | nonpawn | castle) /[+#]/?
        nonpawn: /[NBKQR]/ /[a-h]/? /[1-8]/? "x"? /[a-h]/ /[1-8]/
        pawn: (/[a-h]/ "x")? /[a-h]/ /[1-8]/ ("=" /[NBKQR]/)?
        castle: "O-O" "-O"?
        """,
    ),
    "gbnf: JSON": gbnf(
        r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value){0,2}
  )? "}" ws
array  ::= "[" ws ( value ("," ws value){0,2} )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  ){0,8} "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,5})) ("." [0-9]{1,4})? ([eE] [-+]? [0-9] [1-9]{0,2})? ws
ws     ::= | " " | "\n" [ \t]{0,3}
""",
        r"""
        start: object
        value: object | array | string | number | ("true" | "false" | "null") ws
        object: "{" ws (member ("," ws member) ~ 0..2)? "}" ws
        member: string ":" ws value
        array: "[" ws (value ("," ws value) ~ 0..2)? "]" ws
        string: "\"" CHARACTER ~ 0..8 "\"" ws
        CHARACTER: /[^"\\\x7F\x00-\x1F]/ | /\\["\\bfnrt]/ | /\\u[0-9a-fA-F]{4}/
        number: /-?([1-9][0-9]{0,5}|[0-9])(\.[0-9]{1,4})?([eE][-+]?[0-9][1-9]{0,2})?/ ws
        ws: | " " | /\n[ \t]{0,3}/
        """,
    ),
    "gbnf: names": gbnf(
        r"""
# names as camels and with hyphens
root       ::= selectList where-part? ";"
selectList ::= "SELECT " column ("," " "? column){0,2} " FROM " tableName
where-part ::= " WHERE " column (" = " | " <> " | " LIKE ") a-literal   # a condition
column     ::= "*" | name
tableName  ::= name
name       ::= [a-z_] [a-z0-9_]{0,7}
a-literal  ::= "'" [^'\n]{0,8} "'"
""",
        r"""
        start: "SELECT " column ("," " "? column) ~ 0..2 " FROM " NAME where? ";"
        where: " WHERE " column (" = " | " <> " | " LIKE ") /'[^'\n]{0,8}'/
        column: "*" | NAME
        NAME: /[a-z_][a-z0-9_]{0,7}/
        """,
    ),
    "gbnf: beyond ASCII": gbnf(
        r"""
root     ::= greeting ("、" greeting){0,2} "。"
greeting ::= [ぁ-ゖ]{1,4} | [ァ-ヺ]{1,4} "ー"? | "日本" [一-龯]? | "😀"+
""",
        r"""
        start: greeting ("、" greeting) ~ 0..2 "。"
        greeting: /[ぁ-ゖ]/ ~ 1..4 | /[ァ-ヺ]/ ~ 1..4 "ー"? | "日本" /[一-龯]/? | "😀"+
        """,
    ),
    "gbnf: escapes": gbnf(
        r"""
root ::= ("\t" | "\\" | "\"" | "\x41" | [\]\\^/-] | [^\x00-\x7F] | "\r\n"){1,6} end
end  ::= "/" | "//" | [.] "?"
""",
        r"""
        start: one ~ 1..6 end
        one: "\t" | "\\" | "\"" | "A" | /[\]\\^\/\-]/ | /[^\x00-\x7F]/ | "\r\n"
        end: "/" | "//" | ".?"
        """,
    ),
    "regex: telephone": regex(r"\+?[0-9]{1,3}( [0-9]{2,4}){2,3}"),
    "regex: version": regex(r"v?(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]?)){2}(-(alpha|beta|rc\.[1-9]))?"),
    "regex: quotes": regex(r"""(?i:hello|bonjour)[,;] ("[^"\n]{1,8}"|'[^'\n]{1,8}'|/[a-z]{2,4}/)\n?!{1,3}"""),
    "regex: beyond ASCII": regex(r"[α-ω]{2,6}(é|ü|😀|中文){1,2}[^\x00-\x{7F}]?".replace(r"\x{7F}", r"\x7f")),
    "regex: nested": regex(r"((a|bb){2}c?){1,4}|(x[0-9]{2}){2,3}\.|.{3}|()"),
}

CHOICES: dict[str, list[str]] = {
    "words": ["rain", "stone", "east"],
    "beginnings of others": ["a", "ab", "abc", "abd", "b"],
    "strange": ["\n", '"quoted"', "\\", "/", "😀", "é", "tab\t.", "a\0b", "\u2028", "\x7f", "%ignore", "a: x", " a "],
    "long": ["word " * 40 + str(number) for number in range(50)],
    "many": [f"w{number}" for number in range(1500)],
    "one": ["the only one"],
    "one twice": ["twice", "twice"],
}  # fmt: skip

ALL: dict[str, tuple[str, Any]] = {
    **{f"schema: {name}": ("json_schema", schema) for name, schema in SCHEMAS.items()},
    **{name: ("regex" if one.kind == "regex" else "grammar", one.source) for name, one in GRAMMARS.items()},
}


# Oracles


def valid(kind: str, value: Any, text: str) -> bool:
    """True if a text satisfies the constraint ``value`` of the option ``kind``."""
    if kind == "choices":
        return text in value
    if kind == "regex":
        return re.fullmatch(value, text) is not None
    if kind == "grammar":
        return _parses(next(one.oracle or "" for one in GRAMMARS.values() if one.source == value), text)
    try:
        document = json.loads(text, parse_constant=_no_number)
    except ValueError:
        return False
    return bool(_validator(json.dumps(value)).is_valid(document))


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


@cache
def _validator(schema: str) -> Draft202012Validator:
    document = json.loads(schema)
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=FORMATS)


@cache
def _parser(grammar: str) -> Lark:
    return Lark(grammar, parser="earley", lexer="dynamic_complete", ambiguity="resolve")


def _parses(grammar: str, text: str) -> bool:
    try:
        _parser(grammar).parse(text)
    except LarkError:
        return False
    return True


FORMATS = FormatChecker(formats=("uuid", "ipv4", "ipv6"))
"""jsonschema's own formats. The formats below need further packages in jsonschema and follow their RFCs."""


def _format(name: str, regex: str) -> None:
    wanted = re.compile(regex)
    FORMATS.checks(name)(lambda value: not isinstance(value, str) or wanted.fullmatch(value) is not None)


LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*"
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
AUTHORITY = rf"(?:(?:(?!@){PCHAR})*@)?(?:\[[0-9A-Fa-fv:.]+\]|(?:(?![:@]){PCHAR})*)(?::[0-9]*)?"

_format("hostname", HOST)
_format("email", rf"{ATOM}(\.{ATOM})*@({HOST}|\[.+\])")  # RFC 5321
_format("time", TIME)  # RFC 3339
_format("duration", r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)")
_format(
    "uri",
    rf"[A-Za-z][A-Za-z0-9+.-]*:(//{AUTHORITY}(/{PCHAR}*)*|(?!//)({PCHAR}|/)*)(\?({PCHAR}|[/?])*)?(#({PCHAR}|[/?])*)?",
)


@FORMATS.checks("date", raises=ValueError)
def _date(value: Any) -> bool:
    """Accepts February 29 of any year and the year 0, as llguidance does."""
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})", value)
        return found is not None and bool(date(2000, int(found[2]), int(found[3])))
    return True


@FORMATS.checks("date-time", raises=ValueError)
def _date_time(value: Any) -> bool:
    return not isinstance(value, str) or (_date(value[:10]) and re.fullmatch(rf"[tT ]{TIME}", value[10:]) is not None)


# Constraints that must be refused


def deep(levels: int) -> Any:
    """A schema of nested lists."""
    schema: Any = {"type": "integer"}
    for _ in range(levels // 2):  # each round adds two levels: the schema and its list of items
        schema = {"type": "array", "prefixItems": [schema]}
    return schema


def cyclic() -> Any:
    schema: Any = {"type": "object", "properties": {}}
    schema["properties"]["again"] = schema
    return schema


class Broken:
    """An object without a JSON form."""

    def __repr__(self) -> str:
        raise ValueError("no name either")


LONG = 10_000_000

BAD: list[Case] = [
    ("json_schema", '{"type": "object"', "no JSON"),
    ("json_schema", "", "no JSON"),
    ("json_schema", "{'type': 'object'}", "no JSON"),
    ("json_schema", '{"minimum": NaN}', "no JSON"),
    ("json_schema", 3, "must be a JSON schema"),
    ("json_schema", "3", "must be a JSON schema"),
    ("json_schema", "null", "must be a JSON schema"),
    ("json_schema", [{"type": "object"}], "must be a JSON schema"),
    ("json_schema", b"{}", "must be a JSON schema"),
    ("json_schema", Broken(), "must be a JSON schema"),
    ("json_schema", {"const": Broken()}, "no JSON"),
    ("json_schema", {"const": {1, 2}}, "no JSON"),
    ("json_schema", {"minimum": float("nan")}, "no JSON"),
    ("json_schema", {"const": float("inf")}, "no JSON"),
    ("json_schema", {("a", "b"): 1}, "no JSON"),
    ("json_schema", {"type": "objekt"}, "objekt"),
    ("json_schema", {"type": 3}, "type must be"),
    ("json_schema", {"properties": 3}, "properties must be"),
    ("json_schema", {"required": "a"}, "required"),
    ("json_schema", {"enum": 3}, "enum must be"),
    ("json_schema", {"type": "integer", "minimum": "low"}, "minimum"),
    ("json_schema", {"type": "integer", "multipleOf": 0}, "multiple"),
    ("json_schema", {"type": "integer", "multipleOf": 10**30}, "would be rounded"),
    ("json_schema", {"type": "integer", "minimum": -(10**400)}, "would be rounded"),
    ("json_schema", {"type": "integer", "minimum": -(10**300), "maximum": 10**300}, "would be rounded"),
    ("json_schema", {"type": "string", "format": "nope"}, 'format "nope"'),
    ("json_schema", {"type": "string", "pattern": "("}, "not closed"),
    ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    ("json_schema", {"$ref": "#/$defs/nope"}, "/$defs/nope"),
    ("json_schema", {"$ref": "https://example.com/schema"}, "example.com"),
    ("json_schema", {"$schema": "nope"}, "nope"),
    ("json_schema", False, ""),
    ("json_schema", {"enum": []}, "list of options is empty"),
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 2}, "minimum 5 is above maximum 2"),
    ("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}, "minLength 5 is above maxLength 2"),
    ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "no common type"),
    ("json_schema", {"type": "object", "required": ["a"], "additionalProperties": False}, 'required property "a"'),
    ("json_schema", {"not": {"type": "string"}}, '"not"'),
    ("json_schema", {"if": {}, "then": {}}, '"if"'),
    ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    ("json_schema", {"type": "array", "contains": {"type": "integer"}}, "contains"),
    ("json_schema", {"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
    ("json_schema", {"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    ("json_schema", cyclic(), "64 deep"),
    ("json_schema", deep(66), "64 deep"),
    ("json_schema", deep(1000), "64 deep"),
    ("json_schema", deep(100_000), "64 deep"),
    ("json_schema", '{"items":' * 66 + "{}" + "}" * 66, "64 deep"),
    ("json_schema", "[" * 100_000, "no JSON"),
    ("json_schema", '{"items":' * 100_000 + "{}" + "}" * 100_000, "no JSON"),
    ("json_schema", {"description": "x" * LONG}, "1,048,576"),
    ("json_schema", json.dumps({"description": "x" * LONG}), "1,048,576"),
    ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}, "3,000 keys in an object"),
    ("json_schema", {"enum": [0] * 2_000_000}, "2,000,000 entries in a list"),
    ("regex", "", "must be a text"),
    ("regex", 3, "must be a text"),
    ("regex", b"a", "must be a text"),
    ("regex", re.compile("a"), "must be a text"),
    ("regex", ["a"], "must be a text"),
    ("regex", "(", "character 1: a group is not closed"),
    ("regex", "[a", "not closed"),
    ("regex", "a)", "not opened"),
    ("regex", "*a", "repetition"),
    ("regex", "a{2,1}", "repetition"),
    ("regex", "[z-a]", "range"),
    ("regex", "(?=a)b", "look-ahead"),
    ("regex", "(?<!a)b", "look-ahead"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", r"\p{Nope}", "Unicode property"),
    ("regex", r"a\b", "not supported"),
    ("regex", "a\ud800", "has the surrogate U+D800"),
    ("regex", "(" * 65 + "a" + ")" * 65, "65 deep"),
    ("regex", "(" * 30_000 + ")" * 30_000, "30,000 deep"),
    ("regex", "x" * 65_537, "65,536"),
    ("regex", "x" * LONG, "65,536"),
    ("grammar", "", "must be a text"),
    ("grammar", 3, "must be a text"),
    ("grammar", {"start": "a"}, "must be a text"),
    ("grammar", "start: foo", "foo"),
    ("grammar", 'start: "a" | "a', "line 1, column 16: the text from this character on is not valid syntax"),
    ("grammar", 'start: "a"\nstart: "b"', 'line 2, column 8: "start" is defined twice'),
    ("grammar", "start: /(/", "not closed"),
    ("grammar", "start: /a(?=b)/", "look-ahead"),
    ("grammar", "start: nope\n%import nope", "nope"),
    ("grammar", "%llguidance {}\n", "start"),
    ("grammar", '%llguidance {}\nrule: "a"', "start"),
    ("grammar", 'start: %json {"type": "objekt"}', "objekt"),
    ("grammar", 'rule: "a"', "cannot be enforced"),
    ("grammar", "nonsense", "cannot be enforced"),
    ("grammar", "root ::= foo", "foo"),
    ("grammar", 'foo ::= "a"', "root"),
    ("grammar", 'root = "a"', "expected"),
    ("grammar", 'root ::= "a', "too soon"),
    ("grammar", "root ::= [a", "too soon"),
    ("grammar", 'root ::= ("a"', "')'"),
    ("grammar", r'root ::= "\q"', "escape"),
    ("grammar", 'root ::= "\\', "cannot be enforced"),
    ("grammar", 'root ::= "a"{2', "'}'"),
    ("grammar", 'root ::= "a"{x}', "integer"),
    ("grammar", 'root ::= "a"{%s}' % ("9" * 5000), "digits"),
    ("grammar", 'root ::= a-b a_b\na-b ::= "x" root\na_b ::= "y" root', "a_b"),
    ("grammar", "root ::= " + "(" * 65 + '"a"' + ")" * 65, "65 deep"),
    ("grammar", "root ::= " + "(" * 100_000, "100,000 deep"),
    ("grammar", 'start: "a"\n' + "# " * LONG, "262,144"),
    ("choices", [], "at least one"),
    ("choices", "abc", "must be a list"),
    ("choices", 3, "must be a list"),
    ("choices", {"a"}, "must be a list"),
    ("choices", {"a": 1}, "must be a list"),
    ("choices", [""], "1 to 4,096"),
    ("choices", ["a", 3], "1 to 4,096"),
    ("choices", [b"a"], "1 to 4,096"),
    ("choices", ["x" * 4097], "1 to 4,096"),
    ("choices", ["\ud800"], "has the surrogate U+D800"),
    ("choices", ["a"] * 10_001, "10,000"),
    ("choices", [f"{i}" + "y" * 4000 for i in range(10_000)], "1,048,576"),
]  # fmt: skip

LATE: list[Case] = [
    ("json_schema", {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
    ("regex", "(a{1000}){1000}{1000}", "too complex, or force a text that is too long"),
    ("regex", "a{1000000000}", "too complex, or force a text that is too long"),
    ("regex", "(a?){1000}a{1000}", "too complex, or force a text that is too long"),
    ("regex", r"[^\x00-\U0010ffff]", ""),
    ("regex", r"a\zb", "not supported"),
    ("grammar", 'start: "a" start', "too many of its rules"),
    ("grammar", 'start: start "a"', ""),
    ("grammar", "root ::= x\nx ::= root", ""),
    ("grammar", 'start: "a"{100000000}', "too many of its rules"),
    ("grammar", 'root ::= "a"{100000000}', "too many of its rules"),
    ("grammar", "root ::= " + '"a" ' * 60_000, "too many of its rules"),
]  # fmt: skip


def chain(rules: int) -> Mapping[str, Any]:
    """A chain of rules that each refer to the next rule, in every constraint language."""
    names = [f"r{i}" for i in range(rules)]
    pairs = list(zip(names, [*names[1:], "last"]))
    return {
        "lark": "start: r0\n" + "".join(f"{a}: {b}\n" for a, b in pairs) + 'last: "a"',
        "gbnf": "root ::= r0\n" + "".join(f"{a} ::= {b}\n" for a, b in pairs) + 'last ::= "a"',
        "schema": {"$defs": {**{a: ref(b) for a, b in pairs}, "last": {"type": "null"}}, **ref("r0")},
        "objects": {"$defs": {**{a: closed({"a": ref(b)}) for a, b in pairs}, "last": {"type": "null"}}, **ref("r0")},
    }  # fmt: skip
