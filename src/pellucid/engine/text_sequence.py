"""A sequence is one text during generation. It turns logits into tokens and text, and checks the stop criteria."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.output import TokenOutput
from pellucid.engine.recorder import ProbeScores, scores_at
from pellucid.engine.speculation import MAX_DRAFT_TOKENS, DraftGain, DraftModel, DraftSequence, LookupGain, PromptLookup
from pellucid.engine.state import StepTimes
from pellucid.engine.task import Wait
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cached_sequence import MAX_TOKENS_AHEAD, CachedSequence
from pellucid.sample.chain import Draw, Sampler, of_draw
from pellucid.sample.logprobs import TokenLogprobs, of_token
from pellucid.sample.options import Options
from pellucid.tokenize import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_FORCED_TOKENS = MAX_TOKENS_AHEAD
"""Maximum number of forced tokens (tokens without an alternative) in the same step as the sampled token."""


class TextSequence(CachedSequence):
    """One continuation of a prompt: its tokens in the cache, sampler, detokenizer and stop criteria.

    ``number`` is the number of the sequence in its request. A token in ``ends`` ends the sequence. ``limit`` is its
    maximum number of tokens. Its text continues the text of the tokens ``resumed``. While it ``waits`` for another
    thread, it has no tokens for a step. ``GenerationTask`` sets ``tokens`` and ``table`` after the prefill.
    ``expected`` are tokens that the text probably has: they are proposed as draft tokens.
    """

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        options: Options,
        sampler: Sampler,
        ends: frozenset[int],
        limit: int,
        *,
        speculates: bool = False,
        draft: DraftModel | None = None,
        resumed: Sequence[int] = (),
        expected: Sequence[int] = (),
    ) -> None:
        super().__init__([])
        self.number = number
        self.sampler, self.done, self.stopped, self.waits = sampler, False, False, False
        self._gain, self._lookup = LookupGain(), PromptLookup() if speculates else None
        self._draft_sequence = DraftSequence(draft) if draft else None
        self._draft_gain = DraftGain(draft) if draft else None
        self._computed_drafts = 0  # tokens that the draft model computed for the last step
        self._expected = list(expected)[::-1] if speculates else []  # the next token is the last in the list
        self._token = -1  # the last sampled token
        self._position = 0  # position of the last sampled token
        self._start = 0  # position of the first token of the last step
        self._rows = 0  # rows of the last step
        self._proposed = 0  # draft tokens among these rows
        self._options, self._limit, self._end_ids = options, limit, ends
        self._stop = options.stop_criteria()
        self._detokenizer = tokenizer.stream(skip=options.skipped(tokenizer))
        for token in resumed:
            self._stop.push(self._detokenizer.push(token), last=False)

    def start_clock(self) -> None:
        """Start the time limit, at the request's first step."""
        self._stop.start()

    @property
    def is_idle(self) -> bool:
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
        scores = scores_at(self.recorder, self._position)
        draw = self.sampler.sample(logits, watch=self._options.watch)  # softmax → sample
        token, self._limit = draw.token, self._limit - 1
        if self._expected and self._expected.pop() != token:
            self._expected = []
        self._token, self._position = token, self._position + 1
        if job := self.sampler.advancing:
            yield from self._wait(job)
        if not self.stopped:
            digest = hashlib.sha256(logits.data).digest() if self._options.receipt else None
            yield self._output(draw, seconds, digest, scores)

    def _wait(self, job: Future[None]) -> Iterator[Wait]:
        self.waits = True
        yield Wait(job)
        self.waits = False

    def _output(self, draw: Draw, seconds: float, digest: bytes | None, scores: ProbeScores | None) -> TokenOutput:
        """Detokenize a token, check the stop criteria, and return the token output."""
        token, held = draw.token, ""
        reason: str | None
        stop_reason: int | str | None
        if scores and scores[1] is not None:
            text, reason, stop_reason = self._flush(), "probe", scores[1]
        elif token in self._end_ids:
            text, reason, stop_reason = self._flush(), "stop", token
        else:
            certain = self._detokenizer.push(token)  # detokenize → text
            text, reason = self._stop.push(certain, last=self._limit == 0)
            if self.sampler.complete and reason != "stop":
                text, reason = text + self._flush(), "stop"
            stop_reason, held = self._stop.strings.found, self._stop.strings.held
        self.done = reason is not None
        if self.done:
            self._record_acceptance()
        return TokenOutput(
            token,
            text,
            seconds,
            reason,
            stop_reason,
            held,
            self._pages,
            draw.probability,
            self._logprobs(draw),
            of_draw(draw) if self._options.watch else None,
            draw,
            self.number,
            digest,
            scores[0] if scores else None,
        )

    def _logprobs(self, draw: Draw) -> TokenLogprobs | None:
        """The log-probabilities of a token; None if the request has no ``logprobs``."""
        options = self._options
        if options.logprobs is None:
            return None
        candidates = draw.candidates if options.logprobs_of == "chain" else draw.logits
        row = of_token(candidates, draw.token, options.logprobs, draw.vocabulary)
        if options.logprobs_of != "both":
            return row
        return replace(row, final=draw.final_log_probabilities(row.top_ids))

    @property
    def certain_tokens(self) -> int:
        return self._position + 1

    @property
    def _pages(self) -> int:
        """Number of pages of the sequence if the request has ``watch``, else 0."""
        return sum(blocks.end - blocks.first for blocks in self.table.blocks) if self._options.watch else 0

    def _record_acceptance(self) -> None:
        """Record the last step's numbers of draft tokens and accepted draft tokens. Ends a sequence that is done."""
        if self.done:
            self._lookup = None  # frees its index of the text
            self.end()
        kept = self._position - self._start - 1
        if self._computed_drafts and self._draft_gain:
            self._draft_gain.record(self._computed_drafts, self._proposed, kept)
            self._computed_drafts = 0
        elif self._proposed:
            self._gain.record(self._proposed, kept)
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
        if self._draft_sequence:
            self._draft_sequence.close()
            self._draft_sequence = None
        self.sampler.end()

    def _flush(self) -> str:
        """Return the text that the detokenizer and the stop criteria held back."""
        return self._stop.flush(self._detokenizer.flush())

    def follow(self, prompt: CachedSequence, table: BlockTable) -> None:
        """Continue a prompt after its prefill: ``table`` holds the prompt."""
        self.tokens, self.table, self.source = list(prompt.tokens), table, prompt.source
        self._position = len(prompt.tokens) - 1

    @property
    def mismatch(self) -> int | None:
        """The sampled token's position if the step ran another token, such as a draft token, there; else None."""
        here = self._position
        return here if here < len(self.tokens) and self.tokens[here] != self._token else None

    @property
    def sampled_all(self) -> bool:
        """True if the sampled token comes after all ``tokens``, including tokens that are not computed yet."""
        return self._position == len(self.tokens)

    def extend(self, step_times: StepTimes) -> None:
        """Add the sampled token, then forced or draft tokens. The next step computes all these tokens."""
        self._record_acceptance()
        del self.tokens[self._position :]
        self.tokens.append(self._token)
        self.first_output = self._start = self._position
        ahead = self.sampler.forced[: min(MAX_FORCED_TOKENS, self._limit - 1)]
        if not ahead and (self._lookup or self._draft_sequence):
            ahead = self._propose(step_times)
            self._proposed = len(ahead)
        self.tokens += ahead
        self._rows = 1 + len(ahead)

    def _propose(self, step_times: StepTimes) -> list[int]:
        """Return draft tokens: from prompt lookup if it finds any, else from the draft model."""
        if self._expected:
            return self._expected[: -1 - min(MAX_DRAFT_TOKENS, self._limit - 1) : -1]
        costs, found = step_times.costs(self._rows, min(MAX_DRAFT_TOKENS, self._limit - 1)), list[int]()
        if self._lookup and (most := self._gain.length(costs)):
            found = self._lookup.propose(self.tokens, most)
        if found or not self._draft_sequence or not self._draft_gain:
            return found
        if most := self._draft_gain.most(costs, max(step_times.rows - self._rows, 0)):
            proposed = self._draft_sequence.propose(self.tokens, most, self._draft_gain.least(costs), costs[0])
            if proposed is not None:
                found, self._computed_drafts = proposed, self._draft_sequence.computed
        return found
