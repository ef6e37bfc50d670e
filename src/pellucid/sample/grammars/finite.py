"""Removes the parts of a schema that no finite text satisfies, and limits the decimals of numbers between two bounds.

No finite text satisfies a schema if every text of the schema must contain another text of the same schema. Examples are
a required property that refers to the schema of its own object, and a required list item that refers to the schema of
its own list. A text that begins such a part can never end, so a schema that allows no text replaces the part. If the
whole schema has no finite text, it is refused.
"""

from __future__ import annotations

from typing import Any

from pellucid.errors.messages import brief
from pellucid.sample.grammars.problems import refused
from pellucid.sample.grammars.subschemas import is_number, list_in, number_in, shown_path, subschemas, target

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
        ways = [
            *map(self._of_object, [node] * ("object" in kinds)),
            *map(self._of_array, [node] * ("array" in kinds)),
        ]
        return [needs + way for way in ways] if kinds and kinds <= CONTAINERS else [needs]

    def _of_object(self, node: dict[str, Any]) -> list[list[Any]]:
        """The needs of an object: its required properties, and another property if ``minProperties`` asks for more."""
        named, patterns = ((parts if isinstance(parts := node.get(key), dict) else {}) for key in PROPERTIES)
        rest = [node.get("additionalProperties", True), *patterns.values()]
        needs = [
            [named[name]] if name in named else rest for name in filter(_is_text, list_in(node, "required"))
        ]
        least = number_in(node, "minProperties")
        return [*needs, [*named.values(), *rest]] if least > len(needs) else needs

    def _of_array(self, node: dict[str, Any]) -> list[list[Any]]:
        """The needs of a list: its first ``minItems`` items."""
        first = list_in(node, "prefixItems") or list_in(node, "items")
        rest = (
            node.get("items", True)
            if "prefixItems" in node or not first
            else node.get("additionalItems", True)
        )
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

    Raises:
        InvalidRequest: the whole schema has no finite text, or the two bounds of a number are too close.
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
    if {"multipleOf", "const", "enum"} & node.keys() or not _may_be_fraction(node.get("type", "number")):
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


def _may_be_fraction(kinds: Any) -> bool:
    return kinds == "number" or (isinstance(kinds, list) and "number" in kinds)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
