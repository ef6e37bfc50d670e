"""Text generation: a task prefills a prompt, which several sequences continue in the same steps.

A `TextSequence` is one text. It turns logits into tokens and text, and checks the stop criteria.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.output import TokenOutput
from pellucid.engine.recorder import EngineRecorder, ProbeScores, blame_edits, raise_of, scores_at
from pellucid.engine.source import SourceSequence
from pellucid.engine.speculation import MAX_DRAFT_TOKENS, DraftGain, DraftModel, DraftSequence, LookupGain, PromptLookup
from pellucid.engine.step_times import StepTimes
from pellucid.engine.task import ChunkOutput, Wait
from pellucid.errors import KernelError
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cached_sequence import MAX_TOKENS_AHEAD, CachedSequence
from pellucid.sample.chain import Draw, Sampler, of_draw
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token, token_logprobs
from pellucid.sample.options import Options
from pellucid.tokenize import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_FORCED_TOKENS = MAX_TOKENS_AHEAD
"""Maximum number of forced tokens (tokens without an alternative) in the same step as the sampled token."""


class PromptSequence(CachedSequence):
    """A prompt during its prefill.

    ``alternatives`` is the number of alternatives that are reported with the log-probability of each token (None: no
    log-probabilities). Log-probabilities need the logits of all rows, so the prefill then computes all tokens and does
    not use the prefix cache. Only the first ``vocabulary`` logits of a row belong to tokens. ``seconds`` is the
    duration of the prefill's steps. Logits are recorded from position ``first_output`` on. In an encoder-decoder, the
    prompt is the first token of the decoder, and the sequences attend to the ``source``.
    """

    def __init__(
        self,
        ids: list[int],
        first_output: int,
        alternatives: int | None,
        vocabulary: int,
        source: SourceSequence | None = None,
    ) -> None:
        super().__init__(ids, first_output, source=source)
        self.seconds = 0.0
        self._alternatives, self._vocabulary = alternatives, vocabulary
        self._logprobs = list[TokenLogprobs]()

    def process(self, outputs: ChunkOutput, seconds: float) -> ChunkOutput | None:
        """Collect log-probabilities. Returns the logits (1, V) after the prompt; None until the prefill is complete."""
        self.seconds += seconds
        if self._alternatives is not None:
            for place, row in enumerate(outputs, self.table.length - len(outputs) + 1):
                if place < len(self.tokens):
                    token = self.tokens[place]
                    self._logprobs.append(token_logprobs(row, place, token, self._alternatives, self._vocabulary))
        return None if self.unread_tokens else outputs[-1:]

    @property
    def logprobs(self) -> Logprobs | None:
        """Log-probabilities of all tokens except the first; None if they were not requested."""
        return None if self._alternatives is None else joined(self._logprobs, self._alternatives)


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


class GenerationTask:
    """A task that prefills a prompt, then continues it with several sequences. Yields token outputs.

    The first of the sequences ``texts`` continues in the prompt's own block table, the others in forks of it.
    ``on_begin`` is called before the first step. ``queue`` is the time in seconds from the submission to this step.
    ``recorders`` watch the sequences; the first recorder also watches the prompt.
    """

    def __init__(
        self,
        cache: CacheManager,
        step_times: StepTimes,
        prompt: PromptSequence,
        texts: Sequence[TextSequence],
        recorders: Sequence[EngineRecorder] = (),
    ) -> None:
        self.prompt, self.queue = prompt, 0.0
        self.on_begin: Callable[[], object] | None = None
        self._cache, self._step_times, self._texts, self._recorders = cache, step_times, texts, recorders
        self._prefilled = False

    @property
    def done(self) -> bool:
        """True if every sequence has ended."""
        return all(one.done or one.stopped for one in self._texts)

    def begin(self, waited: float) -> None:
        """Start the time limits."""
        self.queue = waited
        if self.on_begin:
            self.on_begin()
        for text in self._texts:
            text.start_clock()

    def runnable(self) -> Sequence[CachedSequence]:
        """The prompt during the prefill, then the sequences that have not ended and do not wait."""
        self._release_stopped()
        return [one for one in self.sequences() if not (isinstance(one, TextSequence) and one.is_idle)]

    def sequences(self) -> Sequence[CachedSequence]:
        """The prompt during the prefill, then all texts."""
        return self._texts if self._prefilled else [self.prompt]

    def process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[TokenOutput | Wait]:
        """Yield token outputs: one per sequence after the prefill, later one per row up to a rejected draft token."""
        raise_of(sequence.recorder)
        try:
            yield from self._process(sequence, outputs, seconds)
        except KernelError as error:
            blame_edits(sequence.recorder, error)
            raise

    def _process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[TokenOutput | Wait]:
        if isinstance(sequence, TextSequence):
            yield from self._advance(sequence, outputs, seconds)
            return
        logits = self.prompt.process(outputs, seconds)
        if logits is None:
            return
        self._prefilled, table = True, self.prompt.table
        for text, recorder in zip(self._texts, self._recorders):
            text.recorder = recorder
            if recorder is not self._recorders[0]:
                recorder.follow(self._recorders[0])
        for text in self._texts:
            text.follow(self.prompt, self._cache.fork(table) if text.number else table)
            text.waits = True  # until the earlier sequences have sampled their tokens
        for text in self._texts:
            yield from self._advance(text, logits, self.prompt.seconds)

    def _advance(self, text: TextSequence, outputs: ChunkOutput, seconds: float) -> Iterator[TokenOutput | Wait]:
        text.waits = False
        for row in outputs:
            yield from text.sample(row, seconds)
            if text.stopped:
                return
            seconds = 0.0
            if text.done:
                self._cache.release(text.table, tokens=text.shared_tokens)
                return
            if (length := text.mismatch) is not None:
                self._cache.truncate(text.table, length)
                text.extend(self._step_times)
                return
        if text.sampled_all:
            text.extend(self._step_times)

    def watch(self, recorders: Sequence[EngineRecorder]) -> None:
        """Watch the sequences from the next step on, unless they are watched already. Called between steps.

        If ``recorders`` is empty, closed recorders are removed.
        """
        if self._recorders and not self._recorders[0].closed:
            return
        self._recorders = recorders
        if not self._prefilled:
            self.prompt.recorder = recorders[0] if recorders else None
            return
        for number, text in enumerate(self._texts):
            text.recorder = recorders[number] if recorders else None

    @property
    def speculation(self) -> list[tuple[int, int]]:
        """Number of draft tokens and number of accepted draft tokens, for each sequence."""
        return [one.speculation for one in self._texts]

    def stop(self, number: int) -> None:
        """End a sequence. May be called from any thread. The engine then frees the sequence's pages."""
        self._texts[number].stopped = True

    def _release_stopped(self) -> None:
        """Release the pages of stopped sequences to the prefix cache."""
        for one in self._texts:
            if one.stopped and one.table.length:
                self._cache.release(one.table, tokens=one.shared_tokens)

    def close(self) -> None:
        """Release the pages of all sequences to the prefix cache."""
        for text in self._texts:
            text.end()
        for one in self.sequences():
            self._cache.release(one.table, tokens=one.shared_tokens)
