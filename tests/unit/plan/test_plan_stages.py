"""A plan is data with stable stage names, which users trace and edit."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest
from plan_cases import ALL, plans
from support.schedule import write_quantised_llama
from support.tiny import TINY, opened

from pellucid import pipeline
from pellucid.kernels.core.definitions import definition
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.plan.bind import layouts
from pellucid.testing import random_model

START = {"llama": "embed position.angles", "gemma3": "embed position.angles.0 position.angles.1"}
START["bert"] = "embed embed.types position embed.norm"
END = {"llama": "pick norm project", "gemma3": "pick norm project", "bert": "pool normalize"}
BLOCK = {
    "llama": """
        attention.norm attention.q attention.k attention.v attention.q_rotary attention.k_rotary attention.cache
        attention.attend attention.output attention.residual
        feedforward.norm feedforward.gate feedforward.up feedforward.hidden feedforward.down feedforward.residual
    """,
    "gemma3": """
        attention.norm attention.q attention.k attention.v attention.q_norm attention.k_norm attention.q_rotary
        attention.k_rotary attention.cache attention.attend attention.output attention.post_norm attention.residual
        feedforward.norm feedforward.gate feedforward.up feedforward.hidden feedforward.down feedforward.post_norm
        feedforward.residual
    """,
    "bert": """
        attention.q attention.k attention.v attention.cache attention.attend attention.output attention.residual
        attention.norm
        feedforward.up feedforward.hidden feedforward.down feedforward.residual feedforward.norm
    """,
}
FUSED = {"llama": {"attention.output", "feedforward.down"}, "gemma3": set(), "bert": set()}


@pytest.mark.parametrize("family", BLOCK)
def test_names_of_the_stages(family: str, tmp_path: Path) -> None:
    _, plain, optimized = plans(family, tmp_path)
    layers = 1 + max(int(op.stage.split(".")[1]) for op in plain.operations if op.stage.startswith("blocks."))
    for plan, gone in ((plain, set()), (optimized, FUSED[family])):
        inside = [part for part in BLOCK[family].split() if part not in gone]
        blocks = [f"blocks.{layer}.{part}" for layer in range(layers) for part in inside]
        stages, wanted = [op.stage for op in plan.operations], [*blocks, *END[family].split()]
        if plan is optimized and "pick" in wanted:  # in front of the last feed-forward
            wanted.remove("pick")
            wanted.insert(wanted.index(f"blocks.{layers - 1}.feedforward.norm"), "pick")
        assert stages == [*START[family].split(), *wanted]


@pytest.mark.parametrize("name", ALL)
def test_a_stage_names_the_value_that_is_written_in_every_plan(name: str, tmp_path: Path) -> None:
    """Fusion moves no name: the value that a stage writes has the same name with and without passes.

    Only its rows may differ: an optimized plan may keep the output rows alone.
    """
    _, plain, optimized = plans(name, tmp_path)
    written = {op.stage: op.writes[0] for op in plain.operations}
    rows = {op.stage: op.rows for op in plain.operations}
    for op in optimized.operations:
        of = written[op.stage]
        picked = "picked" if of == "x" else f"outputs.{of}"
        assert op.writes[0] == (of if op.rows == rows[op.stage] else picked)
        assert all(stage in written for stage in op.includes)
    assert {op.writes[0] for op in optimized.operations if op.stage.endswith(".residual")} <= {"x", "picked"}


@pytest.mark.parametrize("name", ALL)
def test_no_two_stages_share_a_name(name: str, tmp_path: Path) -> None:
    for plan in plans(name, tmp_path)[1:]:
        stages = [op.stage for op in plan.operations]
        assert len(set(stages)) == len(stages)


def test_stages_of_soft_caps_and_quantised_activations(tmp_path: Path) -> None:
    _, _, capped = plans("gemma3-softcap", tmp_path)
    assert capped.operations[-1].stage == "project.softcap"
    _, plain, _ = plans("q8_0", tmp_path)
    assert [op.stage for op in plain.operations if op.kernel.name == "quantize"] == [
        "blocks.0.attention.q_quantize",
        "blocks.0.attention.output_quantize",
        "blocks.0.feedforward.gate_quantize",
        "blocks.0.feedforward.down_quantize",
        "project_quantize",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_plan_is_plain_data(name: str, tmp_path: Path) -> None:
    path, plain, optimized = plans(name, tmp_path)
    assert plans(name, tmp_path) == (path, plain, optimized), "made again, it is the same"
    for plan in (plain, optimized):
        assert copy.deepcopy(plan) == plan
        assert pickle.loads(pickle.dumps(plan)) == plan
        for op in plan.operations:
            ast.parse(repr(op), mode="eval")  # names and numbers, no objects
            record = definition(op.kernel.name).record
            assert record is not None
            assert set(op.fields) == set(record.fields), op.stage
            assert str(op.kernel).startswith(op.kernel.name)


def test_what_keys_and_values_are_kept_in(tmp_path: Path) -> None:
    """float32 if precise; an explicit form overrides it; otherwise the form that suits the layer's weights."""
    quantised = write_quantised_llama(tmp_path / "tiny.gguf", "Q8_0")
    biased = random_model("qwen2", tmp_path / "biased.gguf", form="Q8_0")
    for path, usual in ((TINY["llama"], "f16"), (quantised, "bf16"), (biased, "f16")):
        with opened(path) as (checkpoint, model):
            packed = layouts(checkpoint, model)
            for activation_bits, asked, stored in (
                (MAX_ACTIVATION_BITS, None, "f32"),
                (MAX_ACTIVATION_BITS, "f16", "f16"),
                (8, None, usual),
                (8, "f32", "f32"),
            ):
                plan = pipeline.build_plan(model.spec, packed, activation_bits, asked)
                assert {layer.kv_dtype for layer in plan.layers} == {stored}
