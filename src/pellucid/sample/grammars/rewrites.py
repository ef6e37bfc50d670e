"""Rewrites of a schema: parts without a finite text are removed, and ``oneOf`` becomes ``anyOf`` where that is
equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, TypeGuard

from pellucid.errors import brief
from pellucid.sample.grammars.problems import refused

# The parts of a JSON schema: its direct subschemas with their paths, and the targets of its references.

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


# No finite text satisfies a schema if every text of it must contain another text of the same schema, such as an object
# whose required property refers to the object's own schema.
NOTHING: dict[str, Any] = {"anyOf": []}
"""A schema that no text satisfies. llguidance accepts it as an alternative and as an optional property."""
DECIMALS = 10
CONTAINERS, PROPERTIES = {"object", "array"}, ("properties", "patternProperties")


class _Finite:
    """Finds the parts of a schema that have a finite text. They are a least fixed point, computed from the leaves."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.nodes: dict[int, tuple[str, dict[str, Any]]] = {}
        stack: list[tuple[str, Any]] = [("", root)]
        while stack:
            path, node = stack.pop()
            if isinstance(node, dict) and id(node) not in self.nodes:
                self.nodes[id(node)] = path, node
                stack += [(path + more, part) for more, part in subschemas(node)]
                if (other := target(root, node)) is not None:
                    stack.append((node["$ref"].removeprefix("#"), other))
        self.finite = set[int]()
        # In reverse order most parts come before the parts that need them.
        unsettled = [*reversed(self.nodes.items())]
        before = -1
        while before != len(self.finite):
            before = len(self.finite)
            for key, (_, node) in unsettled:
                if any(all(map(self._any_ends, needs)) for needs in self._ways(node)):
                    self.finite.add(key)
            unsettled = [part for part in unsettled if part[0] not in self.finite]

    def has_end(self, node: Any) -> bool:
        """True if a part has a finite text, as far as is known, or is no schema, which other checks report."""
        return not isinstance(node, dict) or id(node) in self.finite

    def _any_ends(self, choices: list[Any]) -> bool:
        return any(map(self.has_end, choices))

    def _ways(self, node: dict[str, Any]) -> list[list[list[Any]]]:
        """The ways to satisfy a schema. A way is a list of needs. A need is a list of alternative parts."""
        if "const" in node or "enum" in node:
            return [[]]
        needs = [[part] for part in list_in(node, "allOf")]
        needs += [choices for key in ("anyOf", "oneOf") if (choices := list_in(node, key))]
        if (other := target(self.root, node)) is not None:
            needs.append([other])
        kinds = node.get("type")
        kinds = {kinds} if isinstance(kinds, str) else set(filter(_is_text, list_in(node, "type")))
        ways = [*map(self._of_object, [node] * ("object" in kinds)), *map(self._of_array, [node] * ("array" in kinds))]
        return [needs + way for way in ways] if kinds and kinds <= CONTAINERS else [needs]

    def _of_object(self, node: dict[str, Any]) -> list[list[Any]]:
        """The needs of an object: its required properties, and another property if ``minProperties`` asks for more."""
        named, patterns = ((parts if isinstance(parts := node.get(key), dict) else {}) for key in PROPERTIES)
        rest = [node.get("additionalProperties", True), *patterns.values()]
        needs = [[named[name]] if name in named else rest for name in filter(_is_text, list_in(node, "required"))]
        least = number_in(node, "minProperties")
        return [*needs, [*named.values(), *rest]] if least > len(needs) else needs

    def _of_array(self, node: dict[str, Any]) -> list[list[Any]]:
        """The needs of a list: its first ``minItems`` items."""
        first = list_in(node, "prefixItems") or list_in(node, "items")
        rest = node.get("items", True) if "prefixItems" in node or not first else node.get("additionalItems", True)
        least = int(number_in(node, "minItems"))
        return [*([part] for part in first[: max(least, 0)]), *([[rest]] if least > len(first) else [])]

    def endless(self) -> str:
        """The path of a part that must contain itself in every text."""
        node, seen = self.root, set[int]()
        while True:
            seen.add(id(node))
            needs = next(choices for choices in self._ways(node)[0] if not self._any_ends(choices))
            if id(needs[0]) in seen:
                return self.nodes[id(node)][0]
            node = needs[0]


