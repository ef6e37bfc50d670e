"""A sequence: one text during generation, from logits to a token, the token's text, and the stop criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.engine.draft import DraftGain, DraftModel, DraftText
from pellucid.engine.pace import Pace
from pellucid.engine.speculation import MOST, Gain, PromptLookup
from pellucid.pipeline import Wait
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.sequence import MAX_TOKENS_AHEAD, CachedSequence
from pellucid.sample.chain import Draw, Sampler
from pellucid.sample.options import Options
from pellucid.sample.trace import TokenTrace, of_draw
from pellucid.tokenize import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_FORCED_TOKENS = MAX_TOKENS_AHEAD
"""Maximum number of forced tokens (tokens without an alternative) in the same step as the sampled token."""


class TokenOutput(Struct, frozen=True, dict=True):
    """One sampled token, with its draw and the text that it completes. ``held`` is text that is held back.

    ``finish_reason`` is None unless the token is the last. Then it is "stop" (an end token, a stop string, or a
    complete constraint; ``stop_reason`` is the token or the string, None for a constraint), "length" (the requested
    number of tokens or the end of the context), "time", or "until" (the request's ``until`` function).
    ``model_seconds`` is the duration of the steps that computed its logits: all steps of the prompt for the first
    token, 0 for a token after the first of the same step. ``pages`` is the sequence's number of pages in the cache, if
    the request has ``watch`` (else 0).
    """

    id: int
    text: str
    draw: Draw
    model_seconds: float
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    held: str = ""
    pages: int = 0

    @cached_property
    def trace(self) -> TokenTrace:
        """Trace of the sampler's chain for this token, if the request has ``watch``."""
        return of_draw(self.draw)


class TextSequence(CachedSequence):
    """One continuation of a prompt: its tokens in the cache, sampler, detokenizer and stop criteria.

    A token in ``ends`` ends the sequence; ``limit`` is its maximum number of tokens. Its text continues the text of the
    tokens ``begun``. While it ``waits`` for another thread, it has no tokens for a step. ``GenerationTask`` sets
    ``tokens`` and ``table`` after the prefill.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: Options,
        sampler: Sampler,
        ends: frozenset[int],
        limit: int,
        *,
        speculates: bool = False,
        draft: DraftModel | None = None,
        begun: Sequence[int] = (),
    ) -> None:
        super().__init__([])
        self.sampler, self.done, self.stopped, self.waits = sampler, False, False, False
        self._gain, self._lookup = Gain(), PromptLookup() if speculates else None
        self._drafted = DraftText(draft) if draft else None
        self._draft_gain = DraftGain(draft) if draft else None
        self._asked = 0  # tokens that the draft model computed for the last step
        self._place = self._start = self._rows = self._proposed = 0
        self._watch, self._limit = options.watch, limit
        self._end_ids, self._stop = ends, options.stop_criteria()
        self._detokenizer = tokenizer.stream(skip=options.skipped(tokenizer))
        for token in begun:
            self._stop.push(self._detokenizer.push(token), last=False)

    @property
    def rests(self) -> bool:
        """True if the sequence has no tokens for the next step: it has ended, or it waits."""
        return self.done or self.stopped or self.waits

    def sample(self, logits: NDArray[np.float32], seconds: float) -> Iterator[TokenOutput | Wait]:
        """Sample a token from logits (V,) and detokenize it. Yields waits, then the token output.

        A sequence that is stopped during a wait yields no token output.
        """
        if job := self.sampler.preparing:
            yield from self._wait(job)
        if self.stopped:
            return
        draw = self.sampler.sample(logits, watch=self._watch)  # softmax → sample
        token, self._limit = draw.token, self._limit - 1
        self._token, self._place = token, self._place + 1
        if job := self.sampler.advancing:
            yield from self._wait(job)
        if not self.stopped:
            yield self._output(draw, seconds)

    def _wait(self, job: Future[None]) -> Iterator[Wait]:
        self.waits = True
        yield Wait(job)
        self.waits = False

    def _output(self, draw: Draw, seconds: float) -> TokenOutput:
        """Detokenize a token, check the stop criteria, and return the token output."""
        token = draw.token
        if token in self._end_ids:
            self.done = True
            self._tell_gain()
            return TokenOutput(token, self._flush(), draw, seconds, "stop", token, pages=self._pages)
        certain = self._detokenizer.push(token)  # detokenize → text
        text, reason = self._stop.push(certain, last=self._limit == 0)
        if self.sampler.complete and reason != "stop":
            text, reason = text + self._flush(), "stop"
        self.done = reason is not None
        if self.done:
            self._tell_gain()
        return TokenOutput(token, text, draw, seconds, reason, self._stop.found, self._stop.held, self._pages)

    @property
    def _pages(self) -> int:
        """Number of pages of the sequence if the request has ``watch``, else 0."""
        return sum(blocks.end - blocks.first for blocks in self.table.blocks) if self._watch else 0

    def _tell_gain(self) -> None:
        """Count the draft tokens of the last step and the accepted tokens among them: one per row after the first."""
        if self.done:
            self._lookup = None  # frees its index of the text
            self.end()
        kept = self._place - self._start - 1
        if self._asked and self._draft_gain:
            self._draft_gain.tell(self._asked, self._proposed, kept)
            self._asked = 0
        elif self._proposed:
            self._gain.tell(self._proposed, kept)
        self._proposed = 0

    @property
    def speculation(self) -> tuple[int, int]:
        """Number of draft tokens, and number of accepted draft tokens."""
        lookup, draft = self._gain, self._draft_gain
        if draft is None:
            return lookup.proposed, lookup.accepted
        return lookup.proposed + draft.proposed, lookup.accepted + draft.accepted

    def end(self) -> None:
        """Free the draft model's pages and the sampler's state after the end of the text."""
        if self._drafted:
            self._drafted.close()
            self._drafted = None
        self.sampler.end()

    def _flush(self) -> str:
        """Return the text that the detokenizer and the stop criteria held back."""
        return self._stop.flush(self._detokenizer.flush())

    def begin(self, prompt: Sequence[int], table: BlockTable) -> None:
        """Start after the prefill: ``table`` holds the prompt, and the next token follows it."""
        self.tokens, self.table, self._place = list(prompt), table, len(prompt) - 1

    @property
    def read_wrong(self) -> int | None:
        """Length of the text before the sampled token, if the step read another token at its position; else None."""
        here = self._place
        return here if here < len(self.tokens) and self.tokens[here] != self._token else None

    @property
    def sampled_all(self) -> bool:
        """True if the sampled token follows all known tokens, in the cache or not."""
        return self._place == len(self.tokens)

    def extend(self, pace: Pace) -> None:
        """Add the sampled token, then forced or draft tokens. The next step reads all of them."""
        self._tell_gain()
        del self.tokens[self._place :]
        self.tokens.append(self._token)
        self.first_output = self._start = self._place
        ahead = self.sampler.forced[: min(MAX_FORCED_TOKENS, self._limit - 1)]
        if not ahead and (self._lookup or self._drafted):
            ahead = self._propose(pace)
            self._proposed = len(ahead)
        self.tokens += ahead
        self._rows = 1 + len(ahead)

    def _propose(self, pace: Pace) -> list[int]:
        """Return draft tokens: from prompt lookup if it finds any, else from the draft model."""
        costs, found = pace.costs(self._rows, min(MOST, self._limit - 1)), list[int]()
        if self._lookup and (most := self._gain.length(costs)):
            found = self._lookup.propose(self.tokens, most)
        if found or not self._drafted or not self._draft_gain:
            return found
        if most := self._draft_gain.most(costs, max(pace.rows - self._rows, 0)):
            proposed = self._drafted.propose(self.tokens, most, self._draft_gain.least(costs), costs[0])
            if proposed is not None:
                found, self._asked = proposed, self._drafted.asked
        return found
