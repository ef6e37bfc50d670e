"""Edited copies of a prompt have the bits of requests with the same edits, for tiny models of all families."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny import OF_FAMILY, TINY, model_runner

from pellucid.engine.edited_copies import EditedCopies, EditedCopy
from pellucid.engine.model_runner import ModelRunner
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.edits import Edit, ablate, add, call, mask, replace, scale
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.trace.trace import Trace

LENGTH = 37
MODELS = {**TINY, **OF_FAMILY}
CASES = [(name, 24) for name in sorted(MODELS)] + [(name, 8) for name in ("llama", "qwen3_next", "gemma3n")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def runner(request: pytest.FixtureRequest):
    name, activation_bits = request.param
    with model_runner(MODELS[name], threads=2, activation_bits=activation_bits) as found:
        if not found.spec.generates or found.spec.encoder:
            pytest.skip("no language model without an encoder")
        yield found


def recorder_of(runner: ModelRunner, ids: Sequence[int], edits: Sequence[Edit]) -> SequenceRecorder:
    (recorder,) = Trace(runner.plan.points, (), edits).watching().begin(ids, first_output=len(ids) - 1)
    return recorder


def alone(runner: ModelRunner, ids: Sequence[int], edits: Sequence[Edit]) -> NDArray[np.float32]:
    """The output of a request with edits."""
    table = BlockTable()
    recorder = recorder_of(runner, ids, edits) if edits else None
    outputs = runner.forward([Chunk(table, list(ids), 1, recorder=recorder)])
    runner.cache.truncate(table, 0)
    return outputs[0].copy()


def copies_of(
    runner: ModelRunner, ids: Sequence[int], copies: Sequence[Sequence[Edit]], base: Sequence[Edit] = ()
) -> dict[int, NDArray[np.float32]]:
    made = []
    for edits in copies:
        own = recorder_of(runner, ids, edits)
        both = recorder_of(runner, ids, [*base, *edits]) if base else own
        first = len(ids) if own.first_changed is None else own.first_changed
        made.append(EditedCopy(both, own.watch, first))
    of_prompt = recorder_of(runner, ids, base) if base else None
    run = EditedCopies(runner, list(ids), made, of_prompt).run()
    return {number: row.copy() for outputs in run for number, row in outputs}


def edits_of(runner: ModelRunner, rng: np.random.Generator) -> list[list[Edit]]:
    """Edits of every kind, at random layers and positions."""
    blocks, points = len(runner.spec.blocks), runner.plan.points
    width, copies = runner.spec.embedding.width, [list[Edit]()]
    for layer in range(blocks):
        at = int(rng.integers(1, LENGTH))
        name = f"blocks.{layer}.residual"
        vector = rng.standard_normal(width).astype(np.float32)
        copies += [[add(f"{name}[tokens={at}]", vector)], [scale(f"{name}[tokens={at}:]", 0.5)]]
        copies.append([call(f"{name}[tokens=-1]", lambda values: values * np.float32(0.25))])
        if f"blocks.{layer}.attention.heads" in points:
            copies.append([ablate(f"blocks.{layer}.attention.heads[heads=0; tokens={at}:]")])
        if f"blocks.{layer}.attention.scores" in points:
            copies.append([mask(f"blocks.{layer}.attention.scores[tokens=-1; keys={LENGTH - 1}]")])
            first = np.eye(1, LENGTH, LENGTH - 1, dtype=np.float32)[0]
            copies.append([replace(f"blocks.{layer}.attention.pattern[heads=0; tokens=-1]", first)])
    copies.append([scale("blocks.0.residual[tokens=3]", 2.0), scale(f"blocks.{blocks - 1}.residual[tokens=9:]", 0.5)])
    copies.append([scale("embed[tokens=2:5]", 1.5)])
    copies.append([add("project.logits[tokens=-1; dims=3]", [2.0])])
    return [copies[number] for number in rng.permutation(len(copies))]


def test_copies_have_the_bits_of_requests(runner: ModelRunner) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, runner.spec.embedding.vocabulary, LENGTH).tolist()
    copies = edits_of(runner, rng)
    found = copies_of(runner, ids, copies)
    assert sorted(found) == list(range(-1, len(copies)))
    plain = alone(runner, ids, [])
    assert found[-1].tobytes() == plain.tobytes()
    changed = 0
    for number, edits in enumerate(copies):
        assert found[number].tobytes() == alone(runner, ids, edits).tobytes(), edits
        changed += found[number].tobytes() != plain.tobytes()
    assert changed > len(copies) // 2
    runner.cache.clear_prefixes()
    assert runner.cache.kv.free_pages == runner.cache.kv.pages


def test_a_prompt_with_edits_of_its_own(runner: ModelRunner) -> None:
    rng = np.random.default_rng(4)
    ids = rng.integers(0, runner.spec.embedding.vocabulary, LENGTH).tolist()
    base, copies = [scale("embed[tokens=20:]", 3.0)], edits_of(runner, rng)[:8]
    found = copies_of(runner, ids, copies, base)
    assert found[-1].tobytes() == alone(runner, ids, base).tobytes() != alone(runner, ids, []).tobytes()
    for number, edits in enumerate(copies):
        assert found[number].tobytes() == alone(runner, ids, [*base, *edits]).tobytes(), edits
    runner.cache.clear_prefixes()
    assert runner.cache.kv.free_pages == runner.cache.kv.pages
