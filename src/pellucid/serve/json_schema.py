"""JSON schemas of requests, closed against further properties, and of the Structs of request bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.json import schema_components

# Closes the JSON schemas of requests: an object that lists properties has no other properties by default.
#
# Without ``additionalProperties``, JSON Schema allows further properties. A small model then invents properties until
# it reaches its token limit. llama.cpp, Ollama and vLLM (xgrammar) close open objects, and OpenAI's strict mode
# requires closed objects. The server therefore closes open objects, for every API
# (docs/decisions/0044-llamacpp-and-ollama.md). The Python API follows the schema as it is written.

DEEPEST = 64  # as in sample/grammars/schema.py, which refuses deeper schemas
ONE, SEVERAL, NAMED = (
    ("items", "contains", "additionalItems"),
    ("anyOf", "oneOf", "allOf", "prefixItems", "items"),
    ("properties", "patternProperties", "$defs", "definitions"),
)
OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames")
"""Keys that describe the properties that ``properties`` does not list."""
COMBINED = ("not", "if", "then", "else", "dependentSchemas", "unevaluatedProperties")
"""Keys whose schemas further constrain an object that other keys describe."""


def closed(schema: Any) -> Any:
    """The schema with its open objects closed.

    A schema that combines descriptions of one object (several ``allOf``, ``if``, ``$ref`` beside ``properties``) stays
    unchanged, because closing one description would forbid the properties of the other descriptions. A value that is
    not a schema also stays unchanged.
    """
    parsed = schema
    if isinstance(schema, str):
        try:
            parsed = json.loads(schema)
        except (ValueError, RecursionError):
            return schema
    if not isinstance(parsed, Mapping) or any(map(_combines, _all(parsed, 0))):
        return schema
    return _closed(parsed, 0)


def _combines(node: Mapping[str, Any]) -> bool:
    parts = [node.get("properties"), node.get("$ref"), *_listed(node.get("allOf"))]
    parts += [one for one in (node.get("anyOf"), node.get("oneOf")) if one and "properties" in node]
    return sum(part is not None for part in parts) > 1 or any(key in node for key in COMBINED)


def _closed(node: Any, depth: int) -> Any:
    if not isinstance(node, Mapping) or depth > DEEPEST:
        return node
    closed_node = dict(node)
    for key in (*ONE, "additionalProperties"):
        if isinstance(closed_node.get(key), Mapping):
            closed_node[key] = _closed(closed_node[key], depth + 1)
    for key in SEVERAL:
        if isinstance(closed_node.get(key), list):
            closed_node[key] = [_closed(one, depth + 1) for one in closed_node[key]]
    for key in NAMED:
        if isinstance(closed_node.get(key), Mapping):
            closed_node[key] = {name: _closed(one, depth + 1) for name, one in closed_node[key].items()}
    if isinstance(closed_node.get("properties"), Mapping) and not any(key in closed_node for key in OPEN):
        closed_node["additionalProperties"] = False
    return closed_node


def _all(node: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas in it."""
    if not isinstance(node, Mapping) or depth > DEEPEST:
        return
    yield node
    for key in (*ONE, *COMBINED, "additionalProperties"):
        yield from _all(node.get(key), depth + 1)
    for key in SEVERAL:
        for one in _listed(node.get(key)):
            yield from _all(one, depth + 1)
    for key in NAMED:
        if isinstance(named := node.get(key), Mapping):
            for one in named.values():
                yield from _all(one, depth + 1)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# JSON schemas of the Structs of request bodies, for /openapi.json and for the texts of errors.

Schema: TypeAlias = "Mapping[str, Any]"
KINDS: Mapping[type, str] = {dict: "object", list: "array"}


