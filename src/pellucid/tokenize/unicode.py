"""Properties of characters at fixed versions of Unicode, so that the ids of a text do not depend on Python's version.

``unicode.txt`` in this folder has one line per property: its name, then runs of hexadecimal code points. General
categories and other properties in patterns have the values of Unicode 16. Names that begin with ``text.`` are sets for
text processing: ``text.small`` has the capitals with the distance to their small letters, ``text.marks`` the marks that
stripping accents removes, ``text.normalized`` all characters that a normalization form changes or composes, and
``text.word`` Oniguruma's ``\\w``. ``fold.simple`` and ``fold.full`` are the simple and full case foldings.
``unicode_properties.txt`` has all other properties that a pattern can name. Each line has the names of a set, a colon,
and runs of code points. ``tests/oracles/unicode_oracle.py`` writes both files.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: the first and last code points of its runs, ascending, not adjacent."""

VERSION = "16.0"
CODES = 0x110000
_SURROGATES = ((0xD800, 0xDFFF),)
FILE = Path(__file__).with_name("unicode.txt")
PROPERTIES = Path(__file__).with_name("unicode_properties.txt")


def union(sets: Iterable[Ranges]) -> Ranges:
    """The characters that are in at least one of the sets."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(run for characters in sets for run in characters):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def singles(codes: Iterable[int]) -> Ranges:
    """The set of the code points ``codes``."""
    return union(((code, code),) for code in codes)


def complement(characters: Ranges) -> Ranges:
    """The characters that are not in the set."""
    lows, highs = [0, *(high + 1 for _, high in characters)], [*(low - 1 for low, _ in characters), CODES - 1]
    return tuple((low, high) for low, high in zip(lows, highs) if low <= high)


def intersection(first: Ranges, second: Ranges) -> Ranges:
    """The characters that are in both sets."""
    return complement(union((complement(first), complement(second))))


def holding(characters: Ranges) -> Callable[[int], bool]:
    """A function that returns True for a code point in the set."""
    lows = [low for low, _ in characters]
    highs = [high for _, high in characters]

    def holds(code: int) -> bool:
        at = bisect_right(lows, code) - 1
        return at >= 0 and code <= highs[at]

    return holds


@cache
def _lines() -> dict[str, str]:
    lines = {}
    for line in FILE.read_text(encoding="ascii").splitlines():
        name, _, runs = line.partition(" ")
        lines[name] = runs
    return lines


def _run(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low, 16), int(high or low, 16)


def ranges(runs: str) -> Ranges:
    """Parse a set written as, for example, "41-5A 5F"."""
    return tuple(map(_run, runs.split()))


@cache
def members(name: str) -> Ranges | None:
    """The characters of a general category ("Lu"), a group of categories ("L") or another property; None if unknown.

    No set includes surrogates, because texts have none.
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
    """The general categories in the file: all except surrogates (Cs) and unassigned (Cn)."""
    return tuple(name for name in _lines() if len(name) == 2)


def bracket(*sets: Ranges | str) -> str:
    """The contents of a bracketed pattern that matches the union of the sets, given as runs or by name."""
    runs = ((members(characters) or ()) if isinstance(characters, str) else characters for characters in sets)
    return "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in union(runs))


@cache
def white_space() -> str:
    """All white space, as an argument for ``str.strip``, whose default also strips four control characters."""
    return letters(members("White_Space") or ())


def letters(characters: Ranges) -> str:
    """The characters of a set without surrogates, ascending, as one string."""
    encoding = f"utf-32-{sys.byteorder[0]}e"  # plain "utf-32" would take U+FEFF for a byte order mark
    return "".join(array("I", range(low, high + 1)).tobytes().decode(encoding) for low, high in characters)


@cache
def small_letters() -> dict[int, str]:
    """Capital → small letter, without a special case for the Greek final sigma. U+0130 maps to two characters."""
    small: dict[int, str] = {}
    for entry in _lines()["text.small"].split():
        if "=" in entry:
            capital, _, letters = entry.partition("=")
            small[int(capital, 16)] = "".join(chr(int(letter, 16)) for letter in letters.split("."))
            continue
        sign = max(entry.rfind("+"), entry.rfind("-"))
        low, high = _run(entry[:sign])
        small.update((code, chr(code + int(entry[sign:]))) for code in range(low, high + 1))
    return small


# ---------------------------------------------------------------- properties that patterns name


def plain_name(name: str) -> str:
    """A property name in the form used for comparison: without case, spaces, dashes and underscores."""
    return name.translate({ord(sign): None for sign in " -_"}).lower() if name.isascii() else name


@cache
def _named() -> dict[str, str]:
    """Plain property name → runs."""
    named = {}
    for line in PROPERTIES.read_text(encoding="ascii").splitlines():
        names, _, runs = line.partition(":")
        named.update(dict.fromkeys(names.split(), runs))
    return named


_ALIASES = {"space": "White_Space", "whitespace": "White_Space", "digit": "Nd"}


@cache
def named(plain: str) -> Ranges | None:
    """The characters of a property of Oniguruma 6.9.10, by its plain name; None if unknown."""
    usual = members(_ALIASES.get(plain, plain.capitalize()))  # avoids reading the larger file
    if usual is not None:
        return usual
    runs = _named().get(plain)
    return None if runs is None else ranges(runs)


# ---------------------------------------------------------------- case folding


@cache
def _simple_folds() -> dict[int, int]:
    """The simple case folding of each letter that differs from its folding."""
    folds: dict[int, int] = {}
    for entry in _lines()["fold.simple"].split():
        sign = max(entry.rfind("+"), entry.rfind("-"))
        low, high = _run(entry[:sign])
        folds.update((code, code + int(entry[sign:])) for code in range(low, high + 1))
    return folds


@cache
def _fold_classes() -> dict[int, Ranges]:
    """Folded letter → all letters that fold to it, itself included."""
    kinds: dict[int, set[int]] = {}
    for code, target in _simple_folds().items():
        kinds.setdefault(target, {target}).add(code)
    return {target: singles(kind) for target, kind in kinds.items()}


def small(code: int) -> int:
    """The simple case folding of a letter."""
    return _simple_folds().get(code, code)


def same_case(code: int) -> Ranges:
    """The characters that differ from a character in case only, itself included."""
    return _fold_classes().get(small(code), ((code, code),))


def cased() -> list[int]:
    """All characters that have another case."""
    return [*_simple_folds(), *_fold_classes()]


@cache
def full_folds() -> dict[int, tuple[int, ...]]:
    """Characters whose case folding has several letters ("ß") → these letters."""
    entries = (entry.split("=") for entry in _lines()["fold.full"].split())
    return {int(code, 16): tuple(small(int(letter, 16)) for letter in letters.split(".")) for code, letters in entries}


@cache
def unfolded() -> dict[tuple[int, ...], Ranges]:
    """The inverse of ``full_folds``: several small letters → the characters that fold to them."""
    unfolded: dict[tuple[int, ...], list[int]] = {}
    for code, letters in full_folds().items():
        unfolded.setdefault(letters, []).append(code)
    return {letters: singles(codes) for letters, codes in unfolded.items()}
