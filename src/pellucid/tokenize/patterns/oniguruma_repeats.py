"""Nested repeats in Oniguruma's syntax: ``(?:a+)?`` becomes ``a*``, which avoids repeats of empty parts.

The rules follow ``regparse.c`` of 6.9.10: ``onig_reduce_nested_quantifier`` and ``assign_quantifier_body``.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from pellucid.tokenize.patterns.oniguruma_sets import PatternError
from pellucid.tokenize.patterns.tree import Repeat

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


def nested(part: Any, outer: Repeat) -> Any:
    """The reduction of the repeat ``outer`` of ``part``, if ``part`` is a repeat, else ``outer`` itself."""
    if not isinstance(part, Repeat):
        return outer
    inner_kind, outer_kind = ((repeat.least, repeat.most, repeat.greedy) for repeat in (part, outer))
    if inner_kind in _SIMPLE and outer_kind in _SIMPLE:
        how = _REDUCED[_SIMPLE.index(inner_kind)][_SIMPLE.index(outer_kind)]
        if how is None:
            return part
        if how == "both":
            return outer
        if how == "some":
            return Repeat(Repeat(part.part, 1, None, True), 0, 1, False)
        assert isinstance(how, int)
        return Repeat(part.part, *_SIMPLE[how])
    if inner_kind in _SIMPLE[1:3] and outer.most is not None and outer.most > 1 and outer.greedy:
        return replace(outer, most=outer.least or 1)
    if part.least == part.most and outer.least == outer.most and part.most is not None:
        times = part.least * outer.least
        if times > MAX_TIMES:
            raise PatternError(f"a repeat of more than {MAX_TIMES:,} times")
        return replace(outer, part=part.part, least=times, most=times)
    return outer
