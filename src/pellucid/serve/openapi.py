"""OpenAPI 3.1 document of the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pellucid
from pellucid.serve.api import Api, Route, known_apis

ANSWER = {"type": ["object", "array"]}
STATUSES = {
    "400": "A field is wrong; the message names it, its value and the limit.",
    "401": "A key is needed.",
    "403": "The host or the origin is not allowed.",
    "404": "The server does not have this model.",
    "413": "The body is too long.",
    "408": "The request's deadline has passed.",
    "503": "The queue is full, or memory is short: retry after Retry-After seconds.",
}


def document(models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI document of a server with these models."""
    paths: dict[str, dict[str, Any]] = {}
    for api in known_apis().values():
        for name, route in api.routes.items():
            method, path = name.split(" ")
            shown = re.sub(r":\w+}", "}", path)
            paths.setdefault(shown, {})[method.lower()] = _operation(api, name, route, models)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pellucid", "version": pellucid.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(api: Api, name: str, route: Route, models: Sequence[str]) -> dict[str, Any]:
    good: dict[str, Any] = {
        route.media: {"schema": ANSWER if route.media == "application/json" else {"type": "string"}}
    }
    if route.stream:
        good[route.stream] = {"schema": {}}  # OpenAPI has no schema for events
    error = {"application/json": {"schema": _like(api.error(400, "the message"))}}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", name).strip("_").lower(),
        "summary": route.summary,
        "tags": [api.name],
        "responses": {
            "200": {"description": "The answer.", "content": good},
            **{status: {"description": text, "content": error} for status, text in STATUSES.items()},
        },
    }
    if route.body is not None:
        properties = dict(route.body.schema["properties"])
        if "model" in properties:
            properties["model"] = {"type": "string", "enum": list(models)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {**route.body.schema, "properties": properties}}},
        }
    if parameters := re.findall(r"{(\w+)", name):
        operation["parameters"] = [
            {"name": one, "in": "path", "required": True, "schema": _of_parameter(one, models)}
            for one in parameters
        ]
    return operation


def _of_parameter(name: str, models: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", **({"enum": list(models)} if name == "name" else {})}


def _like(example: Any) -> dict[str, Any]:
    """JSON schema of values like an example."""
    if not isinstance(example, dict):
        return {"type": "string"} if isinstance(example, str) else {}
    properties = {name: _like(value) for name, value in example.items()}
    return {"type": "object", "properties": properties, "required": list(example)}
