"""Oniguruma's own rules: letters of any case, nested repeats, and constructs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import dropwhile
from typing import Any

from msgspec.structs import replace

from pellucid.errors import shown
from pellucid.tokenize import unicode
from pellucid.tokenize.patterns import tree as nodes
from pellucid.tokenize.patterns.oniguruma_sets import ANY, PatternError
from pellucid.tokenize.unicode import Ranges

# Case-insensitive letters (``(?i)``) in Oniguruma's syntax, and other steps that need the whole parsed pattern. Two or
# three letters may equal one character in another case: "ss" equals "ß". So a letter stays a :class:`Letter` node until
# its neighbours are known. Then the letters become sets of characters in both cases, and the tree no longer has
# :class:`Letter` nodes.


def _rebuilt(node: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(node, nodes.Concat):
        return nodes.Concat(tuple(map(change, node.parts)))
    if isinstance(node, nodes.Either):
        return nodes.Either(tuple(map(change, node.branches)))
    return replace(node, part=change(node.part)) if nodes.inner(node) else node


def without_case(node: Any, single: bool) -> Any:
    """The tree with nested :class:`Concat` nodes flattened and runs of case-insensitive letters replaced by sets."""
    if not isinstance(node, (nodes.Concat, nodes.Letter)):
        single = single or (isinstance(node, nodes.Look) and not node.ahead)
        return _rebuilt(node, lambda part: without_case(part, single))
    parts: list[nodes.Node] = []
    letters: list[int] = []
    waiting: list[Any] = list(reversed(node.parts)) if isinstance(node, nodes.Concat) else [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, nodes.Concat):
            waiting.extend(reversed(part.parts))
        elif isinstance(part, nodes.Letter):
            letters.append(part.code)
        else:
            parts += in_any_case(letters, single)
            letters = []
            parts.append(without_case(part, single))
    parts += in_any_case(letters, single)
    return parts[0] if len(parts) == 1 else nodes.Concat(tuple(parts)) if parts else nodes.EMPTY


def without_groups(node: Any, capturing: set[int]) -> Any:
    """The tree with only the groups that a back reference uses."""
    referenced = {part.number for part in nodes.walk(node) if isinstance(part, nodes.Back)} & capturing

    def plain(node: Any) -> Any:
        if isinstance(node, nodes.Group) and node.number not in referenced:
            return plain(node.part)
        return _rebuilt(node, plain)

    return plain(node)


MAX_JOINED, MAX_WAYS = 12, 64
"""Maximum number of letters, and of ways to read them, of a run in which several letters may equal one character
("ss" and "ß")."""


def in_any_case(codes: list[int], single: bool) -> list[nodes.Node]:
    """Nodes for consecutive case-insensitive letters. ``single`` reads each letter alone, as in a look-behind."""
    read: list[nodes.Node] = []
    at = 0
    while at < len(codes):
        stop = at + 1 if single else _end_of_joined(codes, at)
        ways = _ways(codes[at:stop], single) if stop - at <= MAX_JOINED else []
        if not 0 < len(ways) <= MAX_WAYS:
            raise PatternError(f"(?i) with more than {MAX_WAYS} ways to read {shown(''.join(map(chr, codes)))!r}")
        chains = [way[0] if len(way) == 1 else nodes.Concat(way) for way in ways]
        read.append(chains[0] if len(chains) == 1 else nodes.Either(tuple(chains)))
        at = stop
    return read


def _end_of_joined(codes: list[int], at: int) -> int:
    """The end of the letters that must be read together with letter ``at``, because the ways to read them overlap."""
    stop, end = at, at + 1
    while stop < end:
        end = max([end, *(stop + size for size, _ in _joined(codes, stop))])
        stop += 1
    return end


def _joined(codes: list[int], at: int) -> list[tuple[int, Ranges]]:
    """The characters that equal several letters from ``at`` on: (number of letters, characters)."""
    joined: list[tuple[int, Ranges]] = []
    for size in (2, 3):
        letters = tuple(unicode.small(code) for code in codes[at : at + size])
        members = unicode.unfolded().get(letters)
        if members is not None and len(letters) == size:
            joined.append((size, members))
    return joined


def _ways(codes: list[int], single: bool) -> list[tuple[nodes.Node, ...]]:
    if not codes:
        return [()]
    first: list[tuple[int, tuple[nodes.Node, ...]]] = [(1, (nodes.Set(unicode.same_case(codes[0])),))]
    folded = None if single else unicode.full_folds().get(codes[0])
    if folded is not None:
        first.append((1, tuple(nodes.Set(unicode.same_case(code)) for code in folded)))
    if not single:
        first += [(size, (nodes.Set(members),)) for size, members in _joined(codes, 0)]
    ways: list[tuple[nodes.Node, ...]] = []
    for size, way in first:
        ways += [(*way, *rest) for rest in _ways(codes[size:], single)]
        if len(ways) > MAX_WAYS:
            break
    return ways


# Constructs that are refused because Oniguruma refuses them, or matches them in a way that is not implemented.


def looks_anchored(tree: nodes.Node) -> bool:
    """True if Oniguruma, by a bug, tries a pattern only at the start of the text. An example is ``\\b\\O+``."""
    parts = list(tree.parts) if isinstance(tree, nodes.Concat) else [tree]
    rest = list(dropwhile(lambda part: isinstance(part, (nodes.Edge, nodes.Look)), parts))
    if not rest or len(rest) == len(parts) or not isinstance(rest[0], nodes.Repeat):
        return False
    return rest[0].part == nodes.Set(ANY) and rest[0].most is None and rest[0].least > 0 and rest[0].greedy


def refused_in_look_behind(node: Any, negative: bool) -> bool:
    """True if a node is not allowed in a look-behind: Oniguruma refuses it, or the reading direction matters."""
    if isinstance(node, nodes.Edge):
        return node.kind in ("text end", "last line end")
    if isinstance(node, nodes.Atomic):
        return not isinstance(node.part, nodes.Set)
    return isinstance(node, (nodes.Look, nodes.Back)) or (negative and isinstance(node, nodes.Group))


def cannot_repeat(node: Any) -> bool:
    """True if Oniguruma refuses to repeat a node."""
    if isinstance(node, nodes.Either):
        return any(cannot_repeat(branch) for branch in node.branches)
    return isinstance(node, (nodes.Look, nodes.Edge))


# Nested repeats in Oniguruma's syntax: ``(?:a+)?`` becomes ``a*``, which avoids repeats of empty parts. The rules
# follow ``regparse.c`` of 6.9.10: ``onig_reduce_nested_quantifier`` and ``assign_quantifier_body``.

MAX_TIMES = 100_000  # Oniguruma's own limit

_SIMPLE = [(0, 1, True), (0, None, True), (1, None, True), (0, 1, False), (0, None, False), (1, None, False)]
# The reduction of nested repeats, as in Oniguruma. Rows are inner repeats and columns outer repeats, in the order of
# _SIMPLE. A number means that both become this repeat of _SIMPLE. None means that only the inner repeat stays. "both"
# means that both stay. "some" means that both become a + inside a ??.
_REDUCED: list[list[int | str | None]] = [
    [None, 1, 1, 3, 4, "both"],
    [None, None, None, "some", "some", None],
    [1, 1, None, "both", "some", None],
    [None, 4, 4, None, 4, 4],
    [None, None, None, None, None, None],
    ["both", 1, 2, 4, 4, None],
]


def nested(part: Any, outer: nodes.Repeat) -> Any:
    """The reduction of the repeat ``outer`` of ``part``, if ``part`` is a repeat, else ``outer`` itself."""
    if not isinstance(part, nodes.Repeat):
        return outer
    inner_kind, outer_kind = ((repeat.least, repeat.most, repeat.greedy) for repeat in (part, outer))
    if inner_kind in _SIMPLE and outer_kind in _SIMPLE:
        how = _REDUCED[_SIMPLE.index(inner_kind)][_SIMPLE.index(outer_kind)]
        if how is None:
            return part
        if how == "both":
            return outer
        if how == "some":
            return nodes.Repeat(nodes.Repeat(part.part, 1, None, True), 0, 1, False)
        assert isinstance(how, int)
        return nodes.Repeat(part.part, *_SIMPLE[how])
    if inner_kind in _SIMPLE[1:3] and outer.most is not None and outer.most > 1 and outer.greedy:
        return replace(outer, most=outer.least or 1)
    if part.least == part.most and outer.least == outer.most and part.most is not None:
        times = part.least * outer.least
        if times > MAX_TIMES:
            raise PatternError(f"a repeat of more than {MAX_TIMES:,} times")
        return replace(outer, part=part.part, least=times, most=times)
    return outer