def without_endless_parts(kind: str, root: Any) -> list[dict[str, Any]]:
    """Replace the parts of a schema that no finite text satisfies by parts that allow no text. Return all parts.

    Raises InvalidRequest: the whole schema has no finite text, or the two bounds of a number are too close.
    """
    parts = _Finite(root)
    if not parts.has_end(root):
        raise refused(
            kind,
            f"{shown_path(parts.endless())}: it must contain itself, so no text of it ends",
            "allow an alternative to it, such as null, or do not require it",
        )
    for key, (path, node) in parts.nodes.items():
        if key not in parts.finite:
            for name in node.keys() - {"$defs", "definitions"}:
                del node[name]
            node.update(NOTHING)
        else:
            _bound_decimals(kind, path, node)
    return [node for _, node in parts.nodes.values()]


def _bound_decimals(kind: str, path: str, node: dict[str, Any]) -> None:
    """Limit the decimals of a number between two bounds. Without the limit the number might never end."""
    kinds = node.get("type", "number")
    may_be_fraction = kinds == "number" or (isinstance(kinds, list) and "number" in kinds)
    if {"multipleOf", "const", "enum"} & node.keys() or not may_be_fraction:
        return
    low = [node[key] for key in ("minimum", "exclusiveMinimum") if is_number(node.get(key))]
    high = [node[key] for key in ("maximum", "exclusiveMaximum") if is_number(node.get(key))]
    if not low or not high or max(low) >= min(high):
        return
    least, most = max(low), min(high)
    if most - least < 10.0 ** (1 - DECIMALS):
        raise refused(
            kind,
            f"{shown_path(path)}: a number between {brief(least)} and {brief(most)} needs over {DECIMALS} decimals",
            "move the bounds apart",
        )
    node["multipleOf"] = 10.0**-DECIMALS


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# Replaces ``oneOf`` by ``anyOf`` in a schema if no value can satisfy two of its alternatives. In this case ``oneOf``
# and ``anyOf`` have the same meaning. llguidance can prove this only for some schemas, and refuses all other schemas
# with ``oneOf``.

MAX_OPTIONS, MAX_DEPTH, MAX_PAIRS = 64, 16, 50_000
KINDS = frozenset({"null", "boolean", "number", "string", "array", "object"})
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def as_any_of(root: Any, node: dict[str, Any]) -> None:
    """Replace ``oneOf`` in ``node`` if there is a proof that its alternatives exclude each other."""
    options = node.get("oneOf")
    if not isinstance(options, list) or not 0 < len(options) <= MAX_OPTIONS:
        return
    proof = _Exclusion(root)
    if all(proof.excludes(first, second, MAX_DEPTH) for first, second in combinations(options, 2)):
        del node["oneOf"]
        if "anyOf" in node:
            node["allOf"] = [*node.get("allOf", []), {"anyOf": options}]
        else:
            node["anyOf"] = options


