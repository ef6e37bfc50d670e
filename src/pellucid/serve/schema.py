"""JSON schemas of requests' bodies, for /openapi.json. The checks themselves are where bodies are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from pellucid.sample import checking
from pellucid.sample.options import CHECKS, Options
from pellucid.sample.step import steps

Schema: TypeAlias = "Mapping[str, Any]"
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
FILLED: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"anyOf": [FILLED, {"type": "array", "items": FILLED, "minItems": 1}]}
IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
PROMPT: Schema = {"anyOf": [TEXT, IDS, {"type": "array", "items": {"anyOf": [TEXT, IDS]}, "minItems": 1}]}
TOOLS: Schema = {"type": "array", "items": OBJECT, "maxItems": 128}
SHAPES: Mapping[str, Schema] = {
    "stop": TEXTS,
    "stop_token_ids": IDS,
    "keep_special": {"anyOf": [FLAG, IDS]},
    "logprobs_of": {"type": "string", "enum": ["logits", "chain"]},
    "banned": IDS,
    "allowed": IDS,
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "dry_sequence_breakers": TEXTS,
    "json_schema": OBJECT,
    "regex": TEXT,
    "choices": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    "grammar": TEXT,
}
"""Options whose checks do not say what they take."""
INNER = ("samplers", "until", "sampling")
"""Options that JSON cannot have."""


def whole(low: int, high: int) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


def one_of(*values: str) -> Schema:
    """One of several texts."""
    return {"type": "string", "enum": list(values)}


def listed(items: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": items, "minItems": 1}


def message(*roles: str) -> Schema:
    """A message: a text, or parts of it."""
    part = {
        "type": "object",
        "properties": {"type": one_of("text"), "text": TEXT},
        "required": ["type", "text"],
    }
    content = {"anyOf": [TEXT, {"type": "array", "items": part}]}
    return {
        "type": "object",
        "properties": {"role": one_of(*roles), "content": content},
        "required": ["role", "content"],
    }


def body(required: Mapping[str, Schema], optional: Mapping[str, Schema]) -> dict[str, Any]:
    """A body. The field ``model`` is filled in by the server that describes itself; its first model is the default."""
    needed = [name for name in required if name != "model"]
    return {"type": "object", "properties": {**required, **optional}, "required": needed}


def generation_options() -> dict[str, Schema]:
    """The options of a generation, as every API accepts them."""
    found: dict[str, Schema] = {}
    for kind in steps().values():
        for one in fields(kind):
            if "check" in one.metadata:
                found[one.name] = _of(one.metadata["check"], one.default, one.metadata["help"])
    for one in fields(Options):
        if one.name not in INNER:
            found[one.name] = _of(CHECKS.get(one.name), one.default)
    for name, schema in SHAPES.items():
        about = {key: value for key, value in found[name].items() if key == "description"}
        found[name] = {**about, **schema}
    return {**found, "priority": whole(-100, 100), "deadline": {"type": "number", "minimum": 0.001}}


def _of(check: Any, default: Any, text: str = "") -> dict[str, Any]:
    """The schema of an option, from its check or its default."""
    made: dict[str, Any] = {"description": text} if text else {}
    if isinstance(check, checking.whole):
        return {**made, **whole(check.low, check.high)}
    if isinstance(check, checking.real):
        least = "exclusiveMinimum" if check.above else "minimum"
        return {**made, "type": "number", least: check.low, "maximum": check.high}
    return {**made, **({"type": "boolean"} if isinstance(default, bool) else {})}
