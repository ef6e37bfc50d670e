"""Properties of characters, of fixed versions of Unicode, whatever Python's own is: the ids of a text hang on them.

``unicode.txt`` beside this file has a line for each property: its name, then runs of code points, hexadecimal. General
categories and others that patterns name are of Unicode 16. Names that begin with ``text.`` are of what is made of text:
``text.small``, capitals with the distance to their small letters; ``text.marks``, what goes when accents are stripped;
``text.normalized``, all that a normalisation form changes or composes. ``tests/oracles/unicode_oracle.py`` writes it.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable
from functools import cache
from pathlib import Path

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: first and last code points of runs, ascending, apart from each other."""

VERSION = "16.0"
CODES = 0x110000
_SURROGATES = ((0xD800, 0xDFFF),)
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


def singles(codes: Iterable[int]) -> Ranges:
    """The set of these code points."""
    return union(((code, code),) for code in codes)


def complement(one: Ranges) -> Ranges:
    """Characters that are not in the set."""
    lows, highs = [0, *(high + 1 for _, high in one)], [*(low - 1 for low, _ in one), CODES - 1]
    return tuple((low, high) for low, high in zip(lows, highs) if low <= high)


@cache
def _lines() -> dict[str, str]:
    found = {}
    for line in FILE.read_text(encoding="ascii").splitlines():
        name, _, runs = line.partition(" ")
        found[name] = runs
    return found


def _run(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low, 16), int(high or low, 16)


def ranges(runs: str) -> Ranges:
    """The set that is written as "41-5A 5F"."""
    return tuple(map(_run, runs.split()))


@cache
def members(name: str) -> Ranges | None:
    """The characters of a general category ("Lu"), a group of them ("L"), or another property; None if unknown.

    Surrogates are in none: no text has any.
    """
    lines = _lines()
    if name in lines:
        return ranges(lines[name])
    if name == "Cn":
        return complement(union((_SURROGATES, *(members(category) or () for category in _categories()))))
    group = [category for category in (*_categories(), "Cn") if category[0] == name]
    if not group:
        return None
    return union(members(category) or () for category in group)


@cache
def _categories() -> tuple[str, ...]:
    """The general categories that the file has: all but surrogates and what is not assigned."""
    return tuple(name for name in _lines() if len(name) == 2)


def bracket(*sets: Ranges | str) -> str:
    """The inside of a bracketed pattern that matches these sets, or those that are called so."""
    found = ((members(one) or ()) if isinstance(one, str) else one for one in sets)
    return "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in union(found))


@cache
def white_space() -> str:
    """All white space, for ``str.strip``, whose own also takes four control characters for that."""
    return letters(members("White_Space") or ())


def letters(one: Ranges) -> str:
    """The characters of a set without surrogates, ascending."""
    encoding = f"utf-32-{sys.byteorder[0]}e"  # "utf-32" alone takes U+FEFF for a mark of the order
    return "".join(array("I", range(low, high + 1)).tobytes().decode(encoding) for low, high in one)


def settled(text: str) -> str:
    """The text, for the ``regex`` package to look at: with what its ``\\p{...}`` knows otherwise replaced.

    ``regex`` follows the newest Unicode. What was not assigned in Unicode 16 becomes something that never will be,
    what has changed its general category another character of the old one.
    """
    if text.isascii():
        return text
    pattern, others = _unsettled()
    if pattern.search(text) is None:
        return text
    return pattern.sub(lambda found: others.get(found[0], found[0]), text)


@cache
def _unsettled() -> tuple[re.Pattern[str], dict[str, str]]:
    """What to look for, which is all of it and every character beyond U+FFFF; what becomes of it."""
    import regex  # type: ignore[import-untyped]

    others: dict[str, str] = {}
    for name in (*_categories(), "Cn"):
        ours = letters(members(name) or ())
        if changed := regex.findall(rf"\P{{{name}}}", ours):
            others |= dict.fromkeys(changed, regex.search(rf"(?r)\p{{{name}}}", ours)[0])
    # One table of what is below, one comparison for what is above: whole sets of ``regex`` are searched run by run.
    near = union((_SURROGATES, singles(ord(letter) for letter in others if letter < "\U00010000")))
    return re.compile(f"[{bracket(near)}]|[\U00010000-\U0010ffff]"), others


@cache
def small_letters() -> dict[int, str]:
    """Capital → small letter. A final sigma is like any other; one capital has two (U+0130)."""
    found: dict[int, str] = {}
    for entry in _lines()["text.small"].split():
        if "=" in entry:
            capital, _, letters = entry.partition("=")
            found[int(capital, 16)] = "".join(chr(int(letter, 16)) for letter in letters.split("."))
            continue
        sign = max(entry.rfind("+"), entry.rfind("-"))
        low, high = _run(entry[:sign])
        found.update((code, chr(code + int(entry[sign:]))) for code in range(low, high + 1))
    return found


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
    return singles(found)
