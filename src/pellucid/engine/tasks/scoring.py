"""Scoring by teacher forcing: the logits for each token of a given text, from the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import Engine
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.probe import RequestTracer, blame_edits, raise_of
from pellucid.engine.source import SourceSequence, with_source
from pellucid.engine.task import ChunkOutput
from pellucid.errors import KernelError
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token


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
        read, probe, wanted = ids[:-1], None, first - 1
        if watching is not None:
            wanted = wanted if watching.first_output is None else min(wanted, watching.first_output)
            (probe,) = watching.begin(read, first_output=wanted, source=source.probe if source else None)
            probe.tokens = lambda: read
            watching.keep(probe)
        self._first, self.probe = first, probe
        self._cache, self._text = cache, CachedSequence(read, wanted, probe=probe, source=source)
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
        raise_of(sequence.probe)
        self.done = not sequence.unread_tokens
        for position, logits in enumerate(outputs, sequence.table.length - len(outputs) + 1):
            if position >= self._first:  # earlier logits are only recorded by the probe
                yield position, logits

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        self._cache.release(self._text.table, tokens=self._text.shared_tokens)


def teacher_forced_logits(
    engine: Engine, ids: list[int], first: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position and the logits (V,) of each token of a text from position ``first`` on."""
    return engine.run(ScoringTask(engine.cache, ids, first))


def token_logprobs(
    logits: NDArray[np.float32], place: int, token: int, alternatives: int, vocabulary: int
) -> TokenLogprobs:
    """The log-probability of a token of a text, from the logits (V,) of its position ``place``."""
    return of_token(Candidates.of(logits, f"prompt token {place}"), token, alternatives, vocabulary)


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
        blame_edits(task.probe, error)
        raise
    return joined(rows, alternatives)
