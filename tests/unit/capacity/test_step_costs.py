"""Step times: linear between the measurements, and scaled to other machines and to stages."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid.capacity import step_costs
from pellucid.capacity.layouts import PROCESS_BYTES, ModelSize, fewest_stages, layouts, recommended, stage_bytes
from pellucid.capacity.machines import Link, Machine, Machines
from pellucid.capacity.step_costs import (
    INT8_SHARE,
    MEMORY_SHARE,
    ROUNDS,
    Measurement,
    PlanWork,
    StepCosts,
    measure_steps,
)
from pellucid.cli.commands.capacity import machine_range
from pellucid.cli.planning import certainty
from pellucid.errors import InvalidRequest
from pellucid.loading import step_limits
from pellucid.measure.cost import Rates
from pellucid.measure.paper import paper_model

COSTS = StepCosts(
    {1: 0.010, 4: 0.016, 16: 0.052},
    {1: 0.008, 64: 0.071},
    1e-6,
    2e-6,
    request=0.001,
    server_step=0.0005,
    server_row=0.0001,
)


def work(name: str = "llama-3-70b") -> PlanWork:
    found = paper_model(name)
    return PlanWork(found.plan, found.spec.embedding.width)


def sized(name: str, context: int = 8192) -> ModelSize:
    found = paper_model(name)
    return ModelSize(name, found.spec, found.plan, step_limits(found.spec, context), found.file_bytes[found.form])


def machine(gigabytes: float, count: int = 1, read: float = 50.0, multiply: float = 1000.0) -> Machine:
    return Machine("some", count, int(1e9 * gigabytes), 8, Rates(1e9 * read, 1e9 * multiply), "given")


def test_between_and_beyond_what_was_measured() -> None:
    beside = 0.0005 + 0.0001 * 1
    assert COSTS.step(1, 0, 0, 0) == pytest.approx(0.010 + beside)
    assert COSTS.step(2, 100, 0, 0) == pytest.approx(0.012 + 0.0005 + 0.0002 + 100e-6)
    assert COSTS.step(32, 0, 0, 0) == pytest.approx(0.052 + 16 * 0.003 + 0.0005 + 0.0032)
    assert COSTS.step(0, 0, 64, 500) == pytest.approx(0.071 + 0.001 + 0.0005)
    # A step with both: the time of all tokens, and the extra time of a row over a prompt token.
    assert COSTS.step(1, 0, 63, 0) == pytest.approx(0.071 + 0.002 + beside)


@given(st.integers(0, 64), st.integers(0, 256), st.integers(0, 10_000))
def test_more_never_takes_less(rows: int, prompts: int, seen: int) -> None:
    if rows or prompts:
        own = COSTS.step(rows, seen, prompts, seen)
        assert own > 0
        assert COSTS.step(rows, seen + 10, prompts, seen) >= own
        assert COSTS.step(rows, seen, prompts + 1, seen) >= own - 1e-3  # a row is sampled, a token is not


def test_another_machine_is_as_fast_as_its_roofs() -> None:
    here = Rates(50e9, 1000e9)
    same = COSTS.on(here, here, work())
    assert same == COSTS
    twice = COSTS.on(Rates(100e9, 2000e9), here, work())
    assert twice.rows[1] == pytest.approx(COSTS.rows[1] / 2)
    assert twice.prompts[64] == pytest.approx(COSTS.prompts[64] / 2)
    assert (twice.request, twice.server_step, twice.server_row) == (COSTS.request, COSTS.server_step, COSTS.server_row)
    # A single sequence is bound by reading weights, so faster arithmetic does not help.
    units = COSTS.on(Rates(50e9, 4000e9), here, work())
    assert units.rows[1] == pytest.approx(COSTS.rows[1])
    assert units.prompts[64] < COSTS.prompts[64] / 2


def test_stages_add_hops_and_share_long_prompts() -> None:
    costs = StepCosts({1: 0.1}, {1: 0.1, 128: 1.0, 1024: 8.0})
    staged = costs.over(4, Link(0.001, 1e9), work())
    assert costs.over(1, Link(), work()) is costs
    assert staged.step(1, 0, 0, 0) == pytest.approx(0.1 + 4 * 0.001 + 3 * 4 * 8192 / 1e9)
    vectors = 3 * 4 * 8192 / 1e9
    assert staged.prompts[128] == pytest.approx(1.0 + 128 * vectors)  # one chunk: stage after stage
    assert staged.prompts[1024] == pytest.approx(8.0 * 11 / 32 + 1024 * vectors)


def test_a_model_on_paper_reaches_the_usual_parts() -> None:
    found = paper_model("llama-3-70b")
    costs = work().estimated(machine(100))
    assert costs.rows[1] == pytest.approx(1 / found.decode(Rates(MEMORY_SHARE * 50e9, INT8_SHARE * 1e12)), rel=0.01)


def test_a_step_of_a_model_on_paper_reads_keys_and_values() -> None:
    """16 sequences of GPT-3 after 2,000 tokens, by hand: Q4_K weights once, 4.7 MB of keys and values per token."""
    costs, fast = work("gpt3-175b").estimated(machine(1000, multiply=1e9)), MEMORY_SHARE * 50e9
    token = 96 * 96 * (128 + 128) * 2
    alone = costs.step(1, 1500, 0, 0) - costs.step(1, 50, 0, 0)
    assert alone == pytest.approx(1450 * token / fast)
    many = costs.step(16, 16 * 2000, 0, 0)
    assert many == pytest.approx((paper_model("gpt3-175b").read_bytes + 16 * 2000 * token) / fast, rel=0.01)
    # Attention over a prompt: 96 layers of 96 heads, 128 + 128 products with each visible token.
    slow = work("gpt3-175b").estimated(machine(1000, read=1e9, multiply=1000))
    seen = slow.step(0, 0, 64, 64 * 1000) - slow.step(0, 0, 64, 0)
    assert seen == pytest.approx(64 * 1000 * 96 * 96 * 256 / (INT8_SHARE * 1e12))


def test_layers_with_a_window_see_no_more() -> None:
    costs = work("gpt-oss-20b").estimated(machine(100, multiply=1e9))
    layer, fast = 8 * (64 + 64) * 2, MEMORY_SHARE * 50e9
    assert costs.step(2, 2 * 1000, 0, 0) - costs.step(2, 0, 0, 0) == pytest.approx(2 * 12 * layer * (1000 + 128) / fast)
    assert costs.next_step(2, 2 * 1000) == pytest.approx(2 * 12 * layer / fast)
    assert costs.next_step(2, 2 * 100) == pytest.approx(2 * 24 * layer / fast)
    here = Rates(50e9, 1e18)
    twice = costs.on(Rates(100e9, 2e18), here, work("gpt-oss-20b"))
    assert twice.windows[0] == pytest.approx((128, costs.windows[0][1] / 2, costs.windows[0][2] / 2))


def test_many_texts_are_as_many_as_there_is_room_for() -> None:
    model = sized("gpt3-175b", 2048)
    small, large = machine(130), machine(1000)
    (first, *_), (last, *_) = (layouts(model, Machines((one,)), [model.work.estimated(one)]) for one in (small, large))
    assert (first.depth, last.depth, last.sequences) == (1024, 1024, 16)
    assert first.cached_tokens is not None
    assert first.sequences == first.cached_tokens // 1025 < 16
    costs = model.work.estimated(large)
    assert last.batched_decode == pytest.approx(16 / costs.step(16, 16 * 1024, 0, 0))
    assert model.sequence_bytes(2000) == 2000 * 96 * 96 * 256 * 2


def test_a_model_that_fits_nowhere_is_refused_without_cutting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = list[int]()
    monkeypatch.setattr("pellucid.capacity.layouts.stage_bytes", lambda model, stages: cuts.append(stages) or 7)
    model = sized("llama-3-70b")
    with pytest.raises(InvalidRequest, match="cannot be divided"):
        fewest_stages(model, machine(0.5))
    assert cuts == [1]  # as in the message


@pytest.mark.parametrize("name", ["llama-3-70b", "gpt2", "gpt-oss-20b", "deepseek-v2-lite"])
@pytest.mark.parametrize("stages", [1, 2, 3, 5, 11])
def test_no_stage_is_smaller_than_the_least_share(name: str, stages: int) -> None:
    model = sized(name, 1024)
    bytes_each = stage_bytes(model, stages)
    assert bytes_each is not None
    assert model.min_stage_bytes(stages) <= bytes_each - PROCESS_BYTES + 1


def test_experts_are_read_as_many_as_are_chosen() -> None:
    mixture, rates = work("qwen3-30b-a3b"), Rates(50e9, 1e15)
    one, many = mixture.seconds(1, 1, rates), mixture.seconds(256, 1, rates)
    assert 5 < many / one < 12  # 8 of 128 experts, then nearly all experts
    dense = work()
    assert dense.seconds(256, 1, rates) == pytest.approx(dense.seconds(1, 1, rates))


def test_layouts_of_a_model_that_fits_and_of_one_that_does_not() -> None:
    model = sized("llama-3-70b")
    small, large = machine(32, 8), machine(64, 4)
    whole = stage_bytes(model, 1)
    assert whole is not None
    assert whole > 40e9
    assert stage_bytes(model, 1000) is None
    assert fewest_stages(model, small) == 2
    assert fewest_stages(model, large) == 1
    found = layouts(model, Machines((small, large)), [model.work.estimated(one) for one in (small, large)])
    shapes = [(one.machine.memory, one.replicas, one.stages) for one in found]
    assert shapes == [(32e9, 1, 2), (32e9, 4, 2), (32e9, 1, 8), (64e9, 1, 1), (64e9, 4, 1), (64e9, 1, 4)]
    assert all(one.machines <= one.machine.count for one in found)
    assert found[1].batched_decode == pytest.approx(4 * found[0].batched_decode)
    assert found[5].prefill > found[3].prefill
    best = recommended(found)
    assert best is not None
    assert best[0] is max(found, key=lambda one: one.batched_decode)
    with pytest.raises(InvalidRequest, match="cannot be divided"):
        fewest_stages(model, machine(0.5))
    assert layouts(model, Machines((machine(32),)), [COSTS]) == []
    assert recommended([]) is None


def test_room_grows_with_memory_up_to_all_contexts() -> None:
    model = sized("llama-3-70b")
    rooms = [model.replica_capacity(int(1e9 * size)).pages[0] for size in (1, 64, 640, 6400)]
    assert rooms[0] == 8192 // 64 + 64  # one context, and a page for each sequence
    assert rooms == sorted(rooms)
    assert rooms[-1] == 64 * 8192 // 64


def test_steps_are_measured(llama_steps: tuple[StepCosts, list[str]]) -> None:
    costs, said = llama_steps
    assert set(costs.rows) == {1, 2, 4, 8, 16, 32, 64}
    assert 1 in costs.prompts
    assert 256 in costs.prompts
    assert min(*costs.prompts.values(), *costs.rows.values(), *costs.noise) > 0
    assert len(said) == ROUNDS * (7 + 7 + 2) + 1


@pytest.fixture(scope="module")
def llama_steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[StepCosts, list[str]]:
    from pellucid.testing import random_model

    path, said = Path(tmp_path_factory.mktemp("costs")) / "llama.gguf", list[str]()
    random_model("llama", path, context=2048)
    with pellucid.load(path, threads=1) as llm:
        return measure_steps(llm, lambda done, total, what: said.append(what)), said


@pytest.mark.parametrize(("share", "busy"), [(0.5, True), (0.97, False), (1.4, False)])
def test_a_busy_machine_is_noticed(share: float, busy: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processor time of the threads during steps is compared with the time of the steps."""
    from pellucid.testing import random_model

    clock = SimpleNamespace(perf_counter=time.perf_counter, process_time=lambda: 2 * share * time.perf_counter())
    monkeypatch.setattr(step_costs, "time", clock)
    monkeypatch.setattr(step_costs, "ROUNDS", 1)
    monkeypatch.setattr(step_costs, "NOISE_TOTAL", 0.2)
    random_model("llama", tmp_path / "llama.gguf", context=512)
    with pellucid.load(tmp_path / "llama.gguf", threads=2) as llm:
        found = measure_steps(llm).measurement
    assert found is not None
    assert found.processor_share == pytest.approx(min(share, 1.0), rel=0.05)
    assert (found.busy, found.spread) == (busy, 0.0)


