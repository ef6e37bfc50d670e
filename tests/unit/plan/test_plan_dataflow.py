"""The dataflow of a plan: which points each point is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from plan_cases import ALL, plans

from pellucid.plan.dataflow import Dataflow, dataflow

ATTENTION = {
    "attention.norm": ["^residual"],
    "attention.q": ["attention.norm"],
    "attention.k": ["attention.norm"],
    "attention.v": ["attention.norm"],
    "attention.q_rotary": ["attention.q", "^position.angles"],
    "attention.k_rotary": ["attention.k", "^position.angles"],
    "attention.scores": ["attention.q_rotary", "attention.k_rotary"],
    "attention.pattern": ["attention.scores"],
    "attention.heads": ["attention.pattern", "attention.v"],
    "attention.output": ["attention.heads"],
    "attention.residual": ["^residual", "attention.output"],
}
GATED = {
    "feedforward.norm": ["attention.residual"],
    "feedforward.gate": ["feedforward.norm"],
    "feedforward.up": ["feedforward.norm"],
    "feedforward.hidden": ["feedforward.gate", "feedforward.up"],
    "feedforward.output": ["feedforward.hidden"],
}
ENDS = {"feedforward.residual": ["attention.residual", "feedforward.output"], "residual": ["feedforward.residual"]}
MIXTURE = {
    "feedforward.norm": ["attention.residual"],
    "feedforward.router": ["feedforward.norm"],
    "feedforward.experts": ["feedforward.router"],
    "feedforward.expert_weights": ["feedforward.router"],
    "feedforward.experts.gate": ["feedforward.norm", "feedforward.experts"],
    "feedforward.experts.up": ["feedforward.norm", "feedforward.experts"],
    "feedforward.experts.hidden": ["feedforward.experts.gate", "feedforward.experts.up"],
    "feedforward.experts.output": ["feedforward.experts.hidden", "feedforward.experts"],
    "feedforward.output": ["feedforward.experts.output", "feedforward.experts", "feedforward.expert_weights"],
}
PARALLEL = {
    "feedforward.up": ["attention.norm"],
    "feedforward.hidden": ["feedforward.up"],
    "feedforward.output": ["feedforward.hidden"],
}
RECURRENT = {
    "recurrent.norm": ["^residual"],
    "recurrent.b": ["recurrent.norm"],
    "recurrent.c": ["recurrent.norm"],
    "recurrent.x": ["recurrent.norm"],
    "recurrent.product": ["recurrent.b", "recurrent.x"],
    "recurrent.state.x": ["recurrent.product"],
    "recurrent.conv": ["recurrent.product"],
    "recurrent.gated": ["recurrent.c", "recurrent.conv"],
    "recurrent.output": ["recurrent.gated"],
    "recurrent.residual": ["^residual", "recurrent.output"],
    "feedforward.norm": ["recurrent.residual"],
    **{name: inputs for name, inputs in GATED.items() if name != "feedforward.norm"},
    "feedforward.residual": ["recurrent.residual", "feedforward.output"],
    "residual": ["feedforward.residual"],
}
KNOWN: Mapping[str, tuple[dict[str, list[str]], ...]] = {
    "llama": ({**ATTENTION, **GATED, **ENDS},),
    "mixtral": ({**ATTENTION, **MIXTURE, **ENDS},),
    "falcon": ({**ATTENTION, **PARALLEL, **ENDS},),
    "lfm2": (RECURRENT,),
}


def inputs_of(graph: Dataflow) -> dict[str, list[str]]:
    """The inputs of each point of the plan, with whole names."""
    found = {source.name: list(source.inputs) for source in graph.rest}
    for layer, kind in enumerate(graph.blocks):
        own, before = f"blocks.{layer}.", f"blocks.{layer - 1}."
        for source in graph.kinds[kind]:
            inputs = []
            for name in source.inputs:
                if name == "^residual":
                    inputs.append(f"{before}residual" if layer else graph.stream)
                elif name.startswith("^^"):
                    inputs.append(before + name[2:])
                else:
                    inputs.append(name[1:] if name.startswith("^") else own + name)
            found[own + source.name] = inputs
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_point_comes_from_earlier_points(name: str, tmp_path: Path) -> None:
    _, plain, optimized = plans(name, tmp_path)
    graph = dataflow(optimized)
    found = inputs_of(graph)
    assert set(found) == set(plain.points)
    assert sum(len(graph.kinds[kind]) for kind in graph.blocks) + len(graph.rest) == len(plain.points)
    ancestors: dict[str, set[str]] = {}
    for point in plain.points:  # in the order of the pipeline: an input that comes later would be a circle
        assert all(other in ancestors for other in found[point]), point
        ancestors[point] = {point}.union(*(ancestors[other] for other in found[point]))
        if point.endswith("residual") or point.startswith(("norm", "project.", "pool")):
            assert "embed" in ancestors[point], point
        if not found[point]:
            assert point in ("embed", "per_layer.embed") or point.startswith("position.angles"), point
    last = ancestors[list(plain.points)[-1]]
    missing = {point for point in plain.points if point not in last}
    # No operation reads a state in the same step. A DeltaNet reads the decay, but not the step, of one operation.
    assert all(".state." in point or point.endswith(".step_softplus") for point in missing), missing
    stages = [op.stage for op in plain.operations if op.kernel.name != "quantize"]
    assert len(set(stages)) == len(stages)


@pytest.mark.parametrize("name", ALL)
def test_the_weights_of_a_plan_are_those_of_its_points(name: str, tmp_path: Path) -> None:
    _, _, optimized = plans(name, tmp_path)
    graph = dataflow(optimized)
    sources = [*graph.rest, *(source for kind in graph.blocks for source in graph.kinds[kind])]
    assert sum(source.bytes for source in sources) == optimized.weight_bytes
    assert sum(source.multiply_adds for source in sources) == sum(op.multiply_adds for op in optimized.operations)
    printed = {str(op.kernel) for op in optimized.operations} | {"add", ""}
    assert {source.kernel for source in sources} <= printed


@pytest.mark.parametrize("name", KNOWN)
def test_inputs_of_known_blocks(name: str, tmp_path: Path) -> None:
    _, _, optimized = plans(name, tmp_path)
    graph = dataflow(optimized)
    for kind, known in zip(graph.kinds, KNOWN[name]):
        assert {source.name: list(source.inputs) for source in kind} == known
    assert graph.stream == "embed"


def test_a_document_has_one_description_for_equal_blocks(tmp_path: Path) -> None:
    _, _, optimized = plans("llama", tmp_path)
    document = dataflow(optimized).as_dict()
    assert document["blocks"] == [0, 0]
    assert document["stream"] == "embed"
    (kind,) = document["kinds"]
    by_name = {point["name"]: point for point in kind["points"]}
    assert by_name["attention.q"] == {
        "name": "attention.q",
        "kernel": "matmul_float f32",
        "shape": "(T, 64) x (64, 64)ᵀ",
        "bytes": 16384,
        "multiply_adds": 4096,
        "inputs": ["attention.norm"],
    }
    assert by_name["feedforward.output"]["stage"] == "feedforward.down"
    rest = {point["name"]: point for point in document["rest"]}
    assert rest["norm"]["inputs"] == ["blocks.1.residual"]
    assert rest["project.logits"]["bytes"] == 4 * 64 * 128


def test_a_sum_in_a_product_keeps_its_kernel(tmp_path: Path) -> None:
    _, _, optimized = plans("q8_0", tmp_path)
    (kind,) = dataflow(optimized).kinds
    kernels = {source.name: source.kernel for source in kind}
    assert kernels["attention.residual"] == "add"
    assert kernels["attention.output"].startswith("matmul_int8 ")
    assert any(op.label.endswith("attention.output+residual") for op in optimized.operations)
