"""Scores of labels: the logits of some tokens at some positions of several prompts, which share their first tokens.

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
    """A task that yields the number of a prompt, a position and the logits (V,) there, in the order of the steps.

    ``positions`` has the wanted positions of each prompt, in order. Watched prompts do not share their first tokens,
    because values of all their positions are recorded.
    """

    def __init__(
        self,
        cache: CacheManager,
        prompts: Sequence[list[int]],
        positions: Sequence[Sequence[int]],
        watching: RequestTracer | None = None,
    ) -> None:
        self._cache, self._prompts, self._positions = cache, prompts, positions
        self._prefix: SharedPrefix | None = None
        self._unfinished = dict[CachedSequence, int]()
        shared = 0
        if watching is None and len(prompts) > 1:
            shared = common_length(prompts, min(own[0] for own in positions))
        if shared:
            self._prefix = SharedPrefix(prompts[0][:shared])
        else:
            for number, ids in enumerate(prompts):
                self._unfinished[_watched(ids, positions[number][0], watching)] = number

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
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield the logits at wanted positions, and release the pages of a prompt that has ended."""
        raise_of(sequence.probe)
        if self._prefix is not None:
            if not sequence.unread_tokens:
                self._continue(sequence)
            return
        number = self._unfinished[sequence]
        for position, logits in enumerate(outputs, sequence.table.length - len(outputs)):
            if position in self._positions[number]:
                _check(logits, f"prompt {number}, position {position}", sequence)
                yield number, position, logits
        if not sequence.unread_tokens:
            del self._unfinished[sequence]
            self._cache.release(sequence.table, tokens=sequence.shared_tokens)

    def _continue(self, prefix: CachedSequence) -> None:
        """Continue all prompts after their common tokens."""
        self._prefix = None
        for number, ids in enumerate(self._prompts):
            table = self._cache.fork(prefix.table) if number else prefix.table
            self._unfinished[CachedSequence(ids, self._positions[number][0], table=table)] = number

    def close(self) -> None:
        """Release the pages to the prefix cache."""
        for one in self.sequences():
            self._cache.release(one.table, tokens=one.shared_tokens)


def _watched(ids: list[int], first: int, watching: RequestTracer | None) -> CachedSequence:
    if watching is None:
        return CachedSequence(ids, first)
    wanted = first if watching.first_output is None else min(first, watching.first_output)
    (probe,) = watching.begin(len(ids), first_output=wanted)
    probe.tokens = partial(list, ids)
    watching.keep(probe)
    return CachedSequence(ids, wanted, probe=probe)


def _check(logits: NDArray[np.float32], where: str, sequence: CachedSequence) -> None:
    """Raise KernelError for logits that give no distribution, or InvalidRequest if edits are the cause."""
    try:
        Candidates.of(logits, where)
    except KernelError as error:
        blame_edits(sequence.probe, error)
        raise


def common_length(prompts: Sequence[Sequence[int]], most: int) -> int:
    """Number of first tokens that all prompts have in common, at most ``most``."""
    first = prompts[0]
    return next((at for at in range(most) if any(one[at] != first[at] for one in prompts)), most)


LabelTokens = Sequence[Sequence[int]]
"""The tokens of each label of a reading. A label has one token or more; the likeliest counts."""


def label_scores(
    engine: Engine,
    prompts: Sequence[list[int]],
    readings: Sequence[Sequence[tuple[int, LabelTokens]]],
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
) -> list[list[NDArray[np.float32]]]:
    """The scores (n,) float32 of the n labels of each reading of each prompt.

    ``readings`` are positions in order, with the tokens of their labels. The score of a label is the largest logit of
    its tokens after the position.
    """
    positions = [[position for position, _ in own] for own in readings]
    rows = [dict[int, NDArray[np.float32]]() for _ in prompts]
    task = LabelScoresTask(engine.cache, prompts, positions, watching)
    wanted = [dict(own) for own in readings]
    for number, position, logits in engine.run(task, scheduling):
        best = [logits[list(tokens)].max() for tokens in wanted[number][position]]
        rows[number][position] = np.array(best, np.float32)
    return [[rows[number][position] for position in own] for number, own in enumerate(positions)]
