"""A pattern as an automaton: the transition table that compiled code uses to cut a text, one character at a time.

In: a pattern (``oniguruma.py``). Out: an :class:`Automaton`, or None if the pattern has a construct that a table cannot
express (look-behind, back references, word boundaries, an empty match ...). ``matcher.py`` runs all patterns.

The matches equal the matches of a backtracking engine, which prefers earlier alternatives. A *place* is a position in
the pattern. A place is *live* if the characters read so far can lead to it. A state is the ordered list of live places,
as in Cox, "Regular Expression Matching: the Virtual Machine Approach" (2009). The table has a row for every list that
can occur. A place after a look-ahead of one character (``\\s+(?!\\S)``) is live if the next character satisfies the
look-ahead. So the table entry of a character also records whether a match ends *before* this character. The end of the
text counts as a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from itertools import combinations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.text.split import START
from pellucid.tokenize.patterns import tree as nodes
from pellucid.tokenize.patterns.oniguruma import parse
from pellucid.tokenize.unicode import CODES, Ranges, complement, intersection, union

MAX_PLACES, MAX_STATES = 4_000, 2_000
# Maximum number of places that are visited while a table is built. This number of visits takes half a second.
MAX_VISITS = 1_000_000
# A class is stored in one byte, and the end of the text needs a column too.
MAX_CLASSES = 255


class NotATable(Exception):
    """The pattern has a construct that a table cannot express, or its table would be too large."""


class Automaton(Struct, frozen=True, dict=True):
    """The transition table of a pattern.

    ``classes`` (0x110000,) is the class of each code point. ``table`` (states, classes + 1) has an entry for each state
    and class of the next character; the last column is the end of the text. An entry is 2 * next state, plus 1 if a
    match ends before the next character. A walk begins in state ``START`` and ends in state 0.
    """

    classes: NDArray[np.uint8]
    table: NDArray[np.uint16]

    @cached_property
    def starts(self) -> NDArray[np.uint8]:
        """For each byte, 1 if a match may begin with a character whose UTF-8 begins with the byte, (256,)."""
        begins = (self.table[START] != 0)[self.classes]
        starts = np.zeros(256, np.uint8)
        for first, shift, codes in ((0, 0, 0x80), (0xC0, 6, 0x800), (0xE0, 12, 0x10000), (0xF0, 18, CODES)):
            for code in range(0, codes, 1 << shift):
                starts[first + (code >> shift)] = begins[code : code + (1 << shift)].any()
        return starts

    @cached_property
    def rows(self) -> list[list[int]]:
        """The table as lists, for walks in Python."""
        rows: list[list[int]] = self.table.tolist()
        return rows

    @property
    def end_of_text(self) -> int:
        return int(self.table.shape[1]) - 1

    def kinds(self, text: str) -> list[int]:
        """The class of each character."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds: list[int] = self.classes[codes].tolist()
        return kinds


@cache
def automaton(pattern: str) -> Automaton | None:
    """The table of a pattern, or None if it cannot have one. Raises :class:`PatternError` for an invalid pattern."""
    try:
        tree, places = parse(pattern), _Places()
        # An empty match also cuts the text, but the table cannot distinguish it from no match.
        if nodes.may_be_empty(tree):
            return None
        return _table(places, places.add(tree, places.matched))
    except NotATable:
        return None


# ---------------------------------------------------------------- from the pattern to the table


class _Test(Struct, frozen=True):
    """A place before a node that consumes a character or looks at it."""

    node: nodes.Set | _Lookahead
    then: int


class _Fork(Struct, frozen=True):
    """A place that leads to several places, the preferred one first."""

    ways: tuple[int, ...]


class _Lookahead(Struct, frozen=True):
    """An assertion: the next character is in a set, or the text ends here and ``at_end`` is set."""

    members: Ranges
    at_end: bool


