"""A simulated replica runs the same steps as a real engine: the same prompt chunks and the same cached pages."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.replays import Replay

import pellucid
from pellucid.capacity import simulated_replica as replica_module
from pellucid.capacity.layouts import ModelSize
from pellucid.capacity.simulate import Outcome, Simulation, Traffic
from pellucid.capacity.simulated_replica import ReplicaCapacity, SimulatedReplica, SimulatedRequest
from pellucid.capacity.step_costs import StepCosts
from pellucid.engine.step_times import StepTimes
from pellucid.llm import LLM
from pellucid.measure.server_load import Lengths
from pellucid.runtime.batch import Chunk, StepLimits
from pellucid.runtime.cache_layout import LayerShape
from pellucid.testing import random_model

EVEN = StepCosts(
    {1: 0.01, 2: 0.012},
    {1: 0.01, 64: 0.05},
    1e-6,
    1e-6,
    request=0.002,
    stream=0.0001,
    server_step=0.001,
    server_row=0.0001,
)
ROOM = ReplicaCapacity([LayerShape(1, 64, 64)], [200], 1 << 20, StepLimits(1024))
Asked = list[tuple[list[int], int]]


def real_steps(llm: LLM, rounds: Sequence[Asked]) -> list[list[int]]:
    """Tokens of each sequence in each step. The requests of a round arrive together."""
    steps, forward = list[list[int]](), llm.runner.forward_all

    def watched(chunks: Sequence[Chunk]) -> object:
        steps.append([len(chunk.tokens) for chunk in chunks])
        return forward(chunks)

    llm.runner.forward_all = watched  # type: ignore[method-assign,assignment]
    for asked in rounds:
        gate = threading.Event()
        llm.engine.between_steps(gate.wait)
        groups = [
            llm.request(ids, max_new_tokens=count, ignore_eos=True, temperature=0, prompt_lookup=False)
            for ids, count in asked
        ]
        for group in groups:
            group.start()
        gate.set()
        for group in groups:
            group.wait()
        llm.engine.settle()
    return steps


def simulated_steps(room: ReplicaCapacity, rounds: Sequence[Asked], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    steps, real = list[list[int]](), replica_module.SimulatedStep.__init__

    def watched(self: object, scheduled: Sequence[object], *more: object) -> None:
        steps.append([len(one.chunk.tokens) for one in scheduled])  # type: ignore[attr-defined]
        real(self, scheduled, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(replica_module.SimulatedStep, "__init__", watched)
    monkeypatch.setattr(replica_module, "PAGE", 1)  # each step by itself
    replica, number = SimulatedReplica(room, EVEN), 0
    for asked in rounds:
        replica.add(SimulatedRequest(0, [1], 1, 0.0), 0.0)  # the others begin together after its step
        assert steps.pop() == [1]
        for ids, count in asked:
            number += 1
            replica.add(SimulatedRequest(number, list(ids), count, 0.0), 0.0)
        while replica.time is not None:
            replica.end_step()
    return steps


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3next"])
def test_steps_are_those_of_an_engine(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, by = tmp_path / f"{family}.gguf", random.Random(1)
    random_model(family, path, context=512)
    monkeypatch.setattr(StepTimes, "prefill_tokens", lambda self, rows, most, divided: min(most, 90))
    with pellucid.load(path, threads=2) as llm:
        vocabulary = llm.inputs.vocabulary
        same = [by.randrange(3, vocabulary) for _ in range(150)]

        def prompt(count: int, shared: int) -> list[int]:
            return same[:shared] + [by.randrange(3, vocabulary) for _ in range(count - shared)]

        rounds: list[Asked] = [
            [(prompt(200, 150), 9)],
            [(prompt(by.randint(150, 300), by.choice((0, 70, 150))), by.randint(1, 40)) for _ in range(7)],
            [(prompt(220, 150), 5), (prompt(3, 0), 30), (prompt(170, 128), 2)],
        ]
        size = ModelSize("tiny", llm.spec, llm.plan, llm.runner.limits, 0)
        # The generated tokens differ, so only prompts can be in the prefix cache.
        assert real_steps(llm, rounds) == simulated_steps(size.replica_capacity(0), rounds, monkeypatch)


def run(traffic: Traffic, replicas: int, ahead: bool, room: ReplicaCapacity = ROOM, **how: float) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        if not ahead:
            patch.setattr(replica_module, "PAGE", 1)
        return Simulation(traffic, replicas, room, EVEN).run(**how)  # type: ignore[arg-type]


@settings(max_examples=15)
@given(
    st.integers(0, 1000),
    st.sampled_from([{"clients": 1}, {"clients": 5}, {"rate": 2.0}, {"rate": 12.0}]),
    st.integers(1, 3),
)
def test_steps_that_are_alike_may_be_made_at_once(seed: int, how: dict[str, float], turns: int) -> None:
    traffic = Traffic(
        Lengths(10, 200), Lengths(1, 90), shared=64, prefixes=2, turns=turns, think=0.5, seed=seed, **how  # type: ignore[arg-type]
    )  # fmt: skip
    one, other = (run(traffic, 1, ahead, requests=40) for ahead in (True, False))
    assert one.requests == other.requests == 40
    assert one.tokens_per_second == pytest.approx(other.tokens_per_second, rel=0.02)
    assert one.first_token["p50"] == pytest.approx(other.first_token["p50"], rel=0.05, abs=0.02)
    assert one.hits == pytest.approx(other.hits, abs=0.05)


def test_a_request_alone_takes_the_time_of_its_steps() -> None:
    prompt = list(range(40))
    outcome = run(Replay(requests=[(prompt, 30)], clients=1), 1, True, requests=1)
    reading = EVEN.step(0, 0, 40, 800)
    assert outcome.first_token["p50"] == pytest.approx(EVEN.request + reading)
    made = sum(EVEN.step(1, seen, 0, 0) for seen in range(41, 70)) / 29
    assert outcome.per_token["p50"] == pytest.approx(made)


def test_every_request_ends_once_also_where_pages_are_short() -> None:
    tight = ReplicaCapacity([LayerShape(1, 64, 64)], [16], 1 << 20, StepLimits(1024))
    traffic = Traffic(Lengths(100, 500), Lengths(50, 150), clients=8, seed=3)
    simulation = Simulation(traffic, 1, tight, EVEN)
    outcome = simulation.run(requests=60)
    assert outcome.preemptions > 0
    assert (outcome.requests, outcome.failed, outcome.waiting) == (60, 0, 0)
    assert len({text.number for text in simulation.ended}) == len(simulation.ended) == 60
    assert all(len(text.answer) == text.max_tokens for text in simulation.ended)
    assert all(text.arrival <= text.first <= text.last for text in simulation.ended)
    cache = simulation.replicas[0].cache
    cache.clear_prefixes()
    assert cache.kv.free_pages == cache.kv.pages


def test_what_does_not_fit_fails_alone() -> None:
    tight = ReplicaCapacity([LayerShape(1, 64, 64)], [4], 1 << 20, StepLimits(1024))
    replay = Replay(requests=[(list(range(100)), 10), (list(range(400)), 10), (list(range(50)), 10)], clients=3)
    outcome = run(replay, 1, True, tight, requests=3)
    assert (outcome.requests, outcome.failed) == (3, 1)


def test_conversations_stay_where_their_pages_are() -> None:
    traffic = Traffic(Lengths(200, 300), Lengths(60, 60), rate=6.0, turns=5, think=3.0, seed=1)
    roomy = ReplicaCapacity(ROOM.layers, [3000], 1 << 30, StepLimits(2048))
    outcome = run(traffic, 4, True, roomy, seconds=60.0, warm=20.0)
    assert outcome.hits > 0.5  # 0.7 if every conversation stays on its replica
    apart = run(Traffic(Lengths(200, 300), Lengths(60, 60), rate=6.0, seed=1), 4, True, roomy, seconds=60.0)
    assert apart.hits == 0


def test_a_seed_is_all_that_decides() -> None:
    traffic = Traffic(Lengths(10, 300), Lengths(5, 60), rate=20.0, shared=50, seed=5)
    one, other = (run(traffic, 3, True, seconds=20.0) for _ in range(2))
    assert one == other


def test_more_than_can_be_done_is_noticed() -> None:
    traffic = Traffic(Lengths(400, 400), Lengths(100, 100), rate=300.0)
    outcome = run(traffic, 2, True, seconds=60.0, warm=10.0)
    assert outcome.overloaded
    assert outcome.waiting > 0
    assert outcome.first_token["p95"] > 1


def test_what_exceeds_the_context_is_cut_or_refused() -> None:
    """As in `Inputs`: an answer ends at the end of the context, and a prompt must leave room for one token."""
    small = ReplicaCapacity([LayerShape(1, 64, 64)], [200], 1 << 20, StepLimits(128))
    replay = Replay(requests=[(list(range(100)), 300), (list(range(128)), 10), (list(range(127)), 10)], clients=1)
    simulation = Simulation(replay, 1, small, EVEN)
    outcome = simulation.run(requests=3)
    assert (outcome.requests, outcome.failed) == (3, 1)
    assert [len(text.answer) for text in simulation.ended] == [28, 0, 1]


def test_what_is_counted_is_of_the_time_that_counts() -> None:
    """Only steps and cache hits within the measured time count. Earlier requests do not count."""
    prompt = list(range(200))
    times = [1.0, 2.0, 10.0, 30.0]
    simulation = Simulation(Replay(requests=[(prompt, 20)] * 4, times=times), 1, ROOM, EVEN)
    outcome = simulation.run(seconds=10.0, warm=5.0)
    last = simulation.ended[-1]
    assert outcome.requests == 1
    assert outcome.hits == 1.0
    assert outcome.busy == pytest.approx((last.last - last.arrival - EVEN.request) / 10.0)
    # The prompt is cached except for its last token, and its prefill was before the measured time.
    assert outcome.prompt_share == 0
