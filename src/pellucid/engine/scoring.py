"""Teacher forcing: what a model says of each token of a text that is there already."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pellucid.engine.model_runner import ModelRunner
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.sample.candidates import Candidates
from pellucid.sample.logprobs import Logprobs, joined, of_token


def teacher_forced_logits(
    runner: ModelRunner, sequence: BlockTable, ids: list[int], first: int = 1
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """For each place of a text from ``first`` on, the place and the logits (V,) of the token there.

    The sequence is empty, and holds the text but for its last token in the end.
    """
    before, most = first - 1, min(runner.limits.outputs, runner.limits.tokens)
    if before:
        runner.read(sequence, ids[:before])
    for start in range(before, len(ids) - 1, most):
        part = ids[start : min(start + most, len(ids) - 1)]
        logits = runner.forward([Chunk(sequence, part, outputs=len(part))])
        yield from enumerate(logits, start + 1)


def score(
    runner: ModelRunner,
    sequence: BlockTable,
    ids: list[int],
    alternatives: int,
    vocabulary: int,
    first: int = 1,
) -> Logprobs:
    """How likely each token of a text is after those before it, from place ``first`` on.

    The first ``vocabulary`` rows of logits are of tokens.
    """
    rows = [
        of_token(Candidates.of(row, f"prompt token {place}"), ids[place], alternatives, vocabulary)
        for place, row in teacher_forced_logits(runner, sequence, ids, first)
    ]
    return joined(rows, alternatives)
