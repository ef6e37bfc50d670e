"""The syntax tree of a pattern: ``oniguruma.py`` builds it, ``matcher.py`` and ``automaton.py`` match it.

Sets of characters are explicit. They list upper and lower case, so a tree does not depend on a library's Unicode data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from pellucid.tokenize.unicode import CODES, Ranges, union


class Set(Struct, frozen=True):
    """Matches one character of a set."""

    members: Ranges


class Concat(Struct, frozen=True):
    """Matches its parts one after the other."""

    parts: tuple[Node, ...]


class Either(Struct, frozen=True):
    """Matches the first branch that leads to a match."""

    branches: tuple[Node, ...]


class Repeat(Struct, frozen=True):
    """Matches ``part`` from ``least`` to ``most`` times (None: no limit); ``greedy`` tries more repeats first."""

    part: Node
    least: int
    most: int | None
    greedy: bool = True


class Atomic(Struct, frozen=True):
    """Matches ``part`` in the first possible way; later nodes cannot backtrack into it."""

    part: Node


class Look(Struct, frozen=True):
    """Asserts that ``part`` matches after this position, or before it if not ``ahead``; ``negative`` negates it.

    It consumes no character.
    """

    part: Node
    ahead: bool
    negative: bool


class Edge(Struct, frozen=True):
    """Asserts a kind of position in the text. It consumes no character.

    ``last line end`` is the end of the text, and the position before a newline that ends the text. ``search start`` is
    the position where the search started. ``border`` is a position with a character of ``members`` on exactly one side.
    ``no border`` is any other position.
    """

    kind: Literal[
        "text start", "text end", "line start", "line end", "last line end", "search start", "border", "no border"
    ]  # fmt: skip
    members: Ranges = ()


class Group(Struct, frozen=True):
    """A capturing group, for :class:`Back`."""

    part: Node
    number: int


class Back(Struct, frozen=True):
    """A back reference: matches the text of a group again."""

    number: int


class Letter(Struct, frozen=True):
    """A case-insensitive letter. It exists only during parsing, and becomes sets when its neighbours are known."""

    code: int


Node = Set | Concat | Either | Repeat | Atomic | Look | Edge | Group | Back

EMPTY = Concat(())
NEWLINE: Ranges = ((10, 10),)


def inner(node: Node) -> tuple[Node, ...]:
    """The direct children of a node."""
    if isinstance(node, Concat):
        return node.parts
    if isinstance(node, Either):
        return node.branches
    if isinstance(node, (Repeat, Atomic, Look, Group)):
        return (node.part,)
    return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all its descendants."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner(node))


def depth(node: Node) -> int:
    """The depth of the tree."""
    deepest, level = 0, [node]
    while level:
        deepest, level = deepest + 1, [part for parent in level for part in inner(parent)]
    return deepest


def size(node: Node) -> int:
    """The number of nodes with all repeats expanded."""
    times = max(node.least, node.most or 1, 1) if isinstance(node, Repeat) else 1
    return 1 + times * sum(map(size, inner(node)))


def may_be_empty(node: Node | Letter) -> bool:
    """True if a match may be empty."""
    if isinstance(node, (Set, Letter)):
        return False
    if isinstance(node, Concat):
        return all(map(may_be_empty, node.parts))
    if isinstance(node, Either):
        return any(map(may_be_empty, node.branches))
    if isinstance(node, Repeat):
        return node.least == 0 or may_be_empty(node.part)
    if isinstance(node, (Atomic, Group)):
        return may_be_empty(node.part)
    return True


def length(node: Node) -> int | None:
    """The number of characters of all matches; None if matches differ in it, or for a back reference."""
    if isinstance(node, Set):
        return 1
    if isinstance(node, (Look, Edge)):
        return 0
    if isinstance(node, Repeat) and node.least != node.most:
        return None
    parts = [length(part) for part in inner(node)]
    if isinstance(node, Back) or None in parts:
        return None
    known = [part for part in parts if part is not None]
    if isinstance(node, Either):
        return known[0] if len(set(known)) == 1 else None
    return sum(known) * (node.least if isinstance(node, Repeat) else 1)


def first_characters(node: Node) -> Ranges | None:
    """The characters that a match may begin with; None if a match may be empty, or begins with a look-around."""
    if isinstance(node, Set):
        return node.members
    if isinstance(node, Either):
        branches = [first_characters(branch) for branch in node.branches]
        return None if None in branches else union(branch for branch in branches if branch)
    if isinstance(node, Concat) and node.parts:
        return first_characters(node.parts[0])
    if isinstance(node, (Repeat, Atomic, Group)) and not may_be_empty(node):
        return first_characters(node.part)
    return None


def sets(node: Node) -> list[Ranges]:
    """The distinct sets in a tree, in order."""
    distinct: dict[Ranges, None] = {}
    for part in walk(node):
        if isinstance(part, Set):
            distinct[part.members] = None
        elif isinstance(part, Edge):
            distinct[NEWLINE if "line" in part.kind else part.members] = None
    return list(distinct)


class Classes:
    """Groups characters into classes: the characters of a class are in the same sets.

    ``of`` returns the class of a code point, from 0 to ``count`` - 1; ``within`` has the classes of each set.
    """

    def __init__(self, sets: list[Ranges]) -> None:
        edges: dict[int, int] = {}
        for bit, one in enumerate(sets):
            for low, high in one:
                edges[low] = edges.get(low, 0) ^ 1 << bit
                edges[high + 1] = edges.get(high + 1, 0) ^ 1 << bit
        known: dict[int, int] = {}
        held = edges.pop(0, 0)
        self.borders, self.classes = [0], [known.setdefault(held, len(known))]
        for border in sorted(edges):
            held ^= edges[border]
            self.borders.append(border)
            self.classes.append(known.setdefault(held, len(known)))
        if self.borders[-1] == CODES:  # past the last code point
            del self.borders[-1], self.classes[-1]
        self.count = len(known)
        self.within = {
            one: tuple(number for held, number in known.items() if held >> bit & 1) for bit, one in enumerate(sets)
        }

    def of(self, code: int) -> int:
        """The class of a code point."""
        return self.classes[bisect_right(self.borders, code) - 1]
