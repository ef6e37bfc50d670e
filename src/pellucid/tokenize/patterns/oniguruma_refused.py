"""Constructs that are refused because Oniguruma refuses them, or matches them in a way that is not implemented."""

from __future__ import annotations

from itertools import dropwhile
from typing import Any

from pellucid.tokenize.patterns.oniguruma_sets import ANY
from pellucid.tokenize.patterns.tree import Atomic, Back, Concat, Edge, Either, Group, Look, Node, Repeat, Set


def looks_anchored(tree: Node) -> bool:
    """True if Oniguruma, by a bug, tries a pattern only at the start of the text. An example is ``\\b\\O+``."""
    parts = list(tree.parts) if isinstance(tree, Concat) else [tree]
    rest = list(dropwhile(lambda part: isinstance(part, (Edge, Look)), parts))
    if not rest or len(rest) == len(parts) or not isinstance(rest[0], Repeat):
        return False
    return rest[0].part == Set(ANY) and rest[0].most is None and rest[0].least > 0 and rest[0].greedy


def refused_in_look_behind(node: Any, negative: bool) -> bool:
    """True if a node is not allowed in a look-behind: Oniguruma refuses it, or the reading direction matters."""
    if isinstance(node, Edge):
        return node.kind in ("text end", "last line end")
    if isinstance(node, Atomic):
        return not isinstance(node.part, Set)
    return isinstance(node, (Look, Back)) or (negative and isinstance(node, Group))


def cannot_repeat(node: Any) -> bool:
    """True if Oniguruma refuses to repeat a node."""
    if isinstance(node, Either):
        return any(cannot_repeat(branch) for branch in node.branches)
    return isinstance(node, (Look, Edge))
