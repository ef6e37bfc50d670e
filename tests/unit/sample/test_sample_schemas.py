"""JSON schemas: schemas without a finite text are refused, and options that exclude each other may be ``oneOf``.

The oracles are a search of bounded depth for a finite value, and jsonschema for the validity of values.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from pellucid.errors import InvalidRequest
from pellucid.sample.grammars import problems, rewrites, schema
from pellucid.sample.grammars.grammar import compiled
from pellucid.sample.grammars.rewrites import NOTHING, as_any_of, without_endless_parts


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def needed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


LEAF = {"type": "integer"}
NODE = {"n": needed(value=LEAF, next=ref("n"))}


@pytest.mark.parametrize("names", [True, {}, {"type": "string"}])
def test_property_names_that_allow_every_name_are_left_out(names: Any) -> None:
    value = {"type": "object", "properties": {"map": {"type": "object", "propertyNames": names}}}
    wanted = {"type": "object", "properties": {"map": {"type": "object"}}}
    assert json.loads(schema.read("json_schema", value)) == wanted


# Schemas without a finite text


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (needed(a={"$ref": "#"}), "#/properties/a"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#/items"),
        ({"type": "array", "prefixItems": [LEAF, {"$ref": "#"}], "minItems": 2}, "#/prefixItems/1"),
        ({"$defs": NODE, **ref("n")}, "#/$defs/n/properties/next"),
        ({"$defs": NODE, **needed(a=LEAF, b=ref("n"))}, "#/$defs/n/properties/next"),
        ({"$defs": NODE, "anyOf": [ref("n"), {"type": "array", "items": ref("n"), "minItems": 2}]}, "#/$defs/n/"),
        ({"$defs": {"a": ref("b"), "b": ref("a")}, **ref("a")}, "#/$defs/b"),
        ({"$defs": NODE, "allOf": [{"type": "object"}, ref("n")]}, "#/$defs/n/properties/next"),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1}, "#/additionalProperties"),
        ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["x"]}, "#/additionalProperties"),
        ({"type": ["object", "array"], "items": {"$ref": "#"}, "minItems": 1,
            "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#/properties/a"),
        (needed(**{"a/b": {"$ref": "#"}}), "#/properties/a~1b"),
    ],
    ids=lambda one: json.dumps(one)[:60],
)  # fmt: skip
def test_a_schema_without_a_finite_text_is_refused_with_its_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled("json_schema", schema)
    message = str(caught.value)
    assert f"json_schema cannot be enforced: {path}" in message
    assert "must contain itself, so no text of it ends; allow an alternative to it, such as null" in message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        needed(a={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        needed(a={"type": ["object", "null"], "properties": {"b": {"$ref": "#"}}, "required": ["b"]}),
        {"$defs": NODE, "type": "object", "properties": {"x": ref("n"), "y": LEAF}},
        {"$defs": NODE, "anyOf": [ref("n"), LEAF]},
        {"$defs": NODE, "type": "array", "items": ref("n")},
        {"$defs": NODE, "type": "object", "additionalProperties": ref("n")},
        {"$defs": NODE, "type": "object", "patternProperties": {"^x": ref("n")}, "properties": {"y": LEAF}},
        {"$anchor": "here", "properties": {"a": LEAF}, "$defs": {"b": {"$anchor": "b", **LEAF}}},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
    ids=lambda one: json.dumps(one)[:60],
)
def test_what_can_end_is_taken(schema: dict[str, Any]) -> None:
    compiled("json_schema", schema)


NAMES = ["a", "b", "c"]


def schemas(depth: int = 2) -> st.SearchStrategy[Any]:
    leaf = st.sampled_from([LEAF, {"type": "null"}, *map(ref, NAMES), *map(ref, NAMES)])
    if not depth:
        return leaf
    inner = schemas(depth - 1)
    return st.one_of(
        leaf,
        st.builds(lambda one, least: {"type": "array", "items": one, "minItems": least}, inner, st.integers(0, 2)),
        st.builds(
            lambda named, count: {"type": "object", "properties": named, "required": sorted(named)[:count]},
            st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda several: {"allOf": several}, st.lists(inner, min_size=1, max_size=2)),
    )  # fmt: skip


def ends_within(root: Any, node: Any, depth: int) -> bool:
    """True if a value of at most this depth satisfies the recursive parts of a schema."""
    if not depth:
        return False
    if "$ref" in node:
        return ends_within(root, root["$defs"][node["$ref"].rpartition("/")[2]], depth - 1)
    for key, some in (("anyOf", any), ("allOf", all)):
        if key in node and not some(ends_within(root, one, depth - 1) for one in node[key]):
            return False
    if node.get("type") == "array" and node["minItems"]:
        return ends_within(root, node["items"], depth - 1)
    return all(ends_within(root, node["properties"][one], depth - 1) for one in node.get("required", []))


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({name: schemas() for name in NAMES}), schemas())
def test_finite_schemas_are_those_with_a_value_of_some_depth(defs: dict[str, Any], root: dict[str, Any]) -> None:
    whole = json.loads(json.dumps({"$defs": defs, "anyOf": [root]}))
    wanted = ends_within(whole, whole, 14)
    with nullcontext() if wanted else pytest.raises(InvalidRequest, match="it must contain itself"):
        without_endless_parts("json_schema", whole)


def test_endless_parts_are_left_out() -> None:
    schema_text = schema.read("json_schema", {"$defs": NODE, "properties": {"x": ref("n"), "y": LEAF}})
    assert json.loads(schema_text)["properties"] == {"x": NOTHING, "y": LEAF}


def test_numbers_between_two_bounds_have_few_decimals() -> None:
    bounded = json.loads(schema.read("json_schema", {"type": "number", "minimum": 0.1, "exclusiveMaximum": 0.2}))
    assert bounded["multipleOf"] == 1e-10
    for free in (
        {"type": "number", "minimum": 0.1},
        {"type": "integer", "minimum": 1, "maximum": 9},
        {"type": "number", "minimum": 1, "maximum": 9, "multipleOf": 0.5},
        {"type": "number", "minimum": 0.5, "maximum": 0.5},
    ):
        assert json.loads(schema.read("json_schema", free)) == free
    for least, most in ((-(2**53), 2**53), (0.1, 0.2), (1e-9, 2e-9), (-1e-3, 1e15)):
        compiled("json_schema", {"type": "number", "minimum": least, "maximum": most})
    with pytest.raises(InvalidRequest, match=r"#/items: a number between 0.1 and 0.10000000001 needs over 10 dec"):
        compiled("json_schema", {"items": {"type": "number", "minimum": 0.1, "maximum": 0.10000000001}})


# oneOf


VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 5, -1, 2.5, 1e9, "", "a", "b", "ab", "abc", [], [1], ["a"], [1, "a"], [None], {},
    *({"k": one} for one in ("a", "b", 1, None, {}, [])), {"k": "a", "v": 1}, {"v": 1}, {"v": "x"}, {"k": "b", "w": {}},
]  # fmt: skip


def bound(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """No bound on a number, or a named bound."""
    number = st.sampled_from([-1, 0, 1, 2, 2.5, 5])
    return st.one_of(st.just({}), *(st.builds(lambda value, name=name: {name: value}, number) for name in names))


def container(kind: str, named: Any, required: list[str], closed: bool) -> dict[str, Any]:
    made = {"type": kind, "properties": named, "required": required}
    return {**made, "additionalProperties": False} if closed else made


def options(depth: int = 2) -> st.SearchStrategy[Any]:
    few = st.integers(0, 3)
    simple = st.one_of(
        st.builds(lambda one: {"const": one}, st.sampled_from(VALUES)),
        st.builds(lambda several: {"enum": several}, st.lists(st.sampled_from(VALUES), max_size=4)),
        st.builds(
            lambda kind, low, high: {"type": kind, **low, **high},
            st.sampled_from(["integer", "number", ["number", "null"]]),
            bound("minimum", "exclusiveMinimum"),
            bound("maximum", "exclusiveMaximum"),
        ),
        st.builds(lambda low, high: {"type": "string", "minLength": low, "maxLength": high}, few, few),
        st.sampled_from([{"type": "boolean"}, {"type": ["null", "string"]}, {}, ref("a")]),
    )
    if not depth:
        return simple
    inner = options(depth - 1)
    return st.one_of(
        simple,
        st.builds(
            container,
            st.just("object"),
            st.dictionaries(st.sampled_from("kvw"), inner, max_size=2),
            st.lists(st.sampled_from("kvw"), max_size=2, unique=True),
            st.booleans(),
        ),
        st.builds(
            lambda one, low, high: {"type": "array", "items": one, "minItems": low, "maxItems": high}, inner, few, few
        ),
        st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda several: {"allOf": several}, st.lists(inner, min_size=1, max_size=2)),
    )


@settings(max_examples=600, deadline=None)
@given(options(), options(), options(1))
def test_options_that_exclude_each_other_have_no_value_in_common(one: Any, other: Any, shared: Any) -> None:
    root = {"$defs": {"a": shared}}
    node: dict[str, Any] = {"oneOf": [one, other]}
    as_any_of(root, node)
    if "oneOf" not in node:
        first, second = (Draft202012Validator({**root, "allOf": [part]}) for part in (one, other))
        try:
            shared_values = [value for value in VALUES if first.is_valid(value) and second.is_valid(value)]
        except RecursionError:  # jsonschema follows a reference to itself without end
            return
        assert not shared_values


EXCLUSIVE: list[list[Any]] = [
    [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
    [needed(k={"const": "a"}, v=LEAF), needed(k={"const": "b"}, v={"type": "string"})],
    [needed(k={"const": "a"}), needed(k={"type": "string", "minLength": 2})],
    [needed(k={"enum": [1, 2]}), needed(k={"type": "integer", "minimum": 3})],
    [{**needed(a=LEAF), "additionalProperties": False}, {**needed(b=LEAF), "additionalProperties": False}],
    [needed(d=needed(k={"const": "a"})), needed(d=needed(k={"const": "b"}))],
    [{"type": "array", "items": LEAF, "minItems": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    [{"type": "array", "maxItems": 2}, {"type": "array", "minItems": 3}],
    [{"type": "integer", "maximum": 4}, {"type": "number", "exclusiveMinimum": 4}],
    [{"allOf": [ref("x"), needed(k={"const": 1})]}, needed(k={"const": "1"})],
    [ref("x"), {"type": "string", "maxLength": 3}, {"enum": [[], {}]}],
]


@pytest.mark.parametrize("several", EXCLUSIVE, ids=lambda one: json.dumps(one)[:70])
def test_exclusive_options_are_taken(several: list[Any]) -> None:
    compiled("json_schema", {"$defs": {"x": needed(z=LEAF)}, "type": "object", **needed(one={"oneOf": several})})


@pytest.mark.parametrize(
    "several",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "object", "properties": {"a": LEAF}}, {"type": "object", "properties": {"b": LEAF}}],
        [{"type": "string"}, {"type": "string", "maxLength": 3}],
        [{"type": "array", "items": LEAF}, {"type": "array", "items": {"type": "string"}}],
    ],
    ids=lambda one: json.dumps(one)[:70],
)
def test_options_that_overlap_are_refused_with_their_path(several: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled("json_schema", needed(list={"type": "array", "items": {"oneOf": several}}))
    message = str(caught.value)
    assert "#/properties/list/items: some value may satisfy two options of oneOf; use anyOf, or make" in message


def test_proofs_follow_a_bounded_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [ref(f"d{n + 1}")] * 3, "anyOf": [ref(f"d{n + 1}")] * 3} for n in range(60)
    }
    root = {"$defs": {**defs, "d60": LEAF}}
    node: dict[str, Any] = {"oneOf": [ref("d0"), ref("d1"), ref("d2")]}
    followed, target = list[Any](), rewrites.target

    def counted(root: Any, node: Any) -> Any:
        followed.append(node)
        return target(root, node)

    monkeypatch.setattr(rewrites, "target", counted)
    as_any_of(root, node)
    assert "oneOf" in node
    assert len(followed) <= rewrites.MAX_PAIRS


# Problems


THEIRS = re.compile(
    r"nsatisfiable|Unimplemented|regex parse|lexer|fuel|expressions constructed|too big|items;|Parser Error|EOF while|"
    r"coerce|Expect(?:ed|ing)|retriev|verbose|limit (?:for|[0-9])|not found|DNF|AST|%llguidance|NoExtension"
)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("json_schema", needed(a={"items": {"minimum": "x"}}), '#/properties/a/items: minimum is "x", not a valid'),
        ("json_schema", needed(a={"type": "array", "minItems": 1, "items": {"minimum": 5, "maximum": 1, **LEAF}}),
         "#/properties/a/items: no text satisfies it: minimum 5 is above maximum 1"),
        ("json_schema", {"$defs": {"q": {"anyOf": [LEAF, {"not": {}}]}}, "items": ref("q")},
         '#/$defs/q/anyOf/1: "not" is not implemented; leave it out'),
        ("json_schema", {"properties": {"a": {"pattern": "x(", "type": "string"}}},
         "#/properties/a: /x(/, character 2: a group is not closed"),
        ("json_schema", {"type": "string", "maxLength": 10**10}, "a length of 10000000000 is too large"),
        ("json_schema", {"x-guidance": {"nope": 1}}, 'x-guidance has no option "nope"'),
        ("regex", "ab[c", "character 3: a character class is not closed"),
        ("regex", "a(?=b)", "character 2: look-ahead, look-behind and anchors are not supported; leave them out"),
        ("grammar", 'start: a\na: "x" b', 'line 2, column 4: "b" is not defined; define it'),
        ("grammar", 'root ::= [z-a]', "cannot be enforced: /[z-a]/, character 2: the range of characters ends"),
        ("grammar", 'start: %json {"not": {}}', 'line 1, column 8: "not" is not implemented'),
    ],
)  # fmt: skip
def test_a_problem_has_a_place_and_a_remedy(kind: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled(kind, value)
    assert message in str(caught.value)
    assert not THEIRS.search(str(caught.value))


@given(st.text(max_size=200), st.sampled_from(["json_schema", "regex", "grammar", "choices"]))
def test_a_sentence_that_is_not_known_is_not_quoted(text: str, kind: str) -> None:
    secret = f"Internal thing: {text}zzz\n<non-verbose/>"
    message = str(problems.refusal(kind, "", secret))
    assert message.startswith(f"{kind} cannot be enforced: ")
    assert message.isprintable()
    assert "Internal thing" not in message


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='abAB:|"/()[]{}*+?\\\n %,0149<>.=~&@_-^$', max_size=40), st.sampled_from(["regex", "grammar"]))
def test_what_anyone_writes_is_taken_or_refused_in_our_words(text: str, kind: str) -> None:
    message = ""
    try:
        compiled(kind, text)
    except InvalidRequest as error:
        message = str(error)
    assert not THEIRS.search(message.partition(": ")[2].replace(text, "")), message


class Bytes:
    """A vocabulary of the 256 bytes and an end token, in the form that llguidance reads."""

    bos_token_id, eos_token_id, special_token_ids = None, 256, [256]
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]  # noqa: RUF012 - llguidance reads the class as it is

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


BYTES = LLTokenizer(TokenizerWrapper(Bytes()))


def shortest_text(source: str) -> bytes:
    """A text of a grammar, with white space only where nothing else is possible."""
    matcher, text = LLMatcher(BYTES, source), bytearray()
    while len(text) < 2000:
        possible = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), np.uint8))
        if matcher.is_accepting() or not len(possible):
            return bytes(text)
        byte = min(possible, key=lambda byte: (byte in b" \n\t", byte))
        text.append(byte)
        matcher.consume_token(int(byte))
    raise AssertionError(f"no end: {text!r}")


CHARACTERS = st.text(
    st.one_of(st.sampled_from("\0\x01\x1f\x7f\x80\u2028\ufeff\ud800/\\\"'\n\t\r\b\f{}[],: é😀"), st.characters())
)
NUMBERS = st.integers(-(10**15), 10**15) | st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9)
CONSTANTS = st.recursive(
    st.none() | st.booleans() | NUMBERS | CHARACTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CHARACTERS, inner, max_size=3),
    max_leaves=6,
)


@given(CONSTANTS, st.sampled_from(["const", "enum", "item"]))
def test_constants_are_generated_exactly_or_refused(value: Any, how: str) -> None:
    constant = {"const": value} if how != "enum" else {"enum": [value]}
    item = {"type": "array", "prefixItems": [constant], "minItems": 1, "maxItems": 1}
    schema = item if how == "item" else constant
    if has_escapes(value):
        with pytest.raises(InvalidRequest, match=r"has the character U\+|has half of a character"):
            compiled("json_schema", schema)
        return
    try:
        source = compiled("json_schema", schema).source
    except InvalidRequest as error:
        (stated,) = re.findall(r"the constant (\S+) would be generated as \S+; use fewer digits$", str(error))
        assume(len(stated) < 17)  # some numbers with all digits of a float64 are refused
        raise
    found = json.loads(shortest_text(source))
    assert (found[0] if how == "item" else found) == value


def has_escapes(value: Any) -> bool:
    """True if a text of the value has a character that needs an escape with four digits, or a name a surrogate."""
    if isinstance(value, str):
        return bool(re.search(r"[^\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff\b\t\n\f\r]", value))
    if isinstance(value, dict):
        return any(map(has_escapes, value.values())) or bool(re.search("[\ud800-\udfff]", "".join(value)))
    return isinstance(value, list) and any(map(has_escapes, value))


def test_a_repeated_free_name_has_a_value_of_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"ab": {"const": 1}},
        "patternProperties": {"^a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    source = compiled("json_schema", schema).source
    for text, possible in (
        ('{"ab":1,"ac":2,"ac":3}', True),
        ('{"ab":1,"b":"x","b":"y"}', True),
        ('{"ab":1,"ab":2}', False),
        ('{"ac":2,"ac":"x"}', False),
        ('{"b":"x","b":2}', False),
    ):
        tokens = list(text.encode())
        assert (LLMatcher(BYTES, source).validate_tokens(tokens) == len(tokens)) == possible, text
