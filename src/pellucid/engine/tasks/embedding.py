"""Sentence vectors from an encoder: each text runs in one step, and several texts share a step if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import Engine
from pellucid.engine.job import DEFAULT_SCHEDULING, SchedulingOptions
from pellucid.engine.probe import RequestTracer, raise_of, refuse_changed
from pellucid.engine.task import ChunkOutput
from pellucid.runtime.batch import STEP_SEQUENCES
from pellucid.runtime.cached_sequence import CachedSequence


class EmbeddingTask:
    """A task that yields the number and the vector (D,) of each text, in the order of the steps."""

    def __init__(
        self, cache: CacheManager, texts: Sequence[list[int]], watching: RequestTracer | None = None
    ) -> None:
        self._cache = cache
        probes = [None if watching is None else watching.begin(len(ids))[0] for ids in texts]
        self._unfinished = dict[CachedSequence, int]()
        for number, (ids, probe) in enumerate(zip(texts, probes)):
            if watching is not None and probe is not None:
                probe.tokens = partial(list, ids)
                watching.keep(probe)
            self._unfinished[CachedSequence(ids, len(ids), in_one_step=True, probe=probe)] = number

    @property
    def done(self) -> bool:
        """True if every text has its vector."""
        return not self._unfinished

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """The next texts without a vector: as many as a step may have, so that planning a step takes constant time."""
        return list(islice(self._unfinished, STEP_SEQUENCES))

    def sequences(self) -> Sequence[CachedSequence]:
        """The texts without a vector."""
        return list(self._unfinished)

    def process(
        self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield a text's number and vector, and free its pages."""
        raise_of(sequence.probe)
        if not np.isfinite(outputs[0]).all():
            refuse_changed(sequence.probe, f"text {self._unfinished[sequence]}: its vector is not finite")
        self._cache.release(sequence.table)
        yield self._unfinished.pop(sequence), outputs[0]

    def close(self) -> None:
        """As in ``Task``."""
        self._cache.release(*(sequence.table for sequence in self._unfinished))


def embed(
    engine: Engine,
    texts: Sequence[list[int]],
    watching: RequestTracer | None = None,
    scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
) -> NDArray[np.float32]:
    """The sentence vectors (B, D) of texts, which are token ids."""
    vectors = np.empty((len(texts), engine.runner.width), np.float32)
    for number, vector in engine.run(EmbeddingTask(engine.cache, texts, watching), scheduling):
        vectors[number] = vector
    return vectors
