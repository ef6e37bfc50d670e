"""The last stage of encoding: put the special tokens around the sequence.

In: the ids of one text, or of two. Out: the ids that the model was trained on, e.g. ``[CLS] A [SEP]`` or
``<bos> A``, and a segment number per id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

A, B = -1, -2
"""Placeholders in a template for the first and the second text."""


@dataclass(frozen=True)
class Template:
    """What to put around one text (``single``) and two (``pair``): (id or placeholder, segment) in order."""

    single: tuple[tuple[int, int], ...] = ((A, 0),)
    pair: tuple[tuple[int, int], ...] = ((A, 0), (B, 1))

    @classmethod
    def around(cls, before: Sequence[int], after: Sequence[int]) -> Template:
        """The ids ``before`` and ``after`` every text."""
        single = (*((i, 0) for i in before), (A, 0), *((i, 0) for i in after))
        second = (*((i, 1) for i in before), (B, 1), *((i, 1) for i in after))
        return cls(single, (*single, *second))

    def apply(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """(ids, segments) of one text or of a pair."""
        ids: list[int] = []
        segments: list[int] = []
        for item, segment in self.single if second is None else self.pair:
            part = first if item == A else second if item == B else (item,)
            assert part is not None
            ids.extend(part)
            segments.extend([segment] * len(part))
        return ids, segments
