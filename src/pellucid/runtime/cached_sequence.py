"""A sequence: its tokens, and the block table of the tokens that are in the cache."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.runtime.batch import Chunk, Recorder
from pellucid.runtime.cache import BlockTable

MAX_TOKENS_AHEAD = 7
"""Maximum number of forced or draft tokens that a decoding sequence runs in one step after its last token."""


class CachedSequence:
    """A sequence of ``tokens``. ``table`` is the block table of the first tokens. Later steps compute the other tokens.

    The sequence needs the outputs of the tokens from ``first_output`` on; by default only the last token's output. Only
    tokens before ``first_output`` may come from the prefix cache. ``cached`` is the number of tokens that came from the
    prefix cache (None: the sequence has not run). ``matched`` is the number of tokens that the scheduler expects to
    find in the prefix cache (None: the scheduler has not searched). With ``in_one_step``, all tokens run in one step.

    ``recorder`` records and changes values of the sequence. The pages in the prefix cache were computed without it. A
    sequence with changed values therefore reads only pages before the first change, and fills no pages. Recorded
    positions are always computed.

    In an encoder-decoder, the tokens attend to a ``source``, another sequence. Their pages depend on the source, so the
    prefix cache does not share them. A sequence that ``encodes`` is itself a source, which the encoder runs.

    A sequence that loses its pages computes its tokens again, and its later outputs do not change.
    """

    encodes = False

    def __init__(
        self,
        tokens: Sequence[int],
        first_output: int | None = None,
        *,
        in_one_step: bool = False,
        table: BlockTable | None = None,
        recorder: Recorder | None = None,
        source: CachedSequence | None = None,
    ) -> None:
        self.source = source
        self.tokens, self.in_one_step, self.recorder = list(tokens), in_one_step, recorder
        self.cached: int | None = None
        self.matched: int | None = None
        self.types: Sequence[int] | None = None
        """The types of the tokens (None: all 0)."""
        self.table = table or BlockTable()
        self.first_output = len(self.tokens) - 1 if first_output is None else first_output

    @property
    def certain_tokens(self) -> int:
        """Number of tokens without forced and draft tokens."""
        return len(self.tokens)

    @property
    def unread_tokens(self) -> int:
        """Number of tokens that have not been computed."""
        return len(self.tokens) - self.table.length

    @property
    def decodes(self) -> bool:
        """True if the next tokens are decode rows: the last token, and the forced or draft tokens after it."""
        return 0 < self.table.length >= self.first_output and self.unread_tokens <= 1 + MAX_TOKENS_AHEAD

    def chunk(self, max_tokens: int, max_outputs: int) -> Chunk:
        """The next tokens of the sequence: at most ``max_tokens`` tokens, with at most ``max_outputs`` outputs."""
        start = self.table.length
        stop = min(start + max_tokens, len(self.tokens), max(self.first_output, start) + max_outputs)
        if self.recorder is not None and (end := self.recorder.chunk_end(start)) is not None:
            stop = min(stop, end)
        outputs = max(0, stop - max(self.first_output, start))
        encoder = None if self.source is None else self.source.table
        types = None if self.types is None else self.types[start:stop]
        return Chunk(self.table, self.tokens[start:stop], outputs, encoder, self.recorder, self.encodes, types)

    @property
    def cacheable_tokens(self) -> int:
        """Number of leading tokens that may come from the prefix cache."""
        if self.in_one_step or self.source is not None:
            return 0
        firsts = (self.recorder.first_recorded, self.recorder.first_changed) if self.recorder else ()
        return min([self.first_output, *(first for first in firsts if first is not None)])

    @property
    def uncacheable(self) -> bool:
        """True if no other sequence may use the keys and values of this sequence."""
        return self.source is not None or (self.recorder is not None and self.recorder.first_changed is not None)

    @property
    def shared_tokens(self) -> Sequence[int]:
        """The tokens that identify the sequence's pages in the prefix cache; empty if the sequence is uncacheable."""
        return () if self.uncacheable else self.tokens
