"""A pattern as an automaton: a table by which compiled code cuts a text, a character at a time.

In: a pattern in the syntax of the ``regex`` package. Out: an :class:`Automaton`, or None where the pattern has
something that a table cannot do (look-behind, back references, word borders ...): then the ``regex`` package runs it.

The matches are those of a backtracking engine, which prefers what stands first: a state is the ordered list of places
in the pattern that are alive, as in Cox, "Regular Expression Matching: the Virtual Machine Approach" (2009), and the
table knows all lists that can come up. A place behind a look-ahead of one character (``\\s+(?!\\S)``) is alive if the
next character allows it, so an entry of the table also says whether a match ends *before* the character that it is
for; the end of the text is a character too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from string import hexdigits
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.text_split import START
from pellucid.tokenize import unicode
from pellucid.tokenize.unicode import CODES, Ranges, complement, union

MOST_PLACES, MOST_STATES = 4_000, 2_000
MOST_SETS, MOST_CLASSES = 63, 255  # bits of an int64 that is not negative; what a byte tells apart, less one


class NotATable(Exception):
    """The pattern has something that a table cannot do."""


@dataclass(frozen=True)
class Automaton:
    """The table of a pattern.

    ``classes`` (0x110000,) says of each code point which class it is in. ``table`` (states, classes + 1) says for a
    state and the next character's class, the last one for the end of the text: 2 * next state + 1 if a match ends
    before it. State 0 is the end of the walk, ``START`` its beginning.
    """

    classes: NDArray[np.uint8]
    table: NDArray[np.uint16]

    @cached_property
    def starts(self) -> NDArray[np.uint8]:
        """Of each byte, (256,), whether a match may begin with a character whose UTF-8 begins with that."""
        begins = (self.table[START] != 0)[self.classes]
        found = np.zeros(256, np.uint8)
        for first, shift, codes in ((0, 0, 0x80), (0xC0, 6, 0x800), (0xE0, 12, 0x10000), (0xF0, 18, CODES)):
            for code in range(0, codes, 1 << shift):
                found[first + (code >> shift)] = begins[code : code + (1 << shift)].any()
        return found

    def match(self, text: str, at: int) -> int:
        """Where the match that begins at ``at`` ends; ``at`` itself if there is none. What compiled code does."""
        state, end, end_of_text = START, at, self.table.shape[1] - 1
        for position in range(at, len(text) + 1):
            kind = self.classes[ord(text[position])] if position < len(text) else end_of_text
            entry = int(self.table[state, kind])
            if entry & 1:
                end = position
            state = entry >> 1
            if state == 0:
                break
        return end


@cache
def automaton(pattern: str) -> Automaton | None:
    """The table of a pattern, or None if it cannot have one."""
    try:
        places = _Places()
        first = places.add(_Parser(pattern).pattern(), places.matched)
        return _table(places, first)
    except NotATable:
        return None


def overlap(one: Ranges, other: Ranges) -> bool:
    """Whether a character is in both."""
    return complement(union((complement(one), complement(other)))) != ()


# ---------------------------------------------------------------- what a pattern is made of


@dataclass(frozen=True)
class _Set:
    """One character of a set."""

    members: Ranges


@dataclass(frozen=True)
class _Chain:
    """One after the other."""

    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Either:
    """The first that leads to a match."""

    branches: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    """So many times, at least and at most (None: no limit); as often as possible, or as seldom."""

    part: _Node
    least: int
    most: int | None
    greedy: bool
    possessive: bool


@dataclass(frozen=True)
class _Ahead:
    """The next character is in a set, or the text ends here and ``at_end`` allows that."""

    members: Ranges
    at_end: bool


_Node = _Set | _Chain | _Either | _Repeat | _Ahead
_EMPTY = _Chain(())


def _first(node: _Node) -> tuple[Ranges, bool]:
    """Which characters a match may begin with, and whether it may be empty."""
    if isinstance(node, _Set):
        return node.members, False
    if isinstance(node, _Ahead):
        return (), True
    if isinstance(node, _Either):
        each = [_first(branch) for branch in node.branches]
        return union(members for members, _ in each), any(empty for _, empty in each)
    if isinstance(node, _Repeat):
        members, empty = _first(node.part)
        return members, empty or node.least == 0
    found: Ranges = ()
    for part in node.parts:
        members, empty = _first(part)
        found = union((found, members))
        if not empty:
            return found, False
    return found, True


class _Parser:
    """Reads a pattern; what it does not know is NotATable."""

    ESCAPES: ClassVar = {"r": 13, "n": 10, "t": 9, "f": 12, "v": 11, "a": 7, "e": 27, "0": 0}
    CODES: ClassVar = {"x": 2, "u": 4, "U": 8}  # digits of a code point
    SETS: ClassVar = {"s": "White_Space", "d": "Nd"}

    def __init__(self, pattern: str) -> None:
        self._text, self._at, self._any_case = pattern, 0, False

    def pattern(self) -> _Node:
        node = self._either()
        if self._at < len(self._text):
            raise NotATable
        return node

    def _peek(self, ahead: str) -> bool:
        return self._text.startswith(ahead, self._at)

    def _take(self, wanted: str) -> bool:
        if self._peek(wanted):
            self._at += len(wanted)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise NotATable
        self._at += 1
        return self._text[self._at - 1]

    def _either(self) -> _Node:
        branches = [self._chain()]
        while self._take("|"):
            branches.append(self._chain())
        return branches[0] if len(branches) == 1 else _Either(tuple(branches))

    def _chain(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and not self._peek("|") and not self._peek(")"):
            parts.append(self._repeated(self._atom()))
        for at, part in enumerate(parts):
            if isinstance(part, _Repeat) and part.possessive:
                self._check_possessive(part, parts[at + 1 :])
        return _Chain(tuple(parts))

    @staticmethod
    def _check_possessive(part: _Repeat, rest: list[_Node]) -> None:
        """Giving nothing back is the same as giving back where what follows could not begin with it."""
        members, _ = _first(_Chain(tuple(rest)))
        if not isinstance(part.part, _Set) or overlap(part.part.members, members):
            raise NotATable
        if any(isinstance(one, _Ahead) for one in rest):
            raise NotATable

    def _atom(self) -> _Node:
        if self._take("("):
            return self._group()
        if self._take("["):
            return _Set(self._bracket())
        letter = self._next()
        if letter == "\\":
            return _Set(self._escape())
        if letter == ".":
            return _Set(complement(((10, 10),)))
        if letter in "^$*+?{}":
            raise NotATable
        return _Set(self._letter(ord(letter)))

    def _group(self) -> _Node:
        before = self._any_case
        if self._take("?!") or self._take("?="):
            negative = self._text[self._at - 1] == "!"
            node = self._either()
            self._close()
            members = self._one_character(node)
            return _Ahead(complement(members) if negative else members, at_end=negative)
        if self._take("?i:"):
            self._any_case = True
        elif not self._take("?:") and self._peek("?"):
            raise NotATable
        node = self._either()
        self._close()
        self._any_case = before
        return node

    def _close(self) -> None:
        if not self._take(")"):
            raise NotATable

    @staticmethod
    def _one_character(node: _Node) -> Ranges:
        """The set that a look-ahead is about."""
        branches = node.branches if isinstance(node, _Either) else (node,)
        sets = []
        for branch in branches:
            if isinstance(branch, _Chain) and len(branch.parts) == 1:
                branch = branch.parts[0]
            if not isinstance(branch, _Set):
                raise NotATable
            sets.append(branch.members)
        return union(sets)

    def _letter(self, code: int) -> Ranges:
        members = unicode.any_case(code) if self._any_case else ((code, code),)
        if members is None:
            raise NotATable
        return members

    def _escape(self) -> Ranges:
        letter = self._next()
        if letter in "pP":
            name = self._next()
            if name == "{":
                end = self._text.find("}", self._at)
                if end < 0:
                    raise NotATable
                name, self._at = self._text[self._at : end], end + 1
            members = self._property(name.removeprefix("^"))
            return complement(members) if (letter == "P") != name.startswith("^") else members
        if letter.lower() in self.SETS:
            members = self._property(self.SETS[letter.lower()])
            return complement(members) if letter.isupper() else members
        if letter in self.ESCAPES:
            return ((self.ESCAPES[letter],) * 2,)
        if letter in self.CODES:
            digits = self._text[self._at : self._at + self.CODES[letter]]
            self._at += len(digits)
            if len(digits) < self.CODES[letter] or not set(digits) <= set(hexdigits):
                raise NotATable
            return self._letter(int(digits, 16)) if int(digits, 16) < CODES else ()
        if letter.isalnum():
            raise NotATable
        return self._letter(ord(letter))

    @staticmethod
    def _property(name: str) -> Ranges:
        members = unicode.members(name)
        if members is None:
            raise NotATable
        return members

    def _bracket(self) -> Ranges:
        negative, sets = self._take("^"), []
        while not self._take("]"):
            if (
                self._peek("[")
                or self._peek("&&")
                or self._peek("--")
                or self._peek("||")
                or self._peek("~~")
            ):
                raise NotATable
            low = self._member()
            if self._peek("-") and not self._peek("-]"):
                self._next()
                high = self._member()
                if not low[0][0] == low[-1][1] <= high[0][0] == high[-1][1] or self._any_case:
                    raise NotATable
                low = ((low[0][0], high[0][0]),)
            sets.append(low)
        members = union(sets)
        return complement(members) if negative else members

    def _member(self) -> Ranges:
        letter = self._next()
        return self._escape() if letter == "\\" else self._letter(ord(letter))

    def _repeated(self, node: _Node) -> _Node:
        while True:
            counts = self._counts()
            if counts is None:
                return node
            if isinstance(node, _Ahead):
                raise NotATable
            greedy, possessive = not self._take("?"), False
            if greedy:
                possessive = self._take("+")
            node = _Repeat(node, *counts, greedy, possessive)

    def _counts(self) -> tuple[int, int | None] | None:
        for mark, counts in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._take(mark):
                return counts
        if not self._take("{"):
            return None
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at : end].partition(",")
        self._at = end + 1
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
            raise NotATable
        return int(low), (int(high) if high else None) if comma else int(low)


# ---------------------------------------------------------------- from the pattern to the table


@dataclass(frozen=True)
class _One:
    """A place before something that takes a character, or looks at it."""

    node: _Set | _Ahead
    then: int


@dataclass(frozen=True)
class _Fork:
    """A place from which there are several ways, the preferred first."""

    ways: tuple[int, ...]


class _Places:
    """The places of a pattern, each with what may come next. A place stands for all that can follow from it."""

    def __init__(self) -> None:
        self.steps: list[_One | _Fork | None] = [None]
        self.matched = 0

    def add(self, node: _Node, then: int) -> int:
        """The place before ``node``, behind which ``then`` comes."""
        if len(self.steps) > MOST_PLACES:
            raise NotATable
        if isinstance(node, (_Set, _Ahead)):
            return self._new(_One(node, then))
        if isinstance(node, _Chain):
            for part in reversed(node.parts):
                then = self.add(part, then)
            return then
        if isinstance(node, _Either):
            return self._new(_Fork(tuple(self.add(branch, then) for branch in node.branches)))
        return self._repeat(node, then)

    def _new(self, step: _One | _Fork) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _repeat(self, node: _Repeat, then: int) -> int:
        if _first(node.part)[1]:  # a part that may be empty: whether it goes round again is not for a table
            raise NotATable
        if node.most is None:
            around = self._new(_Fork(()))
            inside = self.add(node.part, around)
            self.steps[around] = _Fork((inside, then) if node.greedy else (then, inside))
            then = around
        else:
            behind = then
            for _ in range(node.most - node.least):
                inside = self.add(node.part, then)
                then = self._new(_Fork((inside, behind) if node.greedy else (behind, inside)))
        for _ in range(node.least):
            then = self.add(node.part, then)
        return then

    def sets(self) -> Iterator[Ranges]:
        """All sets, in order."""
        for step in self.steps:
            if isinstance(step, _One):
                yield step.node.members


def _table(places: _Places, first: int) -> Automaton:
    sets = list(dict.fromkeys(places.sets()))
    classes, members = _classes(sets)
    kinds = members.shape[1]
    within = dict(zip(sets, members))  # of each set, whether it holds each class
    states: dict[tuple[int, ...], int] = {(): 0, (first,): START}
    rows: list[list[int]] = [[0] * (kinds + 1)]
    waiting: list[tuple[int, ...]] = [(first,)]
    while waiting:
        state, row = waiting.pop(0), []
        for kind in range(kinds + 1):
            following, matched = _step(places, state, kind, kind == kinds, within)
            if following not in states:
                if len(states) >= MOST_STATES:
                    raise NotATable
                states[following] = len(states)
                waiting.append(following)
            row.append(2 * states[following] + matched)
        rows.append(row)
    return Automaton(classes, np.array(rows, np.uint16))


def _step(
    places: _Places, state: tuple[int, ...], kind: int, ended: bool, within: dict[Ranges, NDArray[np.bool_]]
) -> tuple[tuple[int, ...], bool]:
    """What is alive after a character of a class, or the end, and whether a match ends before it."""
    following: dict[int, None] = {}
    seen: set[int] = set()
    stack = list(reversed(state))
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen.add(place)
        step = places.steps[place]
        if step is None:
            return tuple(following), True  # what would come after a match is never wanted
        if isinstance(step, _Fork):
            stack.extend(reversed(step.ways))
        elif isinstance(step.node, _Set):
            if not ended and within[step.node.members][kind]:
                following[step.then] = None
        elif step.node.at_end if ended else within[step.node.members][kind]:
            stack.append(step.then)
    return tuple(following), False


def _classes(sets: list[Ranges]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Each code point's class: those that are in the same sets. And of each set, whether it holds each class."""
    if len(sets) > MOST_SETS:
        raise NotATable
    borders = np.array(
        [edge for one in sets for low, high in one for edge in (low, high + 1)] or [0], np.int64
    )
    bits = np.repeat([1 << i for i in range(len(sets))] or [0], [2 * len(one) for one in sets] or [1]).astype(
        np.int64
    )
    order = np.argsort(borders, kind="stable")
    borders, held = borders[order], np.bitwise_xor.accumulate(bits[order])
    last = np.append(borders[1:] != borders[:-1], True)
    borders, held = borders[last], held[last]
    borders, held = (
        np.append([0], borders),
        np.append([0], held),
    )  # what is before the first border is in no set
    distinct, each = np.unique(held, return_inverse=True)
    if len(distinct) > MOST_CLASSES:
        raise NotATable
    lengths = np.diff(np.append(borders, CODES))
    classes = np.repeat(each.astype(np.uint8), np.maximum(lengths, 0))[:CODES]
    members = np.array([distinct >> i & 1 for i in range(len(sets))], bool).reshape(len(sets), len(distinct))
    return classes, members
