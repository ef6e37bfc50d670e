"""A plan that is cut between blocks gives the same bits as the whole plan, for the tiny models of every family."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from support.tiny import DECODERS, TINY, model_runner

from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest
from pellucid.plan.pipeline_stages import cut
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

STEPS = ((21, 3), (1, 1), (1, 1), (30, 1), (1, 1))
"""Number of tokens and number of output rows of each step."""
UNCUT = ("gemma4",)
"""Models that cannot be cut, because later blocks use the keys and values of earlier blocks."""


@pytest.mark.parametrize("activation_bits", [8, 24])
@pytest.mark.parametrize("name", sorted(DECODERS))
def test_stages_make_the_bits_of_the_whole(name: str, activation_bits: int) -> None:
    with model_runner(TINY[name], threads=2, activation_bits=activation_bits) as whole:
        most = len(whole.spec.blocks)
        if name in UNCUT:
            with pytest.raises(InvalidRequest, match="1 to 1 stages"):
                cut(whole.plan, 2)
            return
        stages = cut(whole.plan, min(most, 2))
        assert sum(len(stage.blocks) for stage in stages) == most
        assert [stage.receives for stage in stages[1:]] == [stage.sends for stage in stages[:-1]]
        with ExitStack() as stack:
            made = (
                model_runner(TINY[name], threads=1 + number, activation_bits=activation_bits, stage=stage)
                for number, stage in enumerate(stages)
            )
            _compare(whole, [stack.enter_context(one) for one in made])


def _compare(whole: ModelRunner, runners: list[ModelRunner]) -> None:
    table, tables = BlockTable(), [BlockTable() for _ in runners]
    rng = np.random.default_rng(1)
    for tokens, wanted in STEPS:
        ids = rng.integers(0, whole.spec.embedding.vocabulary, tokens).tolist()
        rows: list[np.ndarray] = []
        for runner, own in zip(runners, tables):
            received, rows = rows, []
            chunk = Chunk(own, ids, wanted)
            logits = runner.forward_stage([chunk], received, partial(_copied, rows))
        assert np.array_equal(logits, whole.forward([Chunk(table, ids, wanted)]))


def _copied(to: list[np.ndarray], vectors: list[np.ndarray]) -> None:
    to.extend(one.copy() for one in vectors)
