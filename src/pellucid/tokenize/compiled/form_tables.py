"""Tables of a Unicode normalization form, for compiled code (``kernels/text/normalize.py``).

In: the name of a form. Out: the decomposition of every character, and the pairs that compose. The data come from
Python's ``unicodedata``, limited to the characters of Unicode 9 (``normalize.Normalize``).
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.text.normalize import CHANGES, JOINS
from pellucid.tokenize.compiled.tables import PairTable
from pellucid.tokenize.stages.normalize import Form
from pellucid.tokenize.unicode import CODES, letters, members


class FormTable(Struct, frozen=True, eq=False):
    """The fields of ``text_normalize.NormalizeRecord``; ``growth`` is the maximum number of output bytes per byte."""

    properties: NDArray[np.uint16]
    places: NDArray[np.int32]
    written: NDArray[np.int32]
    pairs: PairTable
    composes: bool
    growth: int


@cache
def form_table(form: Form) -> FormTable:
    """The tables of a form, cached."""
    known, composes = letters(members("text.normalized") or ()), form in ("NFC", "NFKC")
    taken_apart: Form = "NFKD" if form in ("NFKC", "NFKD") else "NFD"
    properties, places, written = np.zeros(CODES, np.uint16), np.zeros(CODES, np.int32), [0]
    composed = {pair: letter for letter in known if (pair := _pair(letter)) is not None}
    seconds, growth = {second for _, second in composed} if composes else set(), 1
    for letter in known:
        code, parts = ord(letter), unicodedata.normalize(taken_apart, letter)
        kind = unicodedata.combining(letter)
        if unicodedata.normalize(form, letter) != letter:
            kind |= CHANGES
        if parts[0] in seconds or (parts != letter and unicodedata.combining(parts[0])):
            kind |= JOINS
        properties[code] = kind
        if parts != letter:
            places[code] = len(written)
            written += [len(parts), *map(ord, parts)]
            growth = max(growth, -(-len(parts.encode()) // len(letter.encode())))
    columns = [[ord(first) for first, _ in composed], [ord(second) for _, second in composed]]
    lefts, rights = (np.array(column, np.int32) for column in columns)
    merged = np.array([ord(letter) for letter in composed.values()], np.int32)
    pairs = PairTable(lefts, rights, merged, np.zeros(len(merged), np.int32))
    return FormTable(properties, places, np.array(written, np.int32), pairs, composes, growth)


def _pair(letter: str) -> tuple[str, str] | None:
    """The two characters that compose to a letter, or None."""
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) < 2 or unicodedata.normalize("NFC", parts) != letter:
        return None
    return unicodedata.normalize("NFC", parts[:-1]), parts[-1]
