"""A pattern as a tree: what a parser makes (``oniguruma.py``), and what matches it (``matcher.py``, ``automaton.py``).

Sets of characters are spelled out, upper and lower case included, so nothing in a tree depends on a library's Unicode.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pellucid.tokenize.unicode import CODES, Ranges


@dataclass(frozen=True)
class Set:
    """One character of a set."""

    members: Ranges


@dataclass(frozen=True)
class Concat:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """The first that leads to a match."""

    branches: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """So many times, at least and at most (None: no limit); as often as possible if ``greedy``, else as seldom."""

    part: Node
    least: int
    most: int | None
    greedy: bool = True


@dataclass(frozen=True)
class Atomic:
    """The first way in which ``part`` matches; what follows cannot make it try another."""

    part: Node


@dataclass(frozen=True)
class Look:
    """What follows matches ``part``, or what precedes if not ``ahead``; if ``negative``, it does not. Takes nothing."""

    part: Node
    ahead: bool
    negative: bool


@dataclass(frozen=True)
class Edge:
    """A place in the text. Takes nothing.

    ``last line end``: the end of the text, or before a newline there. ``search start``: where the search began.
    ``border``: between a character of ``members`` and another or none; ``no border``: anywhere else.
    """

    kind: Literal[
        "text start",
        "text end",
        "line start",
        "line end",
        "last line end",
        "search start",
        "border",
        "no border",
    ]
    members: Ranges = ()


@dataclass(frozen=True)
class Group:
    """A part whose text a :class:`Back` can ask for."""

    part: Node
    number: int


@dataclass(frozen=True)
class Back:
    """The text of a group once more."""

    number: int


@dataclass(frozen=True)
class Letter:
    """A letter in any case. Only while a pattern is read: it becomes sets once it is known what is beside it."""

    code: int


Node = Set | Concat | Either | Repeat | Atomic | Look | Edge | Group | Back

EMPTY = Concat(())
NEWLINE: Ranges = ((10, 10),)


def inner(node: Node) -> tuple[Node, ...]:
    """The nodes that a node is made of."""
    if isinstance(node, Concat):
        return node.parts
    if isinstance(node, Either):
        return node.branches
    if isinstance(node, (Repeat, Atomic, Look, Group)):
        return (node.part,)
    return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and all that it is made of."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner(node))


def depth(node: Node) -> int:
    """How many nodes lie in one another at most."""
    deepest, level = 0, [node]
    while level:
        deepest, level = deepest + 1, [part for one in level for part in inner(one)]
    return deepest


def size(node: Node) -> int:
    """How many nodes there are when repeats are written out as often as they count."""
    times = max(node.least, node.most or 1, 1) if isinstance(node, Repeat) else 1
    return 1 + times * sum(map(size, inner(node)))


def may_be_empty(node: Node | Letter) -> bool:
    """Whether a match may take no character."""
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


def sets(node: Node) -> list[Ranges]:
    """Every set that a tree asks about, once each, in order."""
    found: dict[Ranges, None] = {}
    for one in walk(node):
        if isinstance(one, Set):
            found[one.members] = None
        elif isinstance(one, Edge):
            found[NEWLINE if "line" in one.kind else one.members] = None
    return list(found)


class Classes:
    """Characters that are in the same sets are of one class: what a pattern tells apart.

    ``of`` gives the class of a code point, from 0 on; ``within`` says for a set which classes it is made of.
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
        if self.borders[-1] == CODES:  # behind the last character
            del self.borders[-1], self.classes[-1]
        self.count = len(known)
        self.within = {
            one: tuple(number for held, number in known.items() if held >> bit & 1)
            for bit, one in enumerate(sets)
        }

    def of(self, code: int) -> int:
        """The class of a code point."""
        return self.classes[bisect_right(self.borders, code) - 1]