class _Places:
    """The places of a pattern (the states of its NFA), each with its next step."""

    def __init__(self) -> None:
        self.steps: list[_Test | _Fork | None] = [None]
        self.matched = 0
        self.visits = 0  # counted by ``_step``

    def add(self, node: nodes.Node, then: int) -> int:
        """Add ``node`` with the place ``then`` after it; returns the place before it."""
        if len(self.steps) > MAX_PLACES:
            raise NotATable
        if isinstance(node, nodes.Set):
            return self._new(_Test(node, then))
        if isinstance(node, nodes.Concat):
            for part in reversed(node.parts):
                then = self.add(part, then)
            return then
        if isinstance(node, nodes.Either):
            return self._new(_Fork(tuple(self.add(branch, then) for branch in node.branches)))
        if isinstance(node, nodes.Repeat):
            return self._repeat(node, then)
        if isinstance(node, nodes.Atomic):
            return self._atomic(node.part, then)
        return self._new(_Test(_ahead(node), then))

    def _new(self, step: _Test | _Fork) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _atomic(self, node: nodes.Node, then: int) -> int:
        """Add an atomic group. Raises :class:`NotATable` if only its first match, and none of its parts, is known."""
        if then == self.matched or nodes.length(node) is not None:  # no other match of the group can matter
            return self.add(node, then)
        if isinstance(node, nodes.Atomic):
            return self._atomic(node.part, then)
        if isinstance(node, nodes.Repeat) and isinstance(node.part, nodes.Set):
            if not node.greedy:
                return self.add(nodes.Repeat(node.part, node.least, node.least), then)
            # The repeat ends early only before a character that is not in the set.
            ahead = _Lookahead(complement(node.part.members), at_end=True)
            return self._repeat(node, then, self._new(_Test(ahead, then)))
        if isinstance(node, nodes.Concat) and all(map(_has_one_match, node.parts[:-1])):
            return self.add(nodes.Concat(node.parts[:-1]), self._atomic(node.parts[-1], then))
        if isinstance(node, nodes.Either) and _differ_in_the_first_character(node.branches):
            return self._new(_Fork(tuple(self._atomic(branch, then) for branch in node.branches)))
        raise NotATable

    def _repeat(self, node: nodes.Repeat, then: int, early: int | None = None) -> int:
        """Add a repeat; ``early`` is the place after fewer repeats than the most, by default ``then``."""
        early = then if early is None else early
        if nodes.may_be_empty(node.part):  # a table cannot express the end of this repeat
            raise NotATable
        if node.most is None:
            around = self._new(_Fork(()))
            inside = self.add(node.part, around)
            self.steps[around] = _Fork((inside, early) if node.greedy else (early, inside))
            then = around
        else:
            for _ in range(node.most - node.least):
                inside = self.add(node.part, then)
                then = self._new(_Fork((inside, early) if node.greedy else (early, inside)))
        for _ in range(node.least):
            then = self.add(node.part, then)
        return then

    def sets(self) -> Iterator[Ranges]:
        for step in self.steps:
            if isinstance(step, _Test):
                yield step.node.members


def _ahead(node: nodes.Node) -> _Lookahead:
    """An assertion about the next character or the end of the text. Raises :class:`NotATable` for other nodes."""
    if isinstance(node, nodes.Edge) and node.kind == "text end":
        return _Lookahead((), at_end=True)
    if isinstance(node, nodes.Edge) and node.kind == "line end":
        return _Lookahead(nodes.NEWLINE, at_end=True)
    if not isinstance(node, nodes.Look) or not node.ahead:
        raise NotATable
    branches = node.part.branches if isinstance(node.part, nodes.Either) else (node.part,)
    if not all(isinstance(branch, nodes.Set) for branch in branches):
        raise NotATable
    members = union(branch.members for branch in branches if isinstance(branch, nodes.Set))
    return _Lookahead(complement(members) if node.negative else members, at_end=node.negative)


def _has_one_match(node: nodes.Node) -> bool:
    """True if all matches of a node at a position end at the same position."""
    return isinstance(node, nodes.Atomic) or nodes.length(node) is not None


def _differ_in_the_first_character(branches: tuple[nodes.Node, ...]) -> bool:
    """True if at most one of the branches can match at any position."""
    firsts = [nodes.first_characters(branch) for branch in branches]
    pairs = combinations(firsts, 2)
    return all(one and other and not intersection(one, other) for one, other in pairs)


def _table(places: _Places, first: int) -> Automaton:
    sets = nodes.Classes(list(dict.fromkeys(places.sets())))
    kinds = sets.count
    if kinds > MAX_CLASSES:
        raise NotATable
    within = {members: frozenset(numbers) for members, numbers in sets.within.items()}
    states: dict[tuple[int, ...], int] = {(): 0, (first,): START}
    rows: list[list[int]] = [[0] * (kinds + 1)]
    waiting: list[tuple[int, ...]] = [(first,)]
    while waiting:
        state, row = waiting.pop(0), []
        if places.visits > MAX_VISITS:
            raise NotATable
        for kind in range(kinds + 1):
            following, matched = _step(places, state, kind, kind == kinds, within)
            if following not in states:
                if len(states) >= MAX_STATES:
                    raise NotATable
                states[following] = len(states)
                waiting.append(following)
            row.append(2 * states[following] + matched)
        rows.append(row)
    lengths = np.diff(np.append(sets.borders, CODES))
    classes = np.repeat(np.array(sets.classes, np.uint8), lengths)
    return Automaton(classes, np.array(rows, np.uint16))


def _step(
    places: _Places, state: tuple[int, ...], kind: int, ended: bool, within: dict[Ranges, frozenset[int]]
) -> tuple[tuple[int, ...], bool]:
    """The live places after a character of class ``kind``, or the end, and True if a match ends before it."""
    following: dict[int, None] = {}
    seen: set[int] = set()
    stack = list(reversed(state))
    while stack:
        place = stack.pop()
        places.visits += 1
        if place in seen:
            continue
        seen.add(place)
        step = places.steps[place]
        if step is None:
            return tuple(following), True  # places with a lower priority than the match are dropped
        if isinstance(step, _Fork):
            stack.extend(reversed(step.ways))
        elif isinstance(step.node, nodes.Set):
            if not ended and kind in within[step.node.members]:
                following[step.then] = None
        elif step.node.at_end if ended else kind in within[step.node.members]:
            stack.append(step.then)
    return tuple(following), False
