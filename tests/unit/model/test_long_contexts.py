"""Positions beyond the original context (tests/oracles/long_oracle.py)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.tiny import LONG, TINY, model_runner, opened, table_for

import pellucid
from pellucid import pipeline
from pellucid.errors import ContextOverflow, InvalidRequest, UnsupportedModel
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.positions import Rotary, RotaryScaling
from pellucid.plan.bind import layouts
from pellucid.plan.position import inverse_frequencies
from pellucid.runtime.batch import Chunk
from pellucid.testing import random_model

PARTS = (37, 64, 1)  # tokens per step, in turn


@pytest.mark.parametrize("name", LONG)
def test_logits_of_a_long_text(name: str) -> None:
    with np.load(LONG[name] / "expected.npz") as file:
        ids, rows, wanted = file["input_ids"].tolist(), file["rows"], file["logits"]
    with opened(LONG[name]) as (checkpoint, model):
        spec = replace(model.spec, context=len(ids))
        plan = pipeline.build_plan(spec, layouts(checkpoint, model), MAX_ACTIVATION_BITS)
    with model_runner(LONG[name], plan, threads=2, context=len(ids)) as net:
        table, got, done, at = table_for(spec, len(ids)), [], 0, 0
        while done < len(ids):
            part = ids[done : done + PARTS[at % len(PARTS)]]
            got.append(net.forward([Chunk(table, part, outputs=len(part))]).copy())
            done, at = done + len(part), at + 1
    np.testing.assert_allclose(np.concatenate(got)[rows], wanted, rtol=0, atol=1e-4)


def test_a_scaling_reaches_beyond_the_context_that_the_file_states() -> None:
    reach = {}
    for name in LONG:
        with opened(LONG[name]) as (_, model):
            reach[name] = (model.spec.context, model.spec.max_context)
    assert reach == {
        "bloom": (512, 512),
        "falcon": (1024, 1024),
        "falcon-grouped": (1024, 1024),
        "llama-dynamic": (64, 256),
        "llama-linear": (64, 256),
        "llama-yarn": (64, 256),
        "mpt": (512, 512),
    }


@pytest.mark.parametrize(
    ("name", "context"), [("gemma3-linear", 256), ("phi3-long", 256), ("llama-rope3", 256), ("gpt_oss", 256)]
)
def test_a_context_that_is_stated_with_its_scaling_is_the_longest(name: str, context: int) -> None:
    with opened(TINY[name]) as (_, model):
        assert (model.spec.context, model.spec.max_context) == (context, context)


def test_up_to_the_original_context_dynamic_frequencies_are_the_plain_ones() -> None:
    scaling = RotaryScaling("dynamic", 4.0, trained_context=64)
    plain = inverse_frequencies(Rotary(10_000.0, 16, "half"), 64)
    for context in (1, 63, 64):
        assert inverse_frequencies(Rotary(10_000.0, 16, "half", scaling), context) == plain
    assert inverse_frequencies(Rotary(10_000.0, 16, "half", scaling), 65) != plain
    with pytest.raises(UnsupportedModel, match="'dynamic' needs at least 4 rotated values of a head; the model has 2"):
        inverse_frequencies(Rotary(10_000.0, 2, "half", scaling), 65)


@given(
    st.floats(1.5, 1e7), st.sampled_from([4, 16, 64, 128]), st.floats(1.0, 40.0), st.integers(1, 1 << 20),
    st.integers(1, 1 << 22),
)  # fmt: skip
def test_dynamic_frequencies_are_those_of_a_larger_base(
    base: float, dims: int, factor: float, trained: int, context: int
) -> None:
    """transformers' formula, in float64."""
    length = max(context, trained)
    larger = base * ((factor * length / trained) - (factor - 1)) ** (dims / (dims - 2))
    wanted = 1 / larger ** (np.arange(0, dims, 2) / dims)
    scaling = RotaryScaling("dynamic", factor, trained_context=trained)
    got = inverse_frequencies(Rotary(base, dims, "half", scaling), context)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_a_model_is_loaded_with_a_context_beyond_the_one_of_its_file(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    path = random_model("llama", tmp_path / "m", kind="safetensors", metadata={"rope_parameters": rope}, context=64)
    text = list(range(3, 93))
    with pellucid.load(path) as usual, pytest.raises(ContextOverflow, match=r"the context is 64 .*\(up to 128\)"):
        usual.generate(text, max_new_tokens=4)
    with pytest.raises(InvalidRequest, match="context=129"):
        pellucid.load(path, context=129)
    with pellucid.load(path, context=100) as longer:
        assert longer.generate(text, max_new_tokens=4, ignore_eos=True).usage.generated_tokens == 4


@pytest.mark.parametrize("mscale", [0.0, 0.8])
def test_yarn_of_latent_attention_scales_scores_and_not_angles(mscale: float, tmp_path: Path) -> None:
    """DeepSeek's ``mscale_all_dim`` (GGUF files state a tenth): scores have the square of its magnitude."""
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_log_multiplier": mscale / 10}
    plain, scaled = (
        random_model("deepseek2", tmp_path / f"{len(own)}.gguf", metadata=own)
        for own in ({}, {f"rope.scaling.{key}": value for key, value in keys.items()})
    )
    with opened(plain) as (_, before), opened(scaled) as (_, after):
        factor = after.spec.attention.scale / before.spec.attention.scale
        magnitude = after.spec.attention.rotary.scaling.magnitude
    assert factor == pytest.approx((0.1 * mscale * math.log(4.0) + 1.0) ** 2)
    assert magnitude == (1.0 if mscale else pytest.approx(0.1 * math.log(4.0) + 1.0))