def closed_object(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of an object that has these properties and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def schema_of(struct: type[Struct]) -> dict[str, Any]:
    """Schema of a Struct, without references and without null: a null field counts as absent."""
    (schema,), parts = schema_components([struct], ref_template="{name}")
    return dict(_inlined(schema, parts))


def _inlined(schema: Schema, parts: Mapping[str, Schema]) -> Schema:
    inlined = dict(schema)
    while "$ref" in inlined:
        inlined = {**parts[inlined.pop("$ref")], **inlined}
    if "properties" in inlined:
        inlined.pop("title", None)  # the name of the class
        inlined["properties"] = {name: _inlined(one, parts) for name, one in inlined["properties"].items()}
    if isinstance(inlined.get("items"), Mapping):
        inlined["items"] = _inlined(inlined["items"], parts)
    if "enum" in inlined:
        inlined = {**inlined, "type": "string", "enum": [one for one in inlined["enum"] if one is not None]}
    if "anyOf" in inlined:
        choices = [_inlined(one, parts) for one in inlined.pop("anyOf") if one != {"type": "null"}]
        if len(choices) == 1:
            inlined = {**choices[0], **inlined}
        else:
            inlined["anyOf"] = [inner for one in choices for inner in one.get("anyOf", [one])]
    if inlined.get("default", 0) in (None, "", [], {}):
        del inlined["default"]
    inlined.pop("discriminator", None)
    return inlined


def described(properties: dict[str, Any], path: str, about: Schema) -> None:
    """Replace the schema of the field ``path``, such as ``tools[].strict``, but keep its type. Adds a missing field."""
    name, _, rest = path.partition(".")
    schema = properties.get(name.removesuffix("[]"), {})
    if rest:
        described((schema["items"] if name.endswith("[]") else schema)["properties"], rest, about)
    else:
        properties[name] = {**{key: schema[key] for key in ("type",) if key in schema}, **about}


def is_ignored(schema: Schema) -> bool:
    """True if a field with this schema changes nothing and its value is not checked (``generation_options.py``)."""
    return "properties" not in schema and str(schema.get("description", "")).startswith("Changes nothing")


def alternatives(schema: Schema, value: Any) -> list[Schema]:
    """Alternatives of a schema that fit a list or an object. An object's ``type`` selects among these alternatives."""
    schemas = [one for one in schema.get("anyOf", [schema]) if one.get("type") == KINDS.get(type(value))]
    kind = value.get("type") if isinstance(value, dict) else None
    tags = [one.get("properties", {}).get("type", {}).get("enum", ()) for one in schemas]
    return [one for one, tag in zip(schemas, tags) if kind in tag] or schemas


def cleaned(schema: Schema, value: Any) -> Any:
    """Remove null and ignored fields from the objects in a value.

    Objects with arbitrary fields, such as JSON schemas, stay unchanged. An object without a type gets the default type
    of its schema.
    """
    if isinstance(value, list):
        items = next((one["items"] for one in alternatives(schema, value) if "items" in one), None)
        if items is None:
            return value
        return [cleaned(items, one) if isinstance(one, (dict, list)) else one for one in value]
    if not isinstance(value, dict):
        return value
    value = {**schema.get("default", {}), **value} if "anyOf" in schema else value
    schemas = [one for one in alternatives(schema, value) if "properties" in one]
    if not schemas:
        return value
    known = {name: one for schema in reversed(schemas) for name, one in schema["properties"].items()}
    is_open = any(one.get("additionalProperties", True) for one in schemas)
    return {
        name: cleaned(known.get(name, {}), one)
        for name, one in value.items()
        if (one is not None or is_open) and not is_ignored(known.get(name, {}))
    }


def expected(schema: Schema) -> str:
    """The values that a schema allows, for an error: "a whole number from 1 to 64"."""
    if "title" in schema:
        return str(schema["title"])
    if "anyOf" in schema:
        return _json_schema_listed(list(dict.fromkeys(map(expected, schema["anyOf"]))))
    if "enum" in schema:
        words = list(map(str, schema["enum"]))
        return f"one of {', '.join(words)}" if len(words) > 2 else _json_schema_listed(words)
    limits = _limits(schema)
    kind = schema.get("type")
    if kind == "array":
        least = "a non-empty list" if schema.get("minItems") else "a list"
        item = expected(schema.get("items", {})).removeprefix("a ").removeprefix("an ")
        return f"{least} of {item}s" if " " not in item.replace("token id", "") else least
    texts = {
        "string": "a text" if not schema.get("minLength") else "a text of at least 1 character",
        "boolean": "true or false",
        "integer": f"a whole number{limits}",
        "number": f"a number{limits}",
        "object": "an object",
    }
    return texts.get(str(kind), "another value")


def _limits(schema: Schema) -> str:
    """The range of a number, such as " from 1 to 64"."""
    low, above, high = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None:
        return f" from {low:,} to {high:,}" if high is not None else f" of at least {low:,}"
    parts = [f"above {above:,}"] if above is not None else []
    parts += [f"at most {high:,}"] if high is not None else []
    return f" {' and '.join(parts)}" if parts else ""


def _json_schema_listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
