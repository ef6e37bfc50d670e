"""Scores of labels: the logits of some tokens after each of several prompts, which share their first tokens.

The first tokens that all prompts have in common run once. Then all prompts continue in the same steps, each in a fork
of the common block table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import Engine
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.probe import RequestTracer, blame_edits, raise_of
from pellucid.engine.task import ChunkOutput
from pellucid.errors import KernelError
from pellucid.runtime.cached_sequence import CachedSequence
from pellucid.sample.candidates import Candidates


class SharedPrefix(CachedSequence):
    """The first tokens of several prompts. It needs no outputs, and its last token is always computed."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens, len(tokens))

    @property
    def cacheable_tokens(self) -> int:
        """Number of leading tokens that may come from the prefix cache: not the last, so that a step runs."""
        return len(self.tokens) - 1


class LabelScoresTask:
    """A task that yields the number and the logits (V,) of each prompt, in the order of the steps.

    Watched prompts do not share their first tokens, because values of all their positions are recorded.
    """

    def __init__(
        self, cache: CacheManager, prompts: Sequence[list[int]], watching: RequestTracer | None = None
    ) -> None:
        self._cache, self._prompts = cache, prompts
        self._prefix: SharedPrefix | None = None
        self._unfinished = dict[CachedSequence, int]()
        shared = 0 if watching is not None or len(prompts) < 2 else common_length(prompts)
        if shared:
            self._prefix = SharedPrefix(prompts[0][:shared])
        else:
            for number, ids in enumerate(prompts):
                self._unfinished[_watched(ids, watching)] = number

    @property
    def done(self) -> bool:
        """True if every prompt has its logits."""
        return self._prefix is None and not self._unfinished

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """The common tokens, then the prompts without logits."""
        return self.sequences()

    def sequences(self) -> Sequence[CachedSequence]:
        """As ``runnable``."""
        return list(self._unfinished) if self._prefix is None else [self._prefix]

    def process(
        self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield a prompt's number and logits, and release its pages."""
        raise_of(sequence.probe)
        if sequence.unread_tokens:
            return
        if self._prefix is not None:
            table, self._prefix = sequence.table, None
            for number, ids in enumerate(self._prompts):
                own = self._cache.fork(table) if number else table
                self._unfinished[CachedSequence(ids, table=own)] = number
            return
        number = self._unfinished.pop(sequence)
        self._cache.release(sequence.table, tokens=sequence.shared_tokens)
        try:
            Candidates.of(outputs[-1], f"prompt {number}")  # refuses logits that give no distribution
        except KernelError as error:
            blame_edits(sequence.probe, error)
            raise
        yield number, outputs[-1]

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        for one in self.sequences():
            self._cache.release(one.table, tokens=one.shared_tokens)


def _watched(ids: list[int], watching: RequestTracer | None) -> CachedSequence:
    if watching is None:
        return CachedSequence(ids)
    last = len(ids) - 1
    wanted = last if watching.first_output is None else min(last, watching.first_output)
    (probe,) = watching.begin(len(ids), first_output=wanted)
    probe.tokens = partial(list, ids)
    watching.keep(probe)
    return CachedSequence(ids, wanted, probe=probe)


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """Number of first tokens that all prompts have in common. At least one token of each prompt remains."""
    most = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((at for at in range(most) if any(one[at] != first[at] for one in prompts)), most)


def label_scores(
    engine: Engine,
    prompts: Sequence[list[int]],
    labels: Sequence[Sequence[Sequence[int]]],
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
) -> list[NDArray[np.float32]]:
    """The scores (n,) float32 of the n labels of each prompt.

    A label has one token or more; its score is the largest of their logits after the prompt.
    """
    scores: list[NDArray[np.float32]] = [np.empty(len(one), np.float32) for one in labels]
    for number, logits in engine.run(LabelScoresTask(engine.cache, prompts, watching), scheduling):
        for at, tokens in enumerate(labels[number]):
            scores[number][at] = logits[list(tokens)].max()
    return scores
