"""Control vectors and probes on replicas: the bits and scores of one process, also after the loss of a replica."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.replicas import finished, replicas, run

from pellucid.errors import DeadlinePassed, InvalidRequest
from pellucid.llm import LLM
from pellucid.trace import ControlVector, LinearProbe, RegisteredVectors, scale

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "
DRAWS = np.random.default_rng(5)
VECTORS = RegisteredVectors(
    {"calm": ControlVector({1: DRAWS.normal(size=64).astype(np.float32)})},
    {"toxic": LinearProbe("toxic", "blocks.1.residual", DRAWS.normal(size=64).astype(np.float32), 0.5, True)},
)
HOW: dict[str, Any] = {
    "max_new_tokens": 200, "ignore_eos": True, "temperature": 1.2, "seed": 3, "logprobs": 0, "steer": {"calm": 0.4},
}  # fmt: skip


@pytest.mark.parametrize("n", [1, 3])
def test_they_travel_with_a_request_that_moves(llama_file: Path, alone: LLM, n: int) -> None:
    alone.vectors = VECTORS
    wanted = alone.samples(PROMPT, n, probes=["toxic"], **HOW)
    assert wanted[0].ids != alone.generate(PROMPT, **{**HOW, "steer": {}}).ids

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            model.vectors = VECTORS  # the replicas have none
            group = model.request(PROMPT, n, probes=["toxic"], **HOW)
            await finished(group, lambda count: made.kill() if count == 60 else None)
            assert made.fleet.moved == 1
            for one, other in zip(group.results(), wanted, strict=True):
                assert one.ids == other.ids
                assert one.probe_scores == other.probe_scores
                assert one.logprobs is not None
                assert other.logprobs is not None
                assert np.array_equal(one.logprobs.chosen, other.logprobs.chosen)

    run(work())


def test_beams_take_edits_and_the_scheduling_of_a_request(llama_file: Path, alone: LLM) -> None:
    how: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 12}
    control: dict[str, Any] = {"steer": {"calm": 0.4}, "edits": [scale("blocks.0.attention.output", 0.5)]}
    alone.vectors = VECTORS
    wanted = alone.beam_search(PROMPT, **how, **control)
    assert wanted.tree != alone.beam_search(PROMPT, **how).tree

    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            model.vectors = VECTORS
            search = partial(asyncio.to_thread, model.beam_search, PROMPT, **how, **control)
            assert (await search(priority=2, deadline=60)).tree == wanted.tree
            with pytest.raises(InvalidRequest, match="deadline"):
                await search(deadline=-1)
            with pytest.raises(DeadlinePassed):
                await search(deadline=1e-9)

    run(work())


def test_a_limit_ends_the_text_on_a_replica(llama_file: Path, alone: LLM) -> None:
    alone.vectors = VECTORS
    free = alone.generate(PROMPT, probes=["toxic"], **HOW)
    assert free.probe_scores is not None
    limit = sorted(free.probe_scores["toxic"])[-3]
    wanted = alone.generate(PROMPT, probes={"toxic": {"stop_above": limit}}, **HOW)
    assert wanted.finish_reason == "probe"

    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            model.vectors = VECTORS
            group = model.request(PROMPT, probes={"toxic": {"stop_above": limit}}, **HOW)
            await finished(group, lambda _: None)
            (found,) = group.results()
            assert (found.text, found.finish_reason, found.stop_reason) == (wanted.text, "probe", "toxic")
            assert found.probe_scores == wanted.probe_scores
            # Refused before a replica sees the request.
            for wrong, said in (
                ({"steer": {"clam": 1.0}}, "the registered control vectors are calm"),
                ({"probes": ["toxin"]}, "the registered probes are toxic"),
            ):
                with pytest.raises(InvalidRequest, match=said):
                    model.request(PROMPT, **wrong)
            with pytest.raises(InvalidRequest, match="takes no probes"):
                model.request_with_values(PROMPT, ["norm"], probes=["toxic"])

    run(work())
