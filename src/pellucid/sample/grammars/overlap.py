"""Replaces ``oneOf`` by ``anyOf`` in a schema if no value can satisfy two of its alternatives.

In this case ``oneOf`` and ``anyOf`` have the same meaning. llguidance can prove this only for some schemas, and refuses
all other schemas with ``oneOf``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from pellucid.sample.grammars.subschemas import list_in, number_in, target

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
            return _disjoint(schema, other, ("minItems",), ("maxItems",)) or self._first_items(
                schema, other, depth
            )
        return kind == "object" and (
            self._properties(schema, other, depth) or self._properties(other, schema, depth)
        )

    def _first_items(self, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """True if one schema requires an item, and provably no first item satisfies both schemas."""
        needed = [node for node in (schema, other) if number_in(node, "minItems") >= 1]
        first = [(node.get("prefixItems") or [node.get("items", True)])[0] for node in (schema, other)]
        return bool(needed) and self.excludes(first[0], first[1], depth)

    def _properties(self, schema: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """True if a required property of the first schema excludes the other schema."""
        mine, others = (
            properties if isinstance(properties := node.get("properties"), dict) else {}
            for node in (schema, other)
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
            if _kind(value) not in _kinds(part) or (
                values is not None and not any(map(_same(value), values))
            ):
                return True
            if part.get("type") == "integer" and isinstance(value, float) and not value.is_integer():
                return True
            options = part.get("anyOf")
            if isinstance(options, list) and all(
                self._refuses(option, value, depth - 1) for option in options
            ):
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


def _disjoint(
    schema: dict[str, Any], other: dict[str, Any], lower: tuple[str, ...], upper: tuple[str, ...]
) -> bool:
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
