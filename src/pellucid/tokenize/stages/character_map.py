"""Replacements of single characters: the common step of a normalizer, and Unicode decomposition."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

from pellucid.tokenize.stages.aligned import AlignedText, check_growth
from pellucid.tokenize.unicode import CODES, letters, members

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHORT = 256
"""Maximum characters of a text whose origins Python moves one by one. Arrays are faster only for longer texts."""
UTF32 = f"utf-32-{sys.byteorder[0]}e"
"""The encoding by code points, without a byte order mark."""


class CharacterMap:
    """Replaces characters with a code in ``targets``; a replacement has the origin of the replaced character."""

    def __init__(self, targets: Mapping[int, str]) -> None:
        self.targets = dict(targets)
        self._uneven = {chr(code): len(new) for code, new in targets.items() if len(new) != 1}
        self._touches_ascii = any(code < 0x80 for code in targets)

    def then(self, following: CharacterMap) -> CharacterMap:
        """This map and then ``following``, as one map."""
        both = {code: new.translate(following.targets) for code, new in self.targets.items()}
        return CharacterMap(following.targets | both)

    def __call__(self, text: str) -> str:
        if text.isascii() and not self._touches_ascii:
            return text
        new = text.translate(self.targets)
        check_growth(len(text), len(new))
        return new

    def aligned(self, text: AlignedText) -> AlignedText:
        old = text.text
        if old.isascii() and not self._touches_ascii:
            return text
        if self._uneven.keys().isdisjoint(old):
            new = old.translate(self.targets)
            return text if new == old else AlignedText(new, text.starts, text.ends, text.origin)
        if len(old) <= SHORT:
            lengths = [self._uneven.get(letter, 1) for letter in old]
            check_growth(len(old), sum(lengths))
            starts, ends = (_repeated(places, lengths) for places in (text.starts, text.ends))
        else:
            starts, ends = self._moved(old, text.starts, text.ends)
        return AlignedText(old.translate(self.targets), starts, ends, text.origin)

    def _moved(self, old: str, *places: Sequence[int]) -> list[list[int]]:
        """The ``places`` of the characters of a long text, each repeated for all characters of the replacement."""
        lengths = self.lengths(old)
        check_growth(len(old), int(lengths.sum()))
        return [places_of(column).repeat(lengths).tolist() for column in places]

    def lengths(self, text: str) -> NDArray[np.int64]:
        """The length of the replacement of each character of a text."""
        return self._lengths[codes_of(text)]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """The length of each character's replacement, (0x110000,)."""
        import numpy as np

        lengths = np.ones(CODES, np.int64)
        lengths[list(map(ord, self._uneven))] = list(self._uneven.values())
        return lengths


def codes_of(text: str) -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(text.encode(UTF32), np.uint32)


def places_of(places: Sequence[int]) -> NDArray[np.int64]:
    """Places of characters as an array."""
    import numpy as np

    if isinstance(places, range):
        return np.arange(places.start, places.stop)
    return np.array(places, np.int64)


def _repeated(places: Sequence[int], counts: Sequence[int]) -> list[int]:
    return [place for place, count in zip(places, counts, strict=True) for _ in range(count)]


# Unicode decomposition (NFD, NFKD; UAX #15) of long texts that keep their offsets, by arrays. The result equals
# `normalize.Normalize`, which uses patterns and is faster for short texts. Each character is decomposed by itself, then
# adjacent marks are put in canonical order. As in ``tokenizers``, an origin does not move with its mark. After the
# marks are in order, the origins are assigned in order.

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
