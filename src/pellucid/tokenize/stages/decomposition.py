"""Unicode decomposition (NFD, NFKD; UAX #15) of long texts that keep their offsets, by arrays.

The result equals `normalize.Normalize`, which uses patterns and is faster for short texts. Each character is decomposed
by itself, then adjacent marks are put in canonical order. As in ``tokenizers``, an origin does not move with its mark.
After the marks are in order, the origins are assigned in order.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Literal

from pellucid.tokenize.stages.aligned import AlignedText
from pellucid.tokenize.stages.character_map import UTF32, CharacterMap, codes_of, places_of
from pellucid.tokenize.unicode import CODES, letters, members

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Decomposed = Literal["NFD", "NFKD"]


@cache
def decompositions(form: Decomposed) -> dict[int, str]:
    """Code point → decomposition, for the characters of Unicode 9 that have a decomposition."""
    known = letters(members("text.normalized") or ())
    parts = ((letter, unicodedata.normalize(form, letter)) for letter in known)
    return {ord(letter): new for letter, new in parts if new != letter}


@cache
def marks() -> dict[int, int]:
    """Code point → combining class, for the combining marks of Unicode 9."""
    known = letters(members("text.normalized") or ())
    return {ord(letter): kind for letter in known if (kind := unicodedata.combining(letter))}


@cache
def _map(form: Decomposed) -> CharacterMap:
    return CharacterMap(decompositions(form))


@cache
def _classes() -> NDArray[np.uint8]:
    """The combining class of each character, (0x110000,)."""
    import numpy as np

    classes = np.zeros(CODES, np.uint8)
    classes[list(marks())] = list(marks().values())
    return classes


def decomposed(text: AlignedText, form: Decomposed) -> AlignedText:
    """The decomposed text."""
    import numpy as np

    lengths = _map(form).lengths(text.text)
    new = _map(form)(text.text)
    codes = codes_of(new)
    first = np.zeros(len(new), bool)  # the first character of each decomposition
    first[np.cumsum(lengths) - lengths] = True
    classes = _classes()[codes]
    order = np.cumsum(classes == 0) * 256 + classes
    if np.any(order[1:] < order[:-1]):
        sorted_places = np.argsort(order, kind="stable")
        first = first[sorted_places]
        new = codes[sorted_places].tobytes().decode(UTF32)
    before = np.cumsum(first) - first
    place = np.where(first, before, np.maximum(before - 1, 0))
    starts, ends = (places_of(column)[place].tolist() for column in (text.starts, text.ends))
    return AlignedText(new, starts, ends, text.origin)
