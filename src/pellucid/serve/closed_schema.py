"""Closes the JSON schemas of requests: an object that lists properties has no other properties by default.

Without ``additionalProperties``, JSON Schema allows further properties. A small model then invents properties until it
reaches its token limit. llama.cpp, Ollama and vLLM (xgrammar) close open objects, and OpenAI's strict mode requires
closed objects. The server therefore closes open objects, for every API (docs/decisions/0044-llamacpp-and-ollama.md).
The Python API follows the schema as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

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
