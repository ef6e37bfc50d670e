"""Random bodies of all routes: fields of the schema pass, and an unknown field at any depth is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.serve.api import known_apis

SECONDS, MEMORY, SMALL, LONG = 5.0, 4 << 30, 300, 100_000
DEEP = 4
UNKNOWN = "no_field_has_this_name"
BODIES = {name: route.body for api in known_apis().values() for name, route in api.routes.items() if route.body}


def drawn(random: Random, schema: Mapping[str, Any], depth: int = 0) -> Any:
    """A random value with the field names of a schema. Numbers and strings are arbitrary."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return random.choice(schema["enum"])
    if "anyOf" in schema:
        return drawn(random, random.choice(schema["anyOf"]), depth)
    kind = schema.get("type", "string")
    if kind == "object":
        known, required = schema.get("properties", {}), schema.get("required", [])
        names = [name for name in known if name in required or (depth < DEEP and random.random() < 0.3)]
        return {name: drawn(random, known[name], depth + 1) for name in names}
    if kind == "array":
        count = random.randint(max(schema.get("minItems", 1), 1), min(schema.get("maxItems", 2), 2))
        return [drawn(random, schema.get("items", {}), depth + 1) for _ in range(count)]
    return {"integer": schema.get("minimum", 1), "number": 0.5, "boolean": True}.get(kind, "a")


def closed_objects(schema: Mapping[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects inside a value that refuse unknown fields."""
    if "anyOf" in schema:
        kind = {dict: "object", list: "array"}.get(type(value))
        fitting = [one for one in schema["anyOf"] if one.get("type") == kind]
        if len(fitting) == 1:  # with several, another schema may accept the field
            yield from closed_objects(fitting[0], value)
    elif isinstance(value, dict):
        if schema.get("additionalProperties", True) is False:
            yield value
        for name, one in value.items():
            yield from closed_objects(schema.get("properties", {}).get(name, {}), one)
    elif isinstance(value, list):
        for one in value:
            yield from closed_objects(schema.get("items", {}), one)


def case(random: Random, folder: Path) -> str | None:
    """Check a body unchanged, and with an unknown field in one object of its Struct."""
    name, body_type = random.choice(sorted(BODIES.items()))
    schema, own = body_type.schema, body_type.struct.__struct_fields__
    fields = {field: one for field, one in schema["properties"].items() if field in own and field != "options"}
    body = drawn(random, schema)
    try:
        body_type.decode(body)
    except InvalidRequest as error:
        return f"{name}: {body}: {error}" if "unknown option" in str(error) else None
    closed = list(closed_objects({**schema, "properties": fields}, body))
    random.choice(closed)[UNKNOWN] = random.choice([1, "a", [], {}, False])
    try:
        body_type.decode(body)
    except InvalidRequest as error:
        return None if UNKNOWN in str(error) else f"{name}: {body}: {error}"
    return f"{name}: {body}: an unknown name passes"