class _Exclusion:
    """Proves that no value satisfies two schemas. A method returns False if it finds no proof."""

    def __init__(self, root: Any) -> None:
        self.root, self.budget = root, MAX_PAIRS

    def excludes(self, schema: Any, other: Any, depth: int) -> bool:
        """True if provably no value satisfies both schemas."""
        if schema is False or other is False:
            return True
        if not isinstance(schema, dict) or not isinstance(other, dict) or not depth:
            return False
        for first in self._parts(schema, depth):
            for second in self._parts(other, depth):
                self.budget -= 1
                if self.budget < 0:
                    return False
                if self._pair_excludes(first, second, depth - 1):
                    return True
        return False

    def _parts(self, node: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        """The schemas that each value of ``node`` satisfies: ``node``, its ``$ref``, and the parts of its ``allOf``."""
        self.budget -= 1
        if self.budget < 0:
            return
        yield node
        for part in [target(self.root, node), *list_in(node, "allOf")]:
            if isinstance(part, dict) and depth:
                yield from self._parts(part, depth - 1)

    def _pair_excludes(self, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        for first, second in ((schema, other), (other, schema)):
            values = _values(first)
            if values is not None and all(self._refuses(second, value, depth) for value in values):
                return True
            for key in ("anyOf", "oneOf"):
                options = first.get(key)
                if isinstance(options, list) and all(self.excludes(part, second, depth) for part in options):
                    return True
        return all(self._of_kind(kind, schema, other, depth) for kind in _kinds(schema) & _kinds(other))

    def _of_kind(self, kind: str, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """True if no value of a kind satisfies both schemas."""
        if kind == "number":
            return _disjoint(schema, other, LOWER, UPPER)
        if kind == "string":
            return _disjoint(schema, other, ("minLength",), ("maxLength",))
        if kind == "array":
            return _disjoint(schema, other, ("minItems",), ("maxItems",)) or self._first_items(schema, other, depth)
        return kind == "object" and (self._properties(schema, other, depth) or self._properties(other, schema, depth))

    def _first_items(self, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """True if one schema requires an item, and provably no first item satisfies both schemas."""
        needed = [node for node in (schema, other) if number_in(node, "minItems") >= 1]
        first = [(node.get("prefixItems") or [node.get("items", True)])[0] for node in (schema, other)]
        return bool(needed) and self.excludes(first[0], first[1], depth)

    def _properties(self, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """True if a required property of the first schema excludes the other schema."""
        mine, others = (
            properties if isinstance(properties := node.get("properties"), dict) else {} for node in (schema, other)
        )
        closed = other.get("additionalProperties") is False and not other.get("patternProperties")
        for name in list_in(schema, "required"):
            if closed and name not in others:
                return True
            if name in mine and name in others and self.excludes(mine[name], others[name], depth):
                return True
        return False

    def _refuses(self, node: Any, value: Any, depth: int) -> bool:
        """True if a value certainly violates a schema."""
        if node is False:
            return True
        if not isinstance(node, dict) or not depth:
            return False
        for part in self._parts(node, depth):
            values = _values(part)
            if _kind(value) not in _kinds(part) or (values is not None and not any(map(_same(value), values))):
                return True
            if part.get("type") == "integer" and isinstance(value, float) and not value.is_integer():
                return True
            options = part.get("anyOf")
            if isinstance(options, list) and all(self._refuses(option, value, depth - 1) for option in options):
                return True
            as_schema = {"number": {"minimum": value, "maximum": value}}.get(_kind(value))
            if as_schema and _disjoint(as_schema, part, LOWER, UPPER):
                return True
            length = len(value) if isinstance(value, (str, list)) else None
            keys = ("Length", "Items")[isinstance(value, list)]
            if length is not None and _disjoint(
                {f"min{keys}": length, f"max{keys}": length}, part, (f"min{keys}",), (f"max{keys}",)
            ):
                return True
            if isinstance(value, dict) and any(name not in value for name in list_in(part, "required")):
                return True
        return False


def _values(node: dict[str, Any]) -> list[Any] | None:
    """The values that ``const`` or ``enum`` allow."""
    if "const" in node:
        return [node["const"]]
    return values if isinstance(values := node.get("enum"), list) else None


def _same(value: Any) -> Any:
    """JSON equality: True is not equal to 1."""
    return lambda other: _kind(value) == _kind(other) and value == other


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = ((str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in names if isinstance(value, kind)), "number")


def _kinds(node: dict[str, Any]) -> frozenset[str]:
    kinds = node.get("type")
    listed = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else KINDS
    return frozenset("number" if kind == "integer" else kind for kind in listed if isinstance(kind, str))


def _disjoint(schema: dict[str, Any], other: dict[str, Any], lower: tuple[str, ...], upper: tuple[str, ...]) -> bool:
    """True if the ranges of two schemas are disjoint."""
    for first, second in ((schema, other), (other, schema)):
        for high in upper:
            for low in lower:
                most, least = number_in(first, high, None), number_in(second, low, None)
                if most is None or least is None:
                    continue
                if most < least or (most == least and "exclusive" in high + low):
                    return True
    return False
