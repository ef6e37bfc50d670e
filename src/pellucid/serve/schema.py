"""JSON schemas of request bodies, for /openapi.json. They list the known fields: any other field is refused.

Types and ranges are checked where bodies are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample import checking
from pellucid.sample.options import CHECKS, Options
from pellucid.sample.step import steps
from pellucid.serve.body import ALSO, STRUCTURED, BodyForm
from pellucid.serve.harmless import HARMLESS

Schema: TypeAlias = "Mapping[str, Any]"
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
FILLED: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"anyOf": [FILLED, {"type": "array", "items": FILLED, "minItems": 1}]}
IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
PROMPT: Schema = {"anyOf": [TEXT, IDS, {"type": "array", "items": {"anyOf": [TEXT, IDS]}, "minItems": 1}]}
SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
VALUES: Schema = {"anyOf": [{"type": "number"}, {"type": "array"}, TEXT]}
SHAPES: Mapping[str, Schema] = {
    "stop": TEXTS,
    "stop_token_ids": IDS,
    "samplers": {"type": "array", "items": {"type": "string", "enum": list(steps())}},
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
"""Schemas of options whose checks do not state a type."""
INNER = ("until", "sampling")
"""Options that JSON cannot express."""
LOGPROBS = ("logprobs", "prompt_logprobs", "logprobs_of")
"""Options of log-probabilities, for APIs whose responses have no log-probabilities."""


def whole(low: int, high: int) -> Schema:
    """An integer from ``low`` to ``high``."""
    return {"type": "integer", "minimum": low, "maximum": high}


def one_of(*values: str) -> Schema:
    """One of several strings."""
    return {"type": "string", "enum": list(values)}


def listed(items: Schema) -> Schema:
    """A non-empty list."""
    return {"type": "array", "items": items, "minItems": 1}


def closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    """An object without other fields."""
    made = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": list(required)} if required else made


def harmless(field: str) -> Schema:
    """A field that changes nothing."""
    return {"description": f"Changes nothing: {HARMLESS[field]}."}


def tools(item: Schema) -> Schema:
    """A list of tools with this schema."""
    return {"type": "array", "items": any_of(item), "maxItems": 128}


def any_of(*schemas: Schema) -> Schema:
    """A value that satisfies at least one schema. Other values are refused where bodies are read."""
    return {"anyOf": list(schemas)}


def function(parameters: str = "parameters", **more: Schema) -> Schema:
    """The description of a function. The field named ``parameters`` holds its JSON schema."""
    about = {"name": TEXT, "description": TEXT, parameters: OBJECT, "strict": FLAG}
    return closed({**about, **more}, "name")


def message(*roles: str) -> Schema:
    """A message whose content is text or text parts. Its other fields go to the chat template."""
    part = any_of(
        closed(
            {"type": one_of("text"), "text": TEXT, "cache_control": harmless("cache_control")}, "type", "text"
        ),
        closed({"type": one_of("refusal"), "refusal": TEXT}, "type", "refusal"),
    )
    content = {"anyOf": [TEXT, {"type": "array", "items": part}]}
    return {
        "type": "object",
        "properties": {"role": one_of(*roles), "content": content},
        "required": ["role"],
    }


def body(
    required: Mapping[str, Schema], optional: Mapping[str, Schema], form: BodyForm | None = None
) -> dict[str, Any]:
    """A body with the fields of its ``form``. /openapi.json lists the server's models in the field ``model``."""
    of_form = dict[str, Schema]()
    if form is not None:
        options = generation_options()
        of_form = {name: options[option] for name, option in form.renamed.items()}
        of_form |= {name: harmless(name) for name in sorted(form.harmless)}
        of_form |= {
            name: {"const": value, "description": "No other value."} for name, value in form.only.items()
        }
    properties = {**of_form, **required, **optional}
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def of_any_model(schema: Schema) -> Schema:
    """A body whose ``model`` is optional: the server's first model answers by default."""
    return {**schema, "required": [name for name in schema["required"] if name != "model"]}


def check_names(schema: Schema, value: Any, where: str = "") -> None:
    """Refuse fields that a schema does not have, in objects at any depth. A null field counts as absent.

    Raises:
        InvalidRequest: a field is unknown; the message names it and suggests known fields.
    """
    if isinstance(value, (list, Mapping)) and "anyOf" in schema:
        kind = "array" if isinstance(value, list) else "object"
        _check_one_of([one for one in schema["anyOf"] if one.get("type") == kind], value, where)
    elif isinstance(value, list):
        for at, one in enumerate(value):
            check_names(schema.get("items", {}), one, f"{where}[{at}]")
    elif isinstance(value, Mapping):
        known = schema.get("properties", {})
        for name, one in value.items():
            if name in known:
                check_names(known[name], one, f"{where}.{name}" if where else name)
            elif one is not None and schema.get("additionalProperties", True) is False:
                raise _unknown(str(name), known, where)


def _check_one_of(schemas: list[Schema], value: Any, where: str) -> None:
    """Check the field names of a value: one of several schemas must accept them. Raises as ``check_names``."""
    problems = list[InvalidRequest]()
    for schema in [one for one in schemas if _is_meant(one, value)]:
        try:
            check_names(schema, value, where)
        except InvalidRequest as problem:
            problems.append(problem)
        else:
            return
    if problems:
        raise problems[0]


def _is_meant(schema: Schema, value: Any) -> bool:
    """True if the schema knows the object's values of its "enum" fields, such as its type."""
    known = schema.get("properties", {}) if isinstance(value, Mapping) else {}
    return all(value[name] in one["enum"] for name, one in known.items() if "enum" in one and name in value)


def _unknown(name: str, known: Mapping[str, Schema], where: str) -> InvalidRequest:
    from difflib import get_close_matches  # slow to import, and only this error needs it

    near, path = get_close_matches(name[:100], known, 3, 0.5), f"{where}." if where else ""
    others = (
        f"it may have {', '.join(known)}" if where else "GET /openapi.json shows all fields of this request"
    )
    hint = f"did you mean {' or '.join(path + one for one in near)}?" if near else others
    return InvalidRequest(f"unknown option {brief(path + name)}: {hint}")


def generation_options(*without: str) -> dict[str, Schema]:
    """Schemas of the generation options. An API excludes options whose results its responses do not show."""
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
    found |= {name: found[option] for name, option in ALSO.items()}
    found["structured_outputs"] = closed(
        {"json_object": FLAG, **{name: found[option] for name, option in STRUCTURED.items()}}
    )
    found |= {"priority": whole(-100, 100), "deadline": {"type": "number", "minimum": 0.001}}
    return {name: schema for name, schema in found.items() if name not in without}


def _of(check: Any, default: Any, text: str = "") -> dict[str, Any]:
    """Schema of an option, from its check or its default."""
    made: dict[str, Any] = {"description": text} if text else {}
    if isinstance(check, checking.whole):
        return {**made, **whole(check.low, check.high)}
    if isinstance(check, checking.real):
        least = "exclusiveMinimum" if check.above else "minimum"
        return {**made, "type": "number", least: check.low, "maximum": check.high}
    return {**made, **({"type": "boolean"} if isinstance(default, bool) else {})}
