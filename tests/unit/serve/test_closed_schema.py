"""Open objects of a schema are closed. Valid values are valid in the original schema, without unknown properties."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.serve.json_schema import closed

NAMES = st.sampled_from(["a", "b", "c"])
LEAF = st.sampled_from(
    [{"type": "boolean"}, {"type": "integer"}, {"const": "x"}, {"type": "object"}, True, {"$ref": "#/$defs/d"}]
)
SCHEMAS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds(
            lambda named, least, more: {"properties": named, "required": sorted(named)[:least], **more},
            st.dictionaries(NAMES, inner, max_size=3),
            st.integers(0, 2),
            st.sampled_from([{}, {"additionalProperties": True}, {"additionalProperties": {"type": "integer"}}]),
        ),
        st.builds(lambda one: {"type": "array", "items": one}, inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda some: {"allOf": some}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda one: {"not": one}, inner),
    ),
    max_leaves=6,
)  # fmt: skip
VALUES = st.recursive(
    st.booleans() | st.integers(0, 2) | st.just("x"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=5,
)


def valid(value: Any, schema: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@given(SCHEMAS, SCHEMAS, VALUES)
def test_what_is_valid_stays_so(schema: Any, other: Any, value: Any) -> None:
    if not isinstance(schema, dict):
        return
    schema = {**schema, "$defs": {"d": other if isinstance(other, dict) and "$ref" not in str(other) else True}}
    before = json.dumps(schema)
    made = closed(schema)
    assert json.dumps(schema) == before  # the caller's schema is unchanged
    assert valid(value, schema) or not valid(value, made)
    assert closed(made) == made


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": True}, "additionalProperties": True},
        {"properties": {"a": True}, "additionalProperties": {"type": "integer"}},
        {"properties": {"a": True}, "patternProperties": {"^x": True}},
        {"allOf": [{"properties": {"a": True}}, {"properties": {"b": True}}]},
        {"properties": {"a": True}, "anyOf": [{"required": ["b"]}]},
        {"properties": {"a": {"$ref": "#/$defs/d", "properties": {"x": True}}}, "$defs": {"d": True}},
        {"if": {"properties": {"a": True}}, "then": True},
        "no JSON",
        "5",
        5,
        None,
    ],
)
def test_what_is_left_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def test_what_pydantic_writes_is_closed() -> None:
    room = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
    house = {
        "type": "object",
        "properties": {
            "rooms": {"type": "array", "items": {"$ref": "#/$defs/Room"}},
            "best": {"allOf": [{"$ref": "#/$defs/Room"}], "description": "the best"},
            "other": {"anyOf": [{"$ref": "#/$defs/Room"}, {"type": "null"}]},
        },
        "$defs": {"Room": room},
    }
    value = {"rooms": [{"size": 1}], "best": {"size": 2}, "other": None}
    for made in (closed(house), closed(json.dumps(house))):
        assert valid(value, made)
        for wrong in (
            {**value, "x": 1},
            {**value, "rooms": [{"size": 1, "x": 1}]},
            {**value, "best": {"size": 1, "x": 1}},
        ):
            assert valid(wrong, house)
            assert not valid(wrong, made)


def test_a_schema_that_is_nested_too_deeply_is_left_to_the_check() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep}
    assert closed(deep)
