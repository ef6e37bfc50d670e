"""Scoring by teacher forcing: the logits of each token of a given text, after the tokens before it."""

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


class ScoredSequence:
    """A text that goes through the model for the logits of its tokens from place ``first`` on, at least 1.

    Gives each place and the logits (V,) of the token there. The table is empty at first, and holds all tokens but the
    last in the end.
    """

    def __init__(self, table: BlockTable, ids: list[int], first: int, limits: StepLimits) -> None:
        self._table, self._ids, self._first = table, ids, first
        self._limits, self._scored_at_once = limits, min(limits.outputs, limits.tokens)

    @property
    def done(self) -> bool:
        """Whether every token has been scored."""
        return self._table.length >= len(self._ids) - 1

    def pending(self) -> list[Chunk]:
        """The next tokens: those before the first place without logits, the others with all of theirs."""
        start, before = self._table.length, self._first - 1
        if start < before:
            return [
                Chunk(self._table, self._ids[start : min(start + self._limits.tokens, before)], outputs=0)
            ]
        part = self._ids[start : min(start + self._scored_at_once, len(self._ids) - 1)]
        return [Chunk(self._table, part, outputs=len(part))]

    def take(
        self, rows: list[pipeline.Rows], seconds: float = 0.0
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each place with its logits."""
        logits = rows[0]
        yield from enumerate(logits, self._table.length - len(logits) + 1)


def teacher_forced_logits(
    runner: ModelRunner, table: BlockTable, ids: list[int], first: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """For each place of a text from ``first`` on, the place and the logits (V,) of the token there."""
    return pipeline.run(runner, ScoredSequence(table, ids, first, runner.limits))


def token_logprobs(
    logits: NDArray[np.float32], place: int, token: int, alternatives: int, vocabulary: int
) -> TokenLogprobs:
    """The log-probability of a token of a text, from the logits (V,) of its place."""
    return of_token(Candidates.of(logits, f"prompt token {place}"), token, alternatives, vocabulary)


def score(
    runner: ModelRunner, table: BlockTable, ids: list[int], alternatives: int, vocabulary: int, first: int = 1
) -> Logprobs:
    """How likely each token of a text is after those before it, from place ``first`` on.

    The first ``vocabulary`` rows of logits are of tokens.
    """
    rows = [
        token_logprobs(logits, place, ids[place], alternatives, vocabulary)
        for place, logits in teacher_forced_logits(runner, table, ids, first)
    ]
    return joined(rows, alternatives)
