"""Sequences of an encoder's step are divided among threads, and have the same outputs as on all threads together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import ENCODERS, opened

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.programs import UNEVEN, DataParallel
from pellucid.errors import InvalidRequest
from pellucid.loading import step_limits
from pellucid.model.read import convert_encoder
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import ALONE_TOKENS, Chunk
from pellucid.runtime.cache import BlockTable

CONTEXT = 64
Pair = tuple[ModelRunner, ModelRunner]


@pytest.fixture(scope="module", params=["bert-classify", "deberta-v2-tag", "mpnet", "nomic_bert-mixture"])
def runners(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The same encoder on one thread and on three."""
    with opened(ENCODERS[request.param]) as (checkpoint, read):
        model = convert_encoder(checkpoint, read)
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
        made = [
            ModelRunner(checkpoint, model, plan, step_limits(model.spec, CONTEXT, threads), threads)
            for threads in (1, 3)
        ]
        yield made[0], made[1]
        for runner in made:
            runner.close()


def chunks_of(runner: ModelRunner, lengths: Sequence[int], seed: int) -> list[Chunk]:
    ids = np.random.default_rng(seed).integers(5, runner.spec.embedding.vocabulary, (len(lengths), CONTEXT))
    each = [1 if runner.spec.output_rows == "sequences" else count for count in lengths]
    return [Chunk(BlockTable(), row[:count].tolist(), n) for row, count, n in zip(ids, lengths, each)]


def outputs(runner: ModelRunner, chunks: Sequence[Chunk]) -> np.ndarray:
    rows = runner.forward(chunks).copy()
    assert [chunk.table.length for chunk in chunks] == [len(chunk.tokens) for chunk in chunks]
    for chunk in chunks:
        runner.cache.release(chunk.table)
    return rows


@settings(max_examples=15)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.integers(0, 99))
def test_outputs_are_the_outputs_of_one_thread(runners: Pair, lengths: list[int], seed: int) -> None:
    alone, three = runners
    want = np.concatenate([outputs(alone, [chunk]) for chunk in chunks_of(alone, lengths, seed)])
    assert outputs(three, chunks_of(three, lengths, seed)).tobytes() == want.tobytes()


def test_threads_get_sequences_of_about_the_same_length_in_all(runners: Pair) -> None:
    runner, none = runners[1], cast(Any, None)
    parallel = DataParallel(runner.plan, runners[0].limits, runner.executor, none, none, none)

    def divided(lengths: Sequence[int]) -> list[list[int]] | None:
        parts = parallel.divide(chunks_of(runners[1], lengths, 0))
        return parts and [[lengths[index] for index in part] for part in parts]

    assert divided([10, 30, 20, 25]) == [[30], [25], [20, 10]]
    assert divided([30, 29, 28]) == [[30], [29], [28]]
    assert divided([30, 10, 10]) is None  # 30 is more than UNEVEN times the mean
    assert divided([20, 20]) is None  # a thread would have nothing to do
    assert 1 < UNEVEN < 1.5


def test_one_thread_has_no_division(runners: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataParallel, "divide", lambda *_: pytest.fail("it divides the sequences"))
    assert len(outputs(runners[0], chunks_of(runners[0], [5, 5, 5], 0)))


def test_a_step_has_room_for_all_threads(runners: Pair) -> None:
    assert runners[1].limits.tokens == 3 * ALONE_TOKENS
    long = Chunk(BlockTable(), [5] * 300, 1)
    with pytest.raises(InvalidRequest, match="a step of 300 tokens of a sequence; the limit is 256"):
        runners[1].forward([long, *chunks_of(runners[1], [3], 0)])
