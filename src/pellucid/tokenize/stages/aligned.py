"""A text in which each character has a span of the original text, for the offsets of tokens.

A normalizer changes a text, and a pre-tokenizer cuts it. :class:`AlignedText` records for each character its origin:
the span of the original text that the character represents. The rules follow ``NormalizedString`` in Hugging Face
``tokenizers``: a replacement has the origin of the character that it replaces, and an inserted character has the origin
of the character before it. Tokenizers use this slower form only if offsets or explanations are requested.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from pellucid.errors import InvalidRequest
from pellucid.tokenize.unicode import CODES, letters, members

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Replacer = Callable[[str], Iterable[tuple[str, int]]]
"""Maps a matched text to its replacement. The replacement is a sequence of pairs: a character, and the index of its
origin in the matched text. Index -1 is the character before the match."""

GROWTH_FACTOR, GROWTH_EXTRA, MAX_GROWN = 32, 1_000, 1 << 28
"""Limits on the growth of a text by a file's rules: n characters may become min(GROWTH_FACTOR * n + GROWTH_EXTRA,
max(n, MAX_GROWN)). A Unicode normalization form lengthens a text at most 18 times."""


def check_growth(before: int, after: int) -> None:
    """Raise :class:`InvalidRequest` if the growth of a text from ``before`` to ``after`` characters is too large."""
    limit = min(GROWTH_FACTOR * before + GROWTH_EXTRA, max(before, MAX_GROWN))
    if after > limit:
        raise InvalidRequest(
            f"the tokenizer's rules turn {before:,} characters into at least {after:,}; {limit:,} are allowed: use "
            "another tokenizer file, or encode the text in parts"
        )


class AlignedText(Struct, frozen=True):
    """A text. Its character i represents the characters ``starts[i]`` up to (excluding) ``ends[i]`` of the original.

    ``origin`` is the position in the original where this text began when it was cut out. Characters that are inserted
    at the start of this text have the empty span (origin, origin).
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    origin: int = 0

    @classmethod
    def of(cls, text: str) -> AlignedText:
        """The original text, aligned with itself."""
        return cls(text, range(len(text)), range(1, len(text) + 1))

    @classmethod
    def of_any(cls, text: str) -> AlignedText:
        """The text without surrogates. A surrogate pair becomes one character whose origin is both surrogates."""
        repaired = without_surrogates(text)
        if repaired is text:
            return cls.of(text)
        starts: list[int] = []
        ends: list[int] = []
        for at, letter in enumerate(text):
            if "\udc00" <= letter <= "\udfff" and at and "\ud800" <= text[at - 1] <= "\udbff":
                ends[-1] = at + 1
                continue
            starts.append(at)
            ends.append(at + 1)
        return cls(repaired, starts, ends)

    def __len__(self) -> int:
        return len(self.text)

    def part(self, start: int, stop: int) -> AlignedText:
        """The characters from ``start`` up to ``stop``."""
        origin = self.starts[start] if start < stop else self.origin
        return AlignedText(self.text[start:stop], self.starts[start:stop], self.ends[start:stop], origin)

    def without(self, letter: str) -> AlignedText:
        """The text without any occurrence of a character."""
        places = (at for at, character in enumerate(self.text) if character == letter)
        return self.rewritten(((at, at + 1) for at in places), lambda _: ())

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The span in the original of the characters ``start`` up to ``stop``; empty if there are no characters."""
        begin = self.starts[start] if start < len(self.text) else 0
        return begin, self.ends[stop - 1] if start < stop else begin

    def rewritten(self, matches: Iterable[tuple[int, int]], change: Replacer) -> AlignedText:
        """The text with each match (start, stop) replaced by ``change``.

        The replacement of an empty match has the origin of the character before the match. At the start of the text it
        has the empty span at ``origin``.
        """
        text: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done, changed = 0, False
        for start, stop in matches:
            changed = True
            text.append(self.text[done:start])
            starts.extend(self.starts[done:start])
            ends.extend(self.ends[done:start])
            changes = list(change(self.text[start:stop]))
            text.extend([new for new, _ in changes])
            places = [start + index for new, index in changes for _ in new]
            starts.extend(self.starts[place] if place >= 0 else self.origin for place in places)
            ends.extend(self.ends[place] if place >= 0 else self.origin for place in places)
            check_growth(len(self.text), len(starts))
            done = stop
        if not changed:
            return self
        text.append(self.text[done:])
        starts.extend(self.starts[done:])
        ends.extend(self.ends[done:])
        return AlignedText("".join(text), starts, ends, self.origin)


def placed(changes: Iterable[tuple[str, int]], dropped: int = 0) -> list[tuple[str, int]]:
    """The new characters, each with the index of the old character that it represents.

    ``changes`` have the form of ``tokenizers``, a character and a number. 0 means that the character replaces the next
    old character. 1 means that the character is inserted. -n means that the character replaces the next old character,
    and that the n old characters after this old character are dropped. ``dropped`` is the number of old characters that
    were removed at the start.
    """
    out: list[tuple[str, int]] = []
    at = dropped
    for new, change in changes:
        out.append((new, max(at - 1, 0) if change > 0 else at))
        at += 0 if change > 0 else 1 - change
    return out


def without_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and unpaired surrogates, which UTF-8 cannot encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# Replacements of single characters: the common step of a normalizer, and Unicode decomposition.

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
    import unicodedata

    known = letters(members("text.normalized") or ())
    parts = ((letter, unicodedata.normalize(form, letter)) for letter in known)
    return {ord(letter): new for letter, new in parts if new != letter}


@cache
def marks() -> dict[int, int]:
    """Code point → combining class, for the combining marks of Unicode 9."""
    import unicodedata

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
