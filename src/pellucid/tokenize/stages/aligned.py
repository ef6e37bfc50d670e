"""A text in which each character has a span of the original text, for the offsets of tokens.

A normalizer changes a text, and a pre-tokenizer cuts it. :class:`AlignedText` records for each character its origin:
the span of the original text that the character represents. The rules follow ``NormalizedString`` in Hugging Face
``tokenizers``: a replacement has the origin of the character that it replaces, and an inserted character has the origin
of the character before it. Tokenizers use this slower form only if offsets or explanations are requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from pellucid.errors import InvalidRequest

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
