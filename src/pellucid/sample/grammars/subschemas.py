"""The parts of a JSON schema: its direct subschemas with their paths, and the targets of its references."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

SCHEMA_KEYS = (
    "items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
LIST_KEYS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
MAP_KEYS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
MAX_PATH_CHARACTERS, MAX_SEARCH_SECONDS = 160, 0.5
ROOT = "root"


def subschemas(node: Any) -> Iterator[tuple[str, Any]]:
    """The direct subschemas of a schema, each with its path from the schema, such as "/properties/name"."""
    if not isinstance(node, dict):
        return
    for key in SCHEMA_KEYS:
        if isinstance(part := node.get(key), (dict, bool)):
            yield f"/{key}", part
    for key in LIST_KEYS:
        if isinstance(parts := node.get(key), list):
            yield from ((f"/{key}/{at}", part) for at, part in enumerate(parts))
    for key in MAP_KEYS:
        if isinstance(named := node.get(key), dict):
            yield from ((f"/{key}/{_escaped(name)}", part) for name, part in named.items())


def list_in(node: dict[str, Any], key: str) -> list[Any]:
    """The list in a field of a schema; empty if the field has no list."""
    return value if isinstance(value := node.get(key), list) else []


def number_in(node: dict[str, Any], key: str, default: Any = 0) -> Any:
    """The number in a field of a schema; ``default`` if the field has no number."""
    return value if is_number(value := node.get(key)) else default


def is_number(value: Any) -> TypeGuard[float]:
    """True for a JSON number. A bool is not a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def resolved(root: Any, reference: str) -> Any:
    """The node that a reference points to; None if no such node exists in this schema."""
    node = root
    if reference != "#" and not reference.startswith("#/"):  # an anchor, or another document
        return None
    for part in reference.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def target(root: Any, node: Any) -> Any:
    """The schema that ``node`` refers to with ``$ref``, or None."""
    reference = node.get("$ref") if isinstance(node, dict) else None
    return resolved(root, reference) if isinstance(reference, str) else None


def shown_path(path: str) -> str:
    """A path in the form for error messages: shortened if it is long."""
    return f"#{path}" if len(path) < MAX_PATH_CHARACTERS else f"#…{path[-MAX_PATH_CHARACTERS:]}"


def innermost(root: Any, problem: str, problem_of: Callable[[Any], str]) -> tuple[str, str]:
    """Find the innermost part of a schema that causes a problem. Returns its path for errors, and its problem.

    ``problem_of`` returns the problem of a schema. The search stops after ``MAX_SEARCH_SECONDS``.
    """
    end, path, node, seen = time.perf_counter() + MAX_SEARCH_SECONDS, "", root, {id(root)}
    defs = {"$defs": {ROOT: _moved(root)}}
    while True:
        inner = [(path + more, part) for more, part in subschemas(node)]
        if (other := target(root, node)) is not None:
            inner.append((node["$ref"].removeprefix("#"), other))
        name, culprit = _of_required(problem), None
        for place, part in inner:
            if not isinstance(part, dict) or id(part) in seen or time.perf_counter() > end:
                continue
            here = problem_of({**defs, "$ref": f"#/$defs/{ROOT}{place}"}).partition("\n  while")[0]
            if here == problem:
                culprit = place, part, here
                break
            if here and culprit is None and name is not None and place.endswith(name):
                culprit = place, part, here
        if culprit is None:
            return shown_path(path), problem
        path, node, problem = culprit
        seen.add(id(node))


def _of_required(problem: str) -> str | None:
    """The end of the path of the required part that causes a problem. None if no required part causes the problem.

    Returns "" if a required part causes the problem, but the message of the problem does not name the part.
    """
    if "unsatisfiable" not in problem:
        return None
    return "/" + _escaped(problem.split("'")[1]) if problem.count("'") > 1 else ""


def _moved(node: Any) -> Any:
    """A copy of a schema whose references are changed, so that the schema can be placed under ``$defs``."""
    if isinstance(node, list):
        return [_moved(part) for part in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(part) for key, part in node.items()}
    if isinstance(reference := node.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/{ROOT}{reference[1:]}"
    return moved


def _escaped(name: str) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")
