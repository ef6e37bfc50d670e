"""A text in the cache: its tokens, of which the first ones have been read."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.runtime.batch import Chunk, Probe
from pellucid.runtime.cache import BlockTable

MOST_AHEAD = 7
"""Tokens that a text which is made may read in the same step as its last one: those that are forced or proposed."""


class CachedSequence:
    """``tokens``, of which the block table ``table`` holds the first ones. The others are read in the next steps.

    The outputs of the tokens from ``wanted`` on are needed (by default the last token's), so that only tokens before it
    may come from the prefix cache; ``cached`` is how many did (None: it has not been read), ``matched`` how many the
    scheduler expects to (None: it has not looked). With ``whole`` all tokens are read in one step.

    ``probe`` watches and changes its values. What a prefix cache has were computed without it, so a sequence whose
    values are changed neither finds nor leaves anything there, and what is recorded is computed.

    A sequence that loses its pages reads its tokens again: nothing else depends on how far it has been read.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        wanted: int | None = None,
        *,
        whole: bool = False,
        table: BlockTable | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.tokens, self.whole, self.probe = list(tokens), whole, probe
        self.cached: int | None = None
        self.matched: int | None = None
        self.table = table or BlockTable()
        self.wanted = len(self.tokens) - 1 if wanted is None else wanted

    @property
    def left(self) -> int:
        """How many tokens have not been read."""
        return len(self.tokens) - self.table.length

    @property
    def decodes(self) -> bool:
        """True if the next tokens are decode rows: the last token, and the forced or proposed tokens after it."""
        return 0 < self.table.length >= self.wanted and self.left <= 1 + MOST_AHEAD

    def chunk(self, most: int, rows: int) -> Chunk:
        """The next tokens: ``most`` of them, with ``rows`` outputs, or fewer."""
        start = self.table.length
        stop = min(start + most, len(self.tokens), max(self.wanted, start) + rows)
        outputs = max(0, stop - max(self.wanted, start))
        return Chunk(self.table, self.tokens[start:stop], outputs=outputs, probe=self.probe)

    @property
    def findable(self) -> int:
        """How many of its first tokens may come from the prefix cache."""
        if self.whole or self.private:
            return 0
        recorded = self.probe.first_recorded if self.probe else None
        return self.wanted if recorded is None else min(self.wanted, recorded)

    @property
    def private(self) -> bool:
        """Whether no other sequence may use its keys and values."""
        return self.probe is not None and self.probe.private

    @property
    def shared_tokens(self) -> Sequence[int]:
        """The tokens by which others may find its pages: none if it is private."""
        return () if self.private else self.tokens
