"""Properties of characters, of one version of Unicode, whatever Python's own is: the ids of a text hang on them.

``unicode.txt`` beside this file has a line for each general category and each other property that patterns of
tokenizers name: the name, then the runs of code points, hexadecimal. ``tests/oracles/unicode_oracle.py`` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: first and last code points of runs, ascending, apart from each other."""

VERSION = "16.0"
FILE = Path(__file__).with_name("unicode.txt")


def union(sets: Iterable[Ranges]) -> Ranges:
    """Characters that are in any of the sets."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(run for one in sets for run in one):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


@cache
def _lines() -> dict[str, str]:
    found = {}
    for line in FILE.read_text(encoding="ascii").splitlines():
        name, _, runs = line.partition(" ")
        found[name] = runs
    return found


@cache
def members(name: str) -> Ranges | None:
    """The characters of a general category ("Lu"), a group of them ("L"), or another property; None if unknown."""
    lines = _lines()
    if name in lines:
        ends = (run.partition("-") for run in lines[name].split())
        return tuple((int(low, 16), int(high or low, 16)) for low, _, high in ends)
    group = sorted(category for category in lines if len(category) == 2 and category[0] == name)
    if not group:
        return None
    return union(members(category) or () for category in group)


# Letters whose simple case folding is a letter of ASCII, besides that letter in the other case.
_FOLDED = {"s": 0x17F, "k": 0x212A}


def any_case(code: int) -> Ranges | None:
    """A character of ASCII in either case, with what else folds to it; None for others, which are not needed."""
    letter = chr(code)
    if code >= 0x80:
        return None
    found = {code, ord(letter.lower()), ord(letter.upper())}
    if letter.lower() in _FOLDED:
        found.add(_FOLDED[letter.lower()])
    return tuple((each, each) for each in sorted(found))
