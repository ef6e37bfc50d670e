"""The task that generates text: it prefills a prompt, which several sequences continue in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.output import TokenOutput
from pellucid.engine.recorder import EngineRecorder, blame_edits, raise_of
from pellucid.engine.source import SourceSequence
from pellucid.engine.state import StepTimes
from pellucid.engine.task import ChunkOutput, Wait
from pellucid.engine.text_sequence import TextSequence
from pellucid.errors import KernelError
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, token_logprobs


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
