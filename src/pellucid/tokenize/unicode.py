"""Properties of characters, of fixed versions of Unicode, whatever Python's own is: the ids of a text hang on them.

``unicode.txt`` beside this file has a line for each property: its name, then runs of code points, hexadecimal. General
categories and others that patterns name are of Unicode 16. Names that begin with ``text.`` are of what is made of text:
``text.small``, capitals with the distance to their small letters; ``text.marks``, what goes when accents are stripped;
``text.normalized``, all that a normalisation form changes or composes; ``text.word``, Oniguruma's ``\\w``.
``fold.simple`` and ``fold.full`` are what is the same in another case. ``unicode_properties.txt`` has all other
properties that a pattern can name: a line for each set, its names, a colon, runs. ``tests/oracles/unicode_oracle.py``
writes both.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: first and last code points of runs, ascending, apart from each other."""

VERSION = "16.0"
CODES = 0x110000
_SURROGATES = ((0xD800, 0xDFFF),)
FILE = Path(__file__).with_name("unicode.txt")
PROPERTIES = Path(__file__).with_name("unicode_properties.txt")


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


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """Characters that are in both."""
    return complement(union((complement(one), complement(other))))


def holding(one: Ranges) -> Callable[[int], bool]:
    """Tells of a code point whether it is in the set."""
    lows = [low for low, _ in one]
    highs = [high for _, high in one]

    def holds(code: int) -> bool:
        at = bisect_right(lows, code) - 1
        return at >= 0 and code <= highs[at]

    return holds


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


# ---------------------------------------------------------------- properties that patterns name


def plain_name(name: str) -> str:
    """The name of a property as it is compared: without case, spaces, dashes and underscores."""
    return name.translate({ord(sign): None for sign in " -_"}).lower() if name.isascii() else name


@cache
def _named() -> dict[str, str]:
    """Of each property, by its plain name, the runs."""
    found = {}
    for line in PROPERTIES.read_text(encoding="ascii").splitlines():
        names, _, runs = line.partition(":")
        found.update(dict.fromkeys(names.split(), runs))
    return found


_USUAL = {"space": "White_Space", "whitespace": "White_Space", "digit": "Nd"}


@cache
def named(plain: str) -> Ranges | None:
    """The characters of a property that Oniguruma 6.9.10 knows, by its plain name; None if it is not known."""
    usual = members(_USUAL.get(plain, plain.capitalize()))  # without the larger file
    if usual is not None:
        return usual
    runs = _named().get(plain)
    return None if runs is None else ranges(runs)


# ---------------------------------------------------------------- letters in another case


@cache
def _small() -> dict[int, int]:
    """The letter that all of its kind become, of those that are not it."""
    found: dict[int, int] = {}
    for entry in _lines()["fold.simple"].split():
        sign = max(entry.rfind("+"), entry.rfind("-"))
        low, high = _run(entry[:sign])
        found.update((code, code + int(entry[sign:])) for code in range(low, high + 1))
    return found


@cache
def _kinds() -> dict[int, Ranges]:
    """Of each letter that all of its kind become, the kind."""
    kinds: dict[int, set[int]] = {}
    for code, target in _small().items():
        kinds.setdefault(target, {target}).add(code)
    return {target: singles(kind) for target, kind in kinds.items()}


def small(code: int) -> int:
    """The letter that this one, and all that differ from it in case only, become."""
    return _small().get(code, code)


def same_case(code: int) -> Ranges:
    """A character, and those that differ from it in case only."""
    return _kinds().get(small(code), ((code, code),))


def cased() -> list[int]:
    """All characters that have others that differ from them in case only."""
    return [*_small(), *_kinds()]


@cache
def full_folds() -> dict[int, tuple[int, ...]]:
    """Characters that are the same as several letters in another case ("ß"), and these."""
    entries = (entry.split("=") for entry in _lines()["fold.full"].split())
    return {
        int(code, 16): tuple(small(int(letter, 16)) for letter in letters.split("."))
        for code, letters in entries
    }


@cache
def unfolded() -> dict[tuple[int, ...], Ranges]:
    """The other way round: small letters that one character stands for, and which do."""
    found: dict[tuple[int, ...], list[int]] = {}
    for code, several in full_folds().items():
        found.setdefault(several, []).append(code)
    return {several: singles(codes) for several, codes in found.items()}
