"""A sequence: one text that is being generated, from logits to a token, its text, and whether it is the last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.chain import Draw, Sampler
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace, of_draw
from pellucid.tokenize import Tokenizer

MAX_FORCED_TOKENS = 7
"""How many forced tokens (tokens without an alternative) may run in the same step as the sampled token."""


@dataclass(frozen=True)
class TokenOutput:
    """One sampled token: how it was sampled, and the text that it completes.

    ``finish_reason`` is None unless the token is the last. Then it is "stop" (an end token, a stop string, or a
    constraint that is complete; ``stop_reason`` is the token or the string, None for a constraint), "length" (the
    requested number of tokens or the end of the context), "time", or "until" (the request's own function).
    ``model_seconds`` is the duration of the steps that computed its logits: of all steps of the prompt for the first
    token, 0 for a token after the first of the same step.
    """

    id: int
    text: str
    draw: Draw
    model_seconds: float
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @cached_property
    def trace(self) -> TokenTrace:
        """What the chain did for this token, if the request has ``watch``."""
        return of_draw(self.draw)


class TextSequence:
    """One continuation of a prompt: its sampler, detokenizer, stop criteria and block table.

    A token of ``ends`` ends it; ``limit`` is the greatest number of its tokens. ``GenerationTask`` sets
    ``table`` once the prompt has been read.
    """

    def __init__(
        self, tokenizer: Tokenizer, options: Options, sampler: Sampler, ends: frozenset[int], limit: int
    ) -> None:
        self.sampler, self.table = sampler, BlockTable()
        self.last, self.done = -1, False
        self._watch, self._limit = options.watch, limit
        self._end_ids, self._stop = ends, options.stop_criteria()
        self._detokenizer = tokenizer.stream()

    def take(self, logits: NDArray[np.float32], seconds: float) -> TokenOutput:
        """Sample a token from logits (V,) and detokenize it."""
        draw = self.sampler.sample(logits, watch=self._watch)  # softmax → sample
        token, self._limit = draw.token, self._limit - 1
        self.last = token
        if token in self._end_ids:
            self.done = True
            return TokenOutput(token, self._flush(), draw, seconds, "stop", token)
        certain = self._detokenizer.push(token)  # detokenize → text
        text, reason = self._stop.push(certain, last=self._limit == 0)
        if self.sampler.complete and reason != "stop":
            text, reason = text + self._flush(), "stop"
        self.done = reason is not None
        return TokenOutput(token, text, draw, seconds, reason, self._stop.found)

    def _flush(self) -> str:
        """The text that the detokenizer and the stop criteria held back, when neither of them ends the sequence."""
        return self._stop.flush(self._detokenizer.flush())

    def pending(self) -> Chunk:
        """The sampled token and the forced tokens after it, which run in one step."""
        tokens = [self.last, *self.sampler.forced[: min(MAX_FORCED_TOKENS, self._limit - 1)]]
        return Chunk(self.table, tokens, outputs=len(tokens))
