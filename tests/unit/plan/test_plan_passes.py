"""Passes keep the arithmetic bit for bit; the placed barriers are sufficient, and each is necessary."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from plan_cases import ALL, path_of, plans
from support.tiny import model_runner

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.plan.passes import fuse_quantize, fuse_residual, pick_early, place_barriers
from pellucid.plan.plan import REPLICATED, At, Cache, Operation, Plan
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable as CacheSequence
from pellucid.runtime.executor import Program

PASSES = (fuse_quantize, fuse_residual, lambda operations: fuse_residual(fuse_quantize(operations)))
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7, 9, 32, 3, 8, 46]


def output(path: Path, plan: Plan, threads: int = 2) -> np.ndarray:
    """The logits of steps: without outputs, with two sequences, and with one more token of the first."""
    with model_runner(path, plan, threads=threads, context=64 * 3) as net:
        first, second = CacheSequence(), CacheSequence()
        none = net.forward([Chunk(first, IDS[3:9], 0)])
        rows = net.forward([Chunk(first, IDS, 5), Chunk(second, IDS[4:9], 1)])
        more = net.forward([Chunk(first, [7])])
    return np.concatenate([none, rows, more])


def with_barriers(plan: Plan, operations: Sequence[Operation]) -> Plan:
    return replace(plan, operations=tuple(place_barriers(list(operations))))


@pytest.mark.parametrize("name", ALL)
def test_each_pass_keeps_every_bit(name: str, tmp_path: Path) -> None:
    path, plain, optimized = plans(name, tmp_path)
    wanted = output(path, with_barriers(plain, plain.operations), threads=1)
    assert np.isfinite(wanted).all()
    seen = [list(plain.operations)]
    for rewrite in PASSES:
        operations = rewrite(list(plain.operations))
        if operations not in seen:
            seen.append(operations)
            np.testing.assert_array_equal(output(path, with_barriers(plain, operations)), wanted)
    early = pick_early(plain)
    np.testing.assert_array_equal(output(path, with_barriers(early, early.operations)), wanted)
    np.testing.assert_array_equal(output(path, optimized), wanted)


@pytest.mark.parametrize("name", ["q8_0", "gemma2", "qwen2", "olmo2", "opt", "lfm2"])
def test_most_tokens_skip_the_last_feedforward(name: str, tmp_path: Path) -> None:
    _, _, plan = plans(name, tmp_path)
    blocks = [op for op in plan.operations if op.stage.startswith("blocks.")]
    last = ".".join(blocks[-1].stage.split(".")[:2])
    rows = {op.rows for op in blocks if op.stage.startswith(f"{last}.feedforward")}
    assert rows == {"outputs"}
    assert {op.rows for op in blocks if not op.stage.startswith(f"{last}.feedforward")} == {"tokens"}


def test_passes_make_plans_shorter(tmp_path: Path) -> None:
    lengths = {name: [len(plan.operations) for plan in plans(name, tmp_path)[1:]] for name in ALL}
    assert all(after <= before for before, after in lengths.values())
    _, _, fused = plans("q8_0", tmp_path)
    assert "quantize" not in {op.kernel.name for op in fused.operations}
    assert "add" not in {op.kernel.name for op in fused.operations}
    assert "out" not in fused.buffers, "what nothing uses takes no memory"


PLAN_OF_FILE = """
import sys
from pathlib import Path
from pellucid import pipeline
from pellucid.model.read import read_model
from pellucid.plan.bind import layouts, packers
from pellucid.weights.open import open_checkpoint