def test_the_spread_of_the_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half the range of the times of three rounds, relative to their median."""
    from pellucid.testing import random_model

    rate, now = 1.0, 0.0

    def clock() -> float:
        nonlocal now
        now += rate
        return now

    def progress(done: int, total: int, what: str) -> None:
        nonlocal rate
        rate = (1.0, 1.1, 0.9, 1.0)[3 * done // (total - 1)]

    monkeypatch.setattr(step_costs, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    monkeypatch.setattr(step_costs, "ROUNDS", 3)
    random_model("llama", tmp_path / "llama.gguf", context=512)
    with pellucid.load(tmp_path / "llama.gguf", threads=1) as llm:
        found = measure_steps(llm, progress).measurement
    assert found is not None
    assert found.spread == pytest.approx(0.1)


def test_the_certainty_of_step_times() -> None:
    assert certainty(COSTS) == "Step times are assumed, not measured: the numbers are a first estimate."
    quiet, busy = (replace(COSTS, measurement=Measurement(0.08, share)) for share in (0.95, 0.4))
    assert certainty(quiet) == "Step times differ by ±8% between rounds of the measurement."
    assert certainty(busy) == "Step times of a busy machine differ by ±8% between rounds of the measurement."
    assert COSTS.on(Rates(1.0, 1.0), Rates(1.0, 1.0), work()).measurement is None
    assert quiet.on(Rates(1.0, 1.0), Rates(1.0, 1.0), work()).measurement == quiet.measurement
    result: Any = SimpleNamespace(machines=10)
    assert machine_range(result, quiet) == " In proportion, 10 to 11 machines are needed."
    assert machine_range(result, replace(COSTS, measurement=Measurement(0.25, 1.0))).startswith(
        " In proportion, 8 to 13"
    )
    assert machine_range(result, COSTS) == machine_range(SimpleNamespace(machines=1), COSTS) == ""  # type: ignore[arg-type]
