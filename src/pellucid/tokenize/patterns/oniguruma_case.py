"""Case-insensitive letters (``(?i)``) in Oniguruma's syntax, and other steps that need the whole parsed pattern.

Two or three letters may equal one character in another case: "ss" equals "ß". So a letter stays a :class:`Letter` node
until its neighbours are known. Then the letters become sets of characters in both cases, and the tree no longer has
:class:`Letter` nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from pellucid.errors.messages import shown
from pellucid.tokenize import unicode
from pellucid.tokenize.patterns.oniguruma_sets import PatternError
from pellucid.tokenize.patterns.tree import (
    EMPTY,
    Back,
    Concat,
    Either,
    Group,
    Letter,
    Look,
    Node,
    Set,
    inner,
    walk,
)
from pellucid.tokenize.unicode import Ranges


def _rebuilt(node: Any, change: Callable[[Any], Any]) -> Any:
    """The node with ``change`` applied to each of its parts."""
    if isinstance(node, Concat):
        return Concat(tuple(map(change, node.parts)))
    if isinstance(node, Either):
        return Either(tuple(map(change, node.branches)))
    return replace(node, part=change(node.part)) if inner(node) else node


def without_case(node: Any, single: bool) -> Any:
    """The tree with nested :class:`Concat` nodes flattened and runs of case-insensitive letters replaced by sets."""
    if not isinstance(node, (Concat, Letter)):
        single = single or (isinstance(node, Look) and not node.ahead)
        return _rebuilt(node, lambda part: without_case(part, single))
    parts: list[Node] = []
    letters: list[int] = []
    waiting: list[Any] = list(reversed(node.parts)) if isinstance(node, Concat) else [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Concat):
            waiting.extend(reversed(part.parts))
        elif isinstance(part, Letter):
            letters.append(part.code)
        else:
            parts += in_any_case(letters, single)
            letters = []
            parts.append(without_case(part, single))
    parts += in_any_case(letters, single)
    return parts[0] if len(parts) == 1 else Concat(tuple(parts)) if parts else EMPTY


def without_groups(node: Any, capturing: set[int]) -> Any:
    """The tree with only the groups that a back reference uses."""
    referenced = {part.number for part in walk(node) if isinstance(part, Back)} & capturing

    def plain(node: Any) -> Any:
        if isinstance(node, Group) and node.number not in referenced:
            return plain(node.part)
        return _rebuilt(node, plain)

    return plain(node)


MAX_JOINED, MAX_WAYS = 12, 64
"""Maximum number of letters, and of ways to read them, of a run in which several letters may equal one character
("ss" and "ß")."""


def in_any_case(codes: list[int], single: bool) -> list[Node]:
    """Nodes for consecutive case-insensitive letters. ``single`` reads each letter alone, as in a look-behind."""
    nodes: list[Node] = []
    at = 0
    while at < len(codes):
        stop = at + 1 if single else _end_of_joined(codes, at)
        ways = _ways(codes[at:stop], single) if stop - at <= MAX_JOINED else []
        if not 0 < len(ways) <= MAX_WAYS:
            raise PatternError(
                f"(?i) with more than {MAX_WAYS} ways to read {shown(''.join(map(chr, codes)))!r}"
            )
        chains = [way[0] if len(way) == 1 else Concat(way) for way in ways]
        nodes.append(chains[0] if len(chains) == 1 else Either(tuple(chains)))
        at = stop
    return nodes


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


def _ways(codes: list[int], single: bool) -> list[tuple[Node, ...]]:
    if not codes:
        return [()]
    first: list[tuple[int, tuple[Node, ...]]] = [(1, (Set(unicode.same_case(codes[0])),))]
    folded = None if single else unicode.full_folds().get(codes[0])
    if folded is not None:
        first.append((1, tuple(Set(unicode.same_case(code)) for code in folded)))
    if not single:
        first += [(size, (Set(members),)) for size, members in _joined(codes, 0)]
    ways: list[tuple[Node, ...]] = []
    for size, nodes in first:
        ways += [(*nodes, *rest) for rest in _ways(codes[size:], single)]
        if len(ways) > MAX_WAYS:
            break
    return ways
