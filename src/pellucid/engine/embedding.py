"""Sentence vectors from an encoder: each text runs in one step, several texts share a step if they fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


class EmbeddingTask:
    """A task that embeds texts that fit into one step together. Yields the vector (D,) of each, in order."""

    def __init__(self, runner: ModelRunner, texts: list[list[int]]) -> None:
        self._runner, self._texts = runner, texts
        self._tables = [BlockTable() for _ in texts]
        self.done = False

    def pending(self) -> list[Chunk]:
        """All tokens of all texts."""
        return [Chunk(table, ids, outputs=0) for table, ids in zip(self._tables, self._texts)]

    def take(self, outputs: list[pipeline.ChunkOutput], seconds: float) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors."""
        self.done = True
        yield from (vector for (vector,) in outputs)

    def close(self) -> None:
        """Free the pages."""
        for table in self._tables:
            self._runner.truncate(table, 0)


def batches(runner: ModelRunner, encoded: list[list[int]]) -> Iterator[list[int]]:
    """Yield the indices of texts that fit into one step together, batch by batch."""
    batch: list[int] = []
    limits = runner.limits
    for index, ids in enumerate(encoded):
        lengths = [*(len(encoded[i]) for i in batch), len(ids)]
        full = sum(lengths) > limits.tokens or not runner.cache.fits(lengths)
        if batch and (full or len(batch) == limits.sequences):
            yield batch
            batch = []
        batch.append(index)
    yield batch
