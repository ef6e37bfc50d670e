"""Measuring: roofs, the cost of a step, the choice of workloads. The model runner stays unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.schedule import write_quantised_llama
from support.tiny import FAMILIES, TINY, model_runner, opened, some_with_all_kernels

from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest
from pellucid.measure.cost import Cost, Rates, operation_cost, step_cost
from pellucid.measure.roofs import MULTIPLY_ROUNDS, Figure, Roofs, Timed, facts, measure, profile_step
from pellucid.measure.suite import DecodeWorkload, EmbedWorkload, PrefillWorkload, SuiteOptions, Workload, suite
from pellucid.plan.bind import layouts
from pellucid.plan.plan import Weights
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cache_layout import StateShape


@pytest.fixture(scope="module", params=some_with_all_kernels())
def net(request: pytest.FixtureRequest) -> Iterator[ModelRunner]:
    with model_runner(TINY[request.param], context=128, threads=2, sequences=4) as made:
        yield made


def workloads(net: ModelRunner) -> list[Workload]:
    if not net.spec.generates:
        return [EmbedWorkload(10), EmbedWorkload(10, 4), EmbedWorkload(64)]
    return [PrefillWorkload(100), DecodeWorkload(5, 3), DecodeWorkload(5, 3, 2)]


def test_roofs_are_positive_and_of_any_size() -> None:
    roofs = Roofs(2, 1 << 20)
    try:
        rates = [roofs.read(nbytes) for nbytes in (0, 1, 513, 1 << 20, 1 << 40)]
        assert min(rates) > 0
        assert roofs.multiply() > 2 * MULTIPLY_ROUNDS
    finally:
        roofs.close()


def test_the_steps_of_a_workload_are_those_that_it_runs(net: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    for workload in workloads(net):
        ran: list[list[tuple[int, int, int]]] = []
        forward = net.forward

        def watched(chunks: Any, ran: Any = ran, forward: Any = forward) -> Any:
            ran.append([(c.table.length, len(c.tokens), c.outputs) for c in chunks])
            return forward(chunks)

        monkeypatch.setattr(net, "forward", watched)
        assert workload.seconds(net) > 0
        monkeypatch.undo()
        said = [[(c.table.length, len(c.tokens), c.outputs) for c in step] for step in workload.steps(net)]
        assert ran[-len(said) :] == said  # preceded by a context that is not timed
        sequences = getattr(workload, "sequences", 1)
        assert len(ran) == len(said) + (sequences if isinstance(workload, DecodeWorkload) else 0)
        made = sum(len(step) if isinstance(workload, EmbedWorkload) else sum(c[1] for c in step) for step in said)
        assert made == workload.count


@pytest.mark.slow
def test_measuring_leaves_the_cache_empty(net: ModelRunner) -> None:
    told: list[tuple[int, int, str]] = []
    figures = measure(net, workloads(net), 2, lambda done, total, label: told.append((done, total, label)))
    assert net.cache.kv.free_pages == net.cache.kv.pages
    assert [done for done, _, _ in told] == list(range(6))
    for figure in figures:
        assert len(figure.per_second) == len(figure.rates) == 2
        assert min(figure.median, figure.roof, figure.share) > 0
        assert figure.spread >= 0
        assert figure.bound in ("memory", "int8")


@pytest.mark.slow
def test_a_failure_leaves_the_cache_empty_too(net: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    calls = itertools.count()
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda chunks: forward(chunks) if next(calls) < 2 else stop())
    with pytest.raises(KeyboardInterrupt):
        measure(net, workloads(net), 2)
    assert net.cache.kv.free_pages == net.cache.kv.pages
    monkeypatch.setattr(net, "profile", stop)
    with pytest.raises(KeyboardInterrupt):
        profile_step(net, 4)
    assert net.cache.kv.free_pages == net.cache.kv.pages


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "depth"), [(1, 0), (1, 20), (30, 0)])
def test_a_profile_has_every_operation_of_the_plan(net: ModelRunner, tokens: int, depth: int) -> None:
    profile = profile_step(net, tokens, depth if net.spec.generates else 0, rounds=1)
    assert profile.operations == net.plan.operations
    assert len(profile.timed) == len(net.plan.operations)
    assert sum(timed.count for timed in profile.kinds().values()) == len(net.plan.operations)
    assert sum(timed.seconds for timed in profile.kinds().values()) == pytest.approx(profile.total.seconds)
    assert not any(stage.startswith("blocks.") for stage, _ in profile.kinds())
    for timed in profile.kinds().values():
        if timed.cost.multiply_adds and timed.seconds:
            assert timed.cost.multiply_adds / timed.seconds <= profile.rates.multiply * (1 + 1e-9)
    assert net.cache.kv.free_pages == net.cache.kv.pages


def test_a_step_in_pieces_computes_what_a_whole_one_does(net: ModelRunner) -> None:
    sequence, outputs = BlockTable(), int(net.spec.generates)
    chunks = [Chunk(sequence, [1, 2, 3, 4, 5], outputs)]
    whole = net.forward(chunks)
    before = whole.copy()
    net.cache.truncate(sequence, 0)
    seconds = net.profile(chunks)
    assert seconds.shape == (len(net.plan.operations),)
    assert (seconds >= 0).all()
    assert sequence.length == 0
    assert not any(blocks.pages for blocks in sequence.blocks)
    assert np.array_equal(net.array(net.plan.output)[: len(whole), : net.width], before)
    assert not np.shares_memory(net.array(net.plan.output), whole)
    assert np.array_equal(whole, before)


def test_a_profile_is_refused_as_a_step_is(net: ModelRunner) -> None:
    with pytest.raises(InvalidRequest, match="the limit is 64"):
        net.profile([Chunk(BlockTable(), range(65), 0)])
    with pytest.raises(InvalidRequest, match="rows of logits: use 0 to"):
        net.profile([Chunk(BlockTable(), [1], 2)])


def test_a_closed_network_is_refused() -> None:
    with model_runner(TINY["llama"]) as net:
        net.close()
        with pytest.raises(InvalidRequest, match="load it again"):
            net.profile([Chunk(BlockTable(), [1])])


def test_cost(net: ModelRunner) -> None:
    def cost(*lengths: tuple[int, int, int]) -> Cost:
        return step_cost(net, [Chunk(BlockTable(past), range(new), out) for past, new, out in lengths])

    experts = [op for op in net.plan.operations if op.kernel.name.startswith("matmul_experts")]
    weights = sum(op.weight_bytes for op in net.plan.operations)

    def more(tokens: int) -> int:
        """Bytes that ``tokens`` tokens read beyond a single token: the expected additional experts."""
        found = 0
        for op in experts:
            each, count = op.fields["expert_bytes"], op.fields["experts"]
            chosen = op.weight_bytes // each
            found += round(count * each * (1 - (1 - chosen / count) ** tokens)) - op.weight_bytes
        return found

    head = sum(op.weight_bytes for op in net.plan.operations if op.rows == "outputs")
    shapes = [layer for layer in net.plan.layers if isinstance(layer, StateShape)]
    states = sum(2 * 4 * size for shape in shapes for _, size in shape.parts)  # read and written
    assert cost((0, 8, 1), (0, 8, 0)).nbytes == weights + more(16) + 2 * states
    assert cost((0, 8, 0)).nbytes == weights + more(8) - head + states
    per_token = [
        4 * (2 * kind.latent.rank + kind.head_dim - kind.latent.plain_dim)  # the latent is key and value
        if kind.latent
        else 2 * 4 * kind.kv_heads * kind.head_dim
        for kind in net.spec.attentions
    ]
    # The 21st token sees a window, or its chunk up to itself.
    seen = [
        20 % kind.window + 1 if kind.chunked and kind.window else min(21, kind.window or 21)
        for kind in net.spec.attentions
    ]
    cached = sum(n * each for n, each in zip(seen, per_token)) + states
    assert cost((20, 1, 1)).nbytes == weights + cached
    assert cost((20, 1, 1), (20, 1, 1)).nbytes == weights + more(2) + 2 * cached


def test_products_count_once_for_each_row_where_weights_are_integers(tmp_path: Path) -> None:
    path = write_quantised_llama(tmp_path / "mixed.gguf", "F32", "Q8_0", "Q4_K")
    with opened(path) as (checkpoint, model):
        packed = layouts(checkpoint, model)
    with model_runner(path) as net:
        products = dict.fromkeys(("tokens", "outputs", "sequences"), 0)
        for op in net.plan.operations:
            slots = [value.slot for value in op.fields.values() if isinstance(value, Weights)]
            if slots and not any(packed[slot].is_float for slot in slots):
                products[op.rows] += op.multiply_adds
        assert products["tokens"] > 0
        cost = step_cost(net, [Chunk(BlockTable(), range(8), 3)])
        assert cost.multiply_adds == 8 * products["tokens"] + 3 * products["outputs"]
        timed = profile_step(net, 8, rounds=1)
        assert timed.total.cost == step_cost(net, [Chunk(BlockTable(), range(8), 1)])


def test_the_roof_is_the_longer_of_both_times() -> None:
    rates = Rates(read=100.0, multiply=1000.0)
    assert (Cost(200, 1000).seconds(rates), Cost(200, 1000).bound(rates)) == (2, "memory")
    assert (Cost(200, 5000).seconds(rates), Cost(200, 5000).bound(rates)) == (5, "int8")
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
    timed = Timed(4.0, Cost(200, 1000))
    assert timed.share(rates) == 0.5
    assert Timed(4.0, Cost()).share(rates) is None
    fast = Rates(200e9, 1000e9)
    assert Timed(2e-9, Cost(200, 1000)).rate(fast) == "100 GB/s"
    assert Timed(2e-9, Cost(0, 100)).rate(fast) == "50.0 GMAC/s"
    cached = Timed(5e-10, Cost(200, 0))
    assert cached.rate(fast) == "400 GB/s from caches"
    assert cached.share(fast) is None
    assert Timed(1.0, Cost()).rate(rates) == Timed(0.0, Cost(1)).rate(rates) == ""


def test_a_figure_sums_up_its_rounds() -> None:
    rates = tuple(Rates(read, 1.0) for read in (10.0, 20.0, 40.0))
    figure = Figure(PrefillWorkload(5), Cost(10, 0), (1.0, 2.0, 4.0), rates)
    assert (figure.median, figure.roof, figure.bound) == (2, 10, "memory")
    assert figure.spread == 0.375
    assert figure.share == 0.2
    assert Figure(PrefillWorkload(5), Cost(10, 0), (1.0,), rates[:1]).spread == 0


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    found = {}
    for name in FAMILIES:
        with opened(next(TINY[folder] for folder in TINY if folder.startswith(name))) as (_, model):
            found[name] = model.spec
    return found


def test_what_is_measured_by_default(specs: dict[str, Any]) -> None:
    chosen, notes = suite(specs["llama"], 8192, SuiteOptions())
    assert chosen == [
        *(PrefillWorkload(128), PrefillWorkload(512), PrefillWorkload(2048)),
        *(DecodeWorkload(16, 64), DecodeWorkload(1024, 64), DecodeWorkload(16, 64, 4), DecodeWorkload(16, 64, 16)),
    ]
    assert notes == []
    chosen, notes = suite(specs["bert"], 512, SuiteOptions())
    assert chosen == [EmbedWorkload(32), EmbedWorkload(32, 16), EmbedWorkload(512)]
    assert notes == []


@pytest.mark.parametrize("context", [1, 2, 17, 63, 64, 128, 300, 1024])
@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_cut_to_the_context(specs: dict[str, Any], name: str, context: int) -> None:
    chosen, notes = suite(specs[name], context, SuiteOptions())
    assert len(set(chosen)) == len(chosen) >= 1
    for workload in chosen:
        used = workload.tokens + (workload.depth if isinstance(workload, DecodeWorkload) else 0)
        assert 1 <= used <= context
    assert bool(notes) == (name != "bert" or context < 32)


def test_wishes(specs: dict[str, Any]) -> None:
    def chosen(name: str, context: int, **wishes: Any) -> list[Workload]:
        return suite(specs[name], context, SuiteOptions(**wishes))[0]

    assert chosen("llama", 256, prompts=[7, 7, 9], depths=[0], batches=[0]) == [PrefillWorkload(7), PrefillWorkload(9)]
    assert chosen("llama", 256, prompts=[0], depths=[8], batches=[2], tokens=5) == [
        DecodeWorkload(8, 5),
        DecodeWorkload(8, 5, 2),
    ]
    assert chosen("llama", 256, prompts=[0], depths=[0], batches=[2], tokens=5) == [DecodeWorkload(16, 5, 2)]
    assert chosen("bert", 64, prompts=[8, 9], batches=[2]) == [EmbedWorkload(8), EmbedWorkload(32, 2), EmbedWorkload(9)]


@pytest.mark.parametrize(
    ("name", "wishes", "message"),
    [
        ("llama", {"prompts": [257]}, "prompt=257: must be a whole number from 0 to 256; the context holds no more"),
        ("llama", {"depths": [250]}, "depth=250: must be a whole number from 0 to 192"),
        ("llama", {"tokens": 256}, "tokens=256: must be a whole number from 1 to 255; the context is 256"),
        ("llama", {"batches": [65]}, "batch=65: must be a whole number from 0 to 64"),
        ("llama", {"batches": [8]}, "batch=8: 8 sequences of 80 tokens need a context of 1,024; the context is 256"),
        ("llama", {"prompts": [-1]}, "prompt=-1"),
        ("llama", {"depths": ["x"]}, "depth='x'"),
        ("llama", {"tokens": 0}, "tokens=0"),
        ("llama", {"prompts": [0], "depths": [0], "batches": [0]}, "nothing is left to measure"),
        ("bert", {"depths": [4]}, "depth needs a model that generates text"),
        ("bert", {"tokens": 4}, "tokens needs a model that generates text"),
        ("bert", {"prompts": [300]}, "prompt=300"),
    ],
)
def test_wishes_that_cannot_be(specs: dict[str, Any], name: str, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        suite(specs[name], 256, SuiteOptions(**wishes))
    assert message in str(caught.value)


def test_the_machine() -> None:
    known = facts()
    assert 1 <= known["threads"] <= known["usable processors"] <= known["processors"]
    assert known["cores"] >= known["threads"]
    assert known["instructions"].split()[0] in known["possible"]
    assert known["possible"][-1] == "portable"
    assert known["kernels compiled"] >= 0


def test_operations_without_rows_cost_nothing(net: ModelRunner) -> None:
    chunks = [Chunk(BlockTable(), range(4), 0)]
    for op in net.plan.operations:
        if op.rows == "outputs":
            assert operation_cost(net, op, chunks) == Cost()
