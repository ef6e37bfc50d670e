"""Text that remembers where it came from.

A normalizer changes a text, a pre-tokenizer cuts it; :class:`Aligned` carries along, for each character that there is
now, which characters of the original text it stands for. The rules are those of Hugging Face ``tokenizers``,
``NormalizedString``: a character that replaces another stands where that one stood, one that was put in stands where
the one before it does. This is the slow way through a tokenizer, for offsets and explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pellucid.errors import InvalidRequest

Change = Callable[[str], Iterable[tuple[str, int]]]
"""What a piece of text becomes: characters, and which character of the piece, by its index, they stand for; -1 for the
one before the piece."""

TIMES, MORE, MOST = 32, 1_000, 1 << 28
"""What rules of a file may make of n characters: TIMES * n + MORE of them, and MOST, or n if that is more. The longest
normalisation form has 18 times as many."""


def check_growth(before: int, after: int) -> None:
    """Refuse a text of ``before`` characters that has become ``after``. Raises :class:`InvalidRequest`."""
    most = min(TIMES * before + MORE, max(before, MOST))
    if after > most:
        raise InvalidRequest(
            f"the tokenizer's rules make {after:,} characters or more of a text of {before:,}; {most:,} are allowed: "
            "use another tokenizer file, or encode the text in parts"
        )


@dataclass(frozen=True)
class Aligned:
    """A text; character i stands for the characters ``starts[i]`` up to, not with, ``ends[i]`` of the original.

    ``origin`` is where the text began in the original when it was cut out: what is put in front stands there.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    origin: int = 0

    @classmethod
    def of(cls, text: str) -> Aligned:
        """The original text itself."""
        return cls(text, range(len(text)), range(1, len(text) + 1))

    @classmethod
    def of_any(cls, text: str) -> Aligned:
        """The text without surrogates: a pair of them, which is one character, stands for both."""
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

    def part(self, start: int, stop: int) -> Aligned:
        """Some of its characters."""
        origin = self.starts[start] if start < stop else self.origin
        return Aligned(self.text[start:stop], self.starts[start:stop], self.ends[start:stop], origin)

    def without(self, letter: str) -> Aligned:
        """The text without a character."""
        places = (at for at, one in enumerate(self.text) if one == letter)
        return self.rewritten(((at, at + 1) for at in places), lambda _: ())

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where characters ``start`` up to ``stop`` were in the original; none of them: an empty place there."""
        begin = self.starts[start] if start < len(self.text) else 0
        return begin, self.ends[stop - 1] if start < stop else begin

    def rewritten(self, matches: Iterable[tuple[int, int]], change: Change) -> Aligned:
        """The text in which each match, from here to there, became what ``change`` makes of it.

        What an empty match becomes stands where the character before does; at the beginning for nothing.
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
        return Aligned("".join(text), starts, ends, self.origin)


def placed(changes: Iterable[tuple[str, int]], dropped: int = 0) -> list[tuple[str, int]]:
    """Characters with the index that each stands for, from changes in the manner of ``tokenizers``.

    A change is a character and 0 if it replaces the next of the old ones, 1 if it is put in between, -n if it
    replaces one and n more are dropped after it. ``dropped`` were left out at the very beginning.
    """
    out: list[tuple[str, int]] = []
    at = dropped
    for new, change in changes:
        out.append((new, max(at - 1, 0) if change > 0 else at))
        at += 0 if change > 0 else 1 - change
    return out


def without_surrogates(text: str) -> str:
    """The text with unpaired surrogates, which no UTF-8 can hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
