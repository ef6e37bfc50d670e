"""Logits at positions of given texts: scoring by teacher forcing, and rows of several prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import Engine
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.recorder import RequestTracer, blame_edits, raise_of
from pellucid.engine.source import SourceSequence, with_source
from pellucid.engine.task import ChunkOutput
from pellucid.errors import KernelError
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import Logprobs, joined, token_logprobs

# Scoring by teacher forcing: the logits for each token of a given text, from the tokens before it.


class ScoringTask:
    """A task that yields the position and the logits (V,) of each token of a text from position ``first`` on.

    ``first`` is at least 1, because the first token has no logits.
    """

    def __init__(
        self,
        cache: CacheManager,
        ids: list[int],
        first: int,
        watching: RequestTracer | None = None,
        source: SourceSequence | None = None,
    ) -> None:
        read, recorder, wanted = ids[:-1], None, first - 1
        if watching is not None:
            wanted = wanted if watching.first_output is None else min(wanted, watching.first_output)
            (recorder,) = watching.begin(read, first_output=wanted, source=source.recorder if source else None)
            recorder.tokens = lambda: read
            watching.keep(recorder)
        self._first, self.recorder = first, recorder
        self._cache, self._text = cache, CachedSequence(read, wanted, recorder=recorder, source=source)
        self.done = not self._text.tokens

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """The text, without its last token."""
        return [] if self.done else [self._text]

    def sequences(self) -> Sequence[CachedSequence]:
        """The text."""
        return [self._text]

    def process(
        self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each position and its logits."""
        raise_of(sequence.recorder)
        self.done = not sequence.unread_tokens
        for position, logits in enumerate(outputs, sequence.table.length - len(outputs) + 1):
            if position >= self._first:  # earlier logits are only recorded by the recorder
                yield position, logits

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        self._cache.release(self._text.table, tokens=self._text.shared_tokens)


def teacher_forced_logits(engine: Engine, ids: list[int], first: int = 1) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position and the logits (V,) of each token of a text from position ``first`` on."""
    return engine.run(ScoringTask(engine.cache, ids, first))


def score(
    engine: Engine,
    ids: list[int],
    alternatives: int,
    vocabulary: int,
    first: int = 1,
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
    source: SourceSequence | None = None,
) -> Logprobs:
    """The log-probability of each token of a text given the tokens before it, from position ``first`` on.

    Only the first ``vocabulary`` logits of a row belong to tokens. In an encoder-decoder, the text is an answer to the
    ``source``.
    """
    task = ScoringTask(engine.cache, ids, first, watching, source)
    try:
        rows = [
            token_logprobs(logits, place, ids[place], alternatives, vocabulary)
            for place, logits in engine.run(with_source(source, task), scheduling)
        ]
    except KernelError as error:
        blame_edits(task.recorder, error)
        raise
    return joined(rows, alternatives)


# Outputs at some positions of several prompts, which share their first tokens: logits, or rows of an output layer.
#
# The first tokens that all prompts have in common run once. Then the prompts continue together, each in a fork of the
# common block table.


class SharedPrefix(CachedSequence):
    """The first tokens of several prompts. It needs no outputs, and its last token is always computed."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens, len(tokens))

    @property
    def cacheable_tokens(self) -> int:
        """Number of leading tokens that may come from the prefix cache: not the last, so that a step runs."""
        return len(self.tokens) - 1


