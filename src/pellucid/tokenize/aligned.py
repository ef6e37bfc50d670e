"""Text that remembers where it came from.

A normalizer changes a text, a pre-tokenizer cuts it; :class:`Aligned` carries along, for each character that there is
now, which characters of the original text it stands for. The rules are those of Hugging Face ``tokenizers``,
``NormalizedString``: a character that replaces another stands where that one stood, one that was put in stands where
the one before it does. This is the slow way through a tokenizer, for offsets and explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from re import Match

Change = Callable[[str], Iterable[tuple[str, int]]]
"""What a piece of text becomes: characters, and which character of the piece, by its index, they stand for."""


@dataclass(frozen=True)
class Aligned:
    """A text; character i stands for the characters ``starts[i]`` up to, not with, ``ends[i]`` of the original."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str) -> Aligned:
        """The original text itself."""
        return cls(text, range(len(text)), range(1, len(text) + 1))

    def __len__(self) -> int:
        return len(self.text)

    def part(self, start: int, stop: int) -> Aligned:
        """Some of its characters."""
        return Aligned(self.text[start:stop], self.starts[start:stop], self.ends[start:stop])

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where characters ``start`` up to ``stop`` were in the original; none of them: an empty place there."""
        begin = self.starts[start] if start < len(self.text) else 0
        return begin, self.ends[stop - 1] if start < stop else begin

    def rewritten(self, matches: Iterable[Match[str]], change: Change) -> Aligned:
        """The text in which each match became what ``change`` makes of it."""
        text: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for found in matches:
            start, stop = found.span()
            text.append(self.text[done:start])
            starts.extend(self.starts[done:start])
            ends.extend(self.ends[done:start])
            changes = list(change(self.text[start:stop]))
            text.extend([new for new, _ in changes])
            places = [start + index for new, index in changes for _ in new]
            starts.extend(map(self.starts.__getitem__, places))
            ends.extend(map(self.ends.__getitem__, places))
            done = stop
        if not done:
            return self
        text.append(self.text[done:])
        starts.extend(self.starts[done:])
        ends.extend(self.ends[done:])
        return Aligned("".join(text), starts, ends)


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
