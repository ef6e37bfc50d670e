"""A text in the cache: its tokens, of which the first ones have been read."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

MOST_AHEAD = 7
"""Tokens that a text which is made may read in the same step as its last one: those that are forced or proposed."""


class CachedSequence:
    """``tokens``, of which the block table ``table`` holds the first ones. The others are read in the next steps.

    The outputs of the tokens from ``wanted`` on are needed (by default the last token's), so that only tokens before it
    may come from the prefix cache; ``cached`` is how many did (None: it has not been read). With ``whole`` all tokens
    are read in one step.

    A sequence that loses its pages reads its tokens again: nothing else depends on how far it has been read.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        wanted: int | None = None,
        *,
        whole: bool = False,
        table: BlockTable | None = None,
    ) -> None:
        self.tokens, self.whole = list(tokens), whole
        self.cached: int | None = None
        self.table = table or BlockTable()
        self.wanted = len(self.tokens) - 1 if wanted is None else wanted

    @property
    def left(self) -> int:
        """How many tokens have not been read."""
        return len(self.tokens) - self.table.length

    def chunk(self, most: int, rows: int) -> Chunk:
        """The next tokens: ``most`` of them, with ``rows`` outputs, or fewer."""
        start = self.table.length
        stop = min(start + most, len(self.tokens), max(self.wanted, start) + rows)
        return Chunk(self.table, self.tokens[start:stop], outputs=max(0, stop - max(self.wanted, start)))