checkpoint = open_checkpoint(Path(sys.argv[1]))
model = read_model(checkpoint)
plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 8)
print(plan.operations, plan.buffers, plan.points, packers(checkpoint, model, plan))
"""


def test_a_plan_does_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PLAN_OF_FILE, str(path_of("q8_0", tmp_path))]
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    first, second = (subprocess.check_output(command, env=environment) for environment in environments)
    assert first == second


def hazards(operations: Sequence[Operation], lone: bool) -> list[tuple[str, str]]:
    """Pairs of operations without a barrier in between: one writes a buffer that the other reads or writes.

    ``lone`` is a step with a single row, otherwise the step has several rows.
    """
    found: list[tuple[str, str]] = []
    running: list[Operation] = []
    for op in operations:
        for other in running:
            for buffer in {*op.reads, *op.writes} & {*other.reads, *other.writes}:
                if buffer not in {*op.writes, *other.writes}:
                    continue
                mine, others = op.partitions.get(buffer), other.partitions.get(buffer)
                own = mine is not None and mine == others and (lone or mine != REPLICATED)
                if not own:
                    found.append((other.stage, op.stage))
        running.append(op)
        if op.barrier == "always" or (op.barrier == "rows" and not lone):
            running = []
    return found


def check_barriers(operations: Sequence[Operation]) -> None:
    """Check that there is no hazard, and that removing any single barrier causes a hazard."""
    assert hazards(operations, True) == hazards(operations, False) == []
    for i, op in enumerate(operations):
        if op.barrier != "none":
            without = [*operations[:i], replace(op, barrier="none"), *operations[i + 1 :]]
            assert hazards(without, False) != [], op.stage
        if op.barrier == "always":
            weaker = [*operations[:i], replace(op, barrier="rows"), *operations[i + 1 :]]
            assert hazards(weaker, True) != [], op.stage


@pytest.mark.parametrize("name", ALL)
def test_barriers_are_enough_and_none_is_too_many(name: str, tmp_path: Path) -> None:
    _, plain, optimized = plans(name, tmp_path)
    for operations in (optimized.operations, place_barriers(list(plain.operations))):
        check_barriers(operations)
        assert {op.barrier for op in operations} <= {"none", "rows", "always"}
        assert any(op.barrier == "always" for op in operations)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("counts", [[1], [5], [1, 1, 3]])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])  # each thread before and after the others
def test_threads_that_wait_at_barriers_only_give_the_same(
    name: str, counts: list[int], order: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two barriers each thread runs all of its operations before the next thread runs its first."""
    path, _, plan = plans(name, tmp_path)
    with model_runner(path, plan, threads=3, context=64 * 8) as net:
        starts = [CacheSequence() for _ in counts]
        for start, sequence in enumerate(starts):
            net.forward([Chunk(sequence, IDS[start : start + 4])])
        forks = [net.cache.fork(sequence) for sequence in starts]
        wanted = net.forward([Chunk(s, IDS[:n]) for s, n in zip(forks, counts)]).copy()
        net.cache.release(*forks)
        chunks = [Chunk(s, IDS[:n]) for s, n in zip(starts, counts)]
        for buffer in plan.buffers:
            net.array(buffer).view(np.uint8)[...] = 255  # NaN
        runs = list[int]()

        def run_on(threads: int, program: Program, step: NDArray[np.int64]) -> tuple[int, float]:
            assert len(program.records) == len(plan.operations)
            segment: list[int] = []
            for i, op in enumerate(plan.operations):
                segment.append(i)
                rows = {"tokens": sum(counts), "outputs": len(counts), "sequences": len(counts)}[op.rows]
                last = i + 1 == len(plan.operations)
                if last or op.barrier == "always" or (op.barrier == "rows" and rows != 1):
                    for thread in order:
                        for j in segment:
                            native = shared().function(plan.operations[j].kernel)
                            native(program.records[j].ctypes.data, step.ctypes.data, thread, 3)
                    segment = []
            runs.append(threads)
            return 0, 1e-3

        monkeypatch.setattr(net.executor, "run_on", run_on)
        np.testing.assert_array_equal(net.forward(chunks), wanted)
        assert len(runs) == 1


some_buffers = st.lists(st.sampled_from("abcd"), max_size=3).map(tuple)


some_shares = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["columns", "heads", REPLICATED]))


@given(st.lists(st.tuples(some_buffers, some_buffers, some_shares), max_size=12))
def test_barriers_of_any_list_of_operations(
    touched: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]],
) -> None:
    operations = [
        Operation(f"stage.{i}", KernelKey("add"), {}, reads, writes, partitions=partitions)
        for i, (reads, writes, partitions) in enumerate(touched)
    ]
    check_barriers(place_barriers(operations))


def cached(value: Cache) -> str:
    """Name of a page or of a part of a state in the reads and writes of operations."""
    of_state = value.part not in ("keys", "values")
    return f"cache.{value.layer}.{value.part}" if of_state else f"cache.{value.layer}"


@pytest.mark.parametrize("name", ALL)
def test_operations_declare_what_their_records_point_to(name: str, tmp_path: Path) -> None:
    """Barriers follow from reads and writes, so these must name every buffer and page that a kernel touches."""
    _, plain, optimized = plans(name, tmp_path)
    for plan in (plain, optimized):
        for op in plan.operations:
            values = op.fields.values()
            touched = {v.buffer for v in values if isinstance(v, At)}
            touched |= {cached(v) for v in values if isinstance(v, Cache)}
            assert touched == {*op.reads, *op.writes}, op.stage
            for field in ("out", "quantized"):
                if isinstance(target := op.fields.get(field), At):
                    assert target.buffer in op.writes, op.stage


@pytest.mark.parametrize("name", ALL)
def test_everything_is_written_before_it_is_read(name: str, tmp_path: Path) -> None:
    _, plain, optimized = plans(name, tmp_path)
    for plan in (plain, optimized):
        written: set[str] = set()
        for op in plan.operations:
            states = {cached(v) for v in op.fields.values() if isinstance(v, Cache)}  # of earlier steps
            assert set(op.reads) - states <= written, op.stage
            written |= set(op.writes)
        assert plan.output in written
        assert {name for name in written if not name.startswith("cache.")} <= set(plan.buffers)
