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

MOST_FORCED = 7
"""Tokens without a choice that are read with the one before them."""


@dataclass(frozen=True)
class TokenOutput:
    """One turn of the loop: the token that was sampled and how, and the text that became certain.

    ``finish_reason`` says why it is the last, if it is: "stop" (a token or a string that ends the text, which is
    ``stop_reason``), "length" (as many tokens as were wanted, or as the context holds), "time", or "until" (the
    request's own function). ``model_seconds`` is how long the model took for the logits, prompt and all.
    """

    id: int
    text: str
    draw: Draw
    model_seconds: float
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @cached_property
    def trace(self) -> TokenTrace:
        """What the chain did for this token, if the request is one to ``watch``."""
        return of_draw(self.draw)


class TextSequence:
    """One continuation of a prompt: its sampler, its detokenizer, its stop criteria, and its block table.

    Tokens of ``ends`` are its last; ``limit`` is how many it may have; ``table`` is set by who runs the model.
    """

    def __init__(
        self, tokenizer: Tokenizer, options: Options, sampler: Sampler, ends: frozenset[int], limit: int
    ) -> None:
        self.sampler, self.table = sampler, BlockTable()
        self.last, self.done = -1, False
        self._watch, self._limit = options.watch, limit
        self._ends, self._stop = ends, options.stop_criteria()
        self._detokenizer = tokenizer.stream()

    def take(self, logits: NDArray[np.float32], seconds: float) -> TokenOutput:
        """The token that these logits (V,) give, and its text."""
        draw = self.sampler.sample(logits, watch=self._watch)  # softmax → sample
        token, self._limit = draw.token, self._limit - 1
        self.last = token
        if token in self._ends:
            self.done = True
            return TokenOutput(token, self._rest(), draw, seconds, "stop", token)
        certain = self._detokenizer.push(token)  # detokenize → text
        text, reason = self._stop.push(certain, last=self._limit == 0)
        if self.sampler.complete and reason != "stop":
            text, reason = text + self._rest(), "stop"
        self.done = reason is not None
        return TokenOutput(token, text, draw, seconds, reason, self._stop.found)

    def _rest(self) -> str:
        """What was held back, at an end that is none of ours."""
        return self._stop.flush(self._detokenizer.flush())

    def pending(self) -> Chunk:
        """The token that came, and those that must come after it: they are read together."""
        tokens = [self.last, *self.sampler.forced[: min(MOST_FORCED, self._limit - 1)]]
        return Chunk(self.table, tokens, outputs=len(tokens))
