"""Scoring by teacher forcing: the logits of each token of a given text, given the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner, StepLimits
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import Logprobs, TokenLogprobs, joined, of_token


class ScoringTask:
    """A task that yields the position and the logits (V,) of each token of a text from position ``first`` on.

    ``first`` is at least 1. The block table may hold tokens before ``first - 1``; at the end it holds all but the last.
    """

    def __init__(self, table: BlockTable, ids: list[int], first: int, limits: StepLimits) -> None:
        self._table, self._ids, self._first = table, ids, first
        self._limits, self._scored_at_once = limits, min(limits.outputs, limits.tokens)

    @property
    def done(self) -> bool:
        """Whether every token has been scored."""
        return self._table.length >= len(self._ids) - 1

    def pending(self) -> list[Chunk]:
        """The next chunk: tokens before ``first`` without logits, then tokens with the logits of every row."""
        start, before = self._table.length, self._first - 1
        if start < before:
            return [
                Chunk(self._table, self._ids[start : min(start + self._limits.tokens, before)], outputs=0)
            ]
        part = self._ids[start : min(start + self._scored_at_once, len(self._ids) - 1)]
        return [Chunk(self._table, part, outputs=len(part))]

    def take(
        self, outputs: list[pipeline.ChunkOutput], seconds: float = 0.0
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each position and its logits."""
        logits = outputs[0]
        yield from enumerate(logits, self._table.length - len(logits) + 1)


def teacher_forced_logits(
    runner: ModelRunner, table: BlockTable, ids: list[int], first: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position and the logits (V,) of each token of a text from position ``first`` on."""
    return pipeline.run(runner, ScoringTask(table, ids, first, runner.limits))


def token_logprobs(
    logits: NDArray[np.float32], place: int, token: int, alternatives: int, vocabulary: int
) -> TokenLogprobs:
    """The log-probability of a token of a text, from the logits (V,) of its position ``place``."""
    return of_token(Candidates.of(logits, f"prompt token {place}"), token, alternatives, vocabulary)


def score(
    runner: ModelRunner, table: BlockTable, ids: list[int], alternatives: int, vocabulary: int, first: int = 1
) -> Logprobs:
    """The log-probability of each token of a text given the tokens before it, from position ``first`` on.

    Only the first ``vocabulary`` logits of a row stand for tokens.
    """
    rows = [
        token_logprobs(logits, place, ids[place], alternatives, vocabulary)
        for place, logits in teacher_forced_logits(runner, table, ids, first)
    ]
    return joined(rows, alternatives)