class PromptRowsTask:
    """A task that yields the number of a prompt, a position and the outputs (N,) there, in the order of the steps.

    ``positions`` has the wanted positions of each prompt, in order. Prompts run together as long as they have at most
    ``context`` tokens together. Watched prompts do not share their first tokens, because values of all their positions
    are recorded.
    """

    def __init__(
        self,
        cache: CacheManager,
        prompts: Sequence[list[int]],
        positions: Sequence[Sequence[int]],
        context: int,
        watching: RequestTracer | None = None,
    ) -> None:
        self._cache, self._positions, self._context = cache, positions, context
        self._waiting = deque(_sequence(ids, own[0], watching) for ids, own in zip(prompts, positions, strict=True))
        self._numbers = {sequence: number for number, sequence in enumerate(self._waiting)}
        self._running = list[CachedSequence]()
        self._prefix: SharedPrefix | None = None
        if watching is None and len(prompts) > 1:
            shared = common_length(prompts, min(own[0] for own in positions))
            if max(map(len, prompts)) + PAGE > context:
                shared -= shared % PAGE  # a fork has a page of its own for the last tokens of the prefix
            self._prefix = SharedPrefix(prompts[0][:shared]) if shared else None

    @property
    def done(self) -> bool:
        """True if every prompt has its outputs."""
        return not self._running and not self._waiting

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """The common tokens, then prompts without outputs until a context is full."""
        if self._prefix is not None and self._prefix.unread_tokens and self._waiting:
            return [self._prefix]
        while self._waiting and self._fits(self._waiting[0]):
            self._start(self._waiting.popleft())
        return list(self._running)

    def sequences(self) -> Sequence[CachedSequence]:
        """The common tokens, and the prompts that run."""
        return self._running if self._prefix is None else [self._prefix, *self._running]

    def process(
        self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield the outputs at wanted positions, and release the pages of a prompt that has ended."""
        raise_of(sequence.recorder)
        if sequence is self._prefix:
            return
        number = self._numbers[sequence]
        for position, row in enumerate(outputs, sequence.table.length - len(outputs)):
            if position in self._positions[number]:
                _check(row, f"prompt {number}, position {position}", sequence)
                yield number, position, row
        if not sequence.unread_tokens:
            self._running.remove(sequence)
            self._cache.release(sequence.table, tokens=sequence.shared_tokens)

    def _fits(self, sequence: CachedSequence) -> bool:
        """True if a prompt fits into the context beside the prompts that run. A single prompt always fits."""
        if not self._running:
            return True
        shared = 0 if self._prefix is None else len(self._prefix.tokens)
        pages = sum(-(-(len(one.tokens) - shared) // PAGE) + 1 for one in (*self._running, sequence))
        return shared + pages * PAGE <= self._context

    def _start(self, sequence: CachedSequence) -> None:
        """Begin a prompt after the common tokens. The last prompt gets their pages."""
        if self._prefix is not None and self._waiting:
            sequence.table = self._cache.fork(self._prefix.table)
        elif self._prefix is not None:
            sequence.table, self._prefix = self._prefix.table, None
        self._running.append(sequence)

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        for one in self.sequences():
            self._cache.release(one.table, tokens=one.shared_tokens)


def _sequence(ids: list[int], first: int, watching: RequestTracer | None) -> CachedSequence:
    """A prompt with outputs from the position ``first`` on."""
    if watching is None:
        return CachedSequence(ids, first)
    wanted = first if watching.first_output is None else min(first, watching.first_output)
    (recorder,) = watching.begin(ids, first_output=wanted)
    recorder.tokens = partial(list, ids)
    watching.keep(recorder)
    return CachedSequence(ids, wanted, recorder=recorder)


def _check(row: NDArray[np.float32], where: str, sequence: CachedSequence) -> None:
    """Raise KernelError for outputs that give no distribution, or InvalidRequest if edits are the cause."""
    try:
        Candidates.of(row, where)
    except KernelError as error:
        blame_edits(sequence.recorder, error)
        raise


def common_length(prompts: Sequence[Sequence[int]], most: int) -> int:
    """Number of first tokens that all prompts have in common, at most ``most``."""
    first = prompts[0]
    return next((at for at in range(most) if any(one[at] != first[at] for one in prompts)), most)


def prompt_rows(
    engine: Engine,
    prompts: Sequence[list[int]],
    positions: Sequence[Sequence[int]],
    context: int,
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield the number of a prompt, a position and the outputs (N,) float32 there, in the order of the steps.

    ``positions`` has the wanted positions of each prompt, in order. ``context`` is the maximum number of tokens of a
    prompt.
    """
    task = PromptRowsTask(engine.cache, prompts, positions, context, watching)
    return engine.run(task, scheduling)


def label_scores(logits: NDArray[np.float32], labels: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """The scores (n,) float32 of n labels from the logits (V,) of the next token.

    A label has one token or more; the likeliest counts.
    """
    return np.array([logits[list(tokens)].max() for tokens in labels], np.float32)
