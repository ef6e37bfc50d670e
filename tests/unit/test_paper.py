"""Shapes on paper: their numbers of parameters equal the publications, and each has a plan."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.tiny import TINY

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.measure.cost import Rates, attention_costs, state_bytes
from pellucid.measure.paper import on_paper, paper_model, paper_shapes
from pellucid.model.read import read_model
from pellucid.model.shapes import expected_shapes
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

PUBLISHED = {  # parameters and active parameters per token, in millions
    "gpt2": (124.44, 124.44),
    "gpt2-medium": (354.82, 354.82),
    "gpt2-large": (774.03, 774.03),
    "gpt2-xl": (1557.61, 1557.61),
    "gpt3-175b": (174_600, 174_600),
    "llama-3.2-1b": (1_235.8, 1_235.8),
    "llama-3-8b": (8_030.3, 7_504.9),
    "llama-3-70b": (70_553.7, 69_503),
    "llama-3-405b": (405_853, 403_752),
    "qwen2.5-1.5b": (1_543.7, 1_543.7),
    "qwen2.5-7b": (7_615.6, 7_070.6),
    "qwen3-8b": (8_190.7, 7_568.4),
    "qwen3-30b-a3b": (30_532, 3_042),
    "qwen3-235b-a22b": (235_094, 21_572),
    "mixtral-8x7b": (46_702.8, 12_748.5),
    "olmoe-1b-7b": (6_919, 1_180),
    "gpt-oss-20b": (20_914.8, 3_609),
    "gpt-oss-120b": (116_829, 5_132),
    "glm-4.5-air": (106_850, 12_700),
    "lfm2-1.2b": (1_170.34, 1_170.34),
    "deepseek-v2-lite": (15_706.5, 2_451),
    "deepseek-v3": (671_026, 37_000),
}
ROUNDED = {"qwen3.5-0.8b": 800, "qwen3-next-80b-a3b": 80_000, "granite-4.0-h-tiny": 7_000, "llama-4-scout": 109_000}
"""Models whose number of parameters is only published as a rounded number, in millions."""


@pytest.mark.parametrize("name", paper_shapes())
def test_a_shape_has_the_published_parameters(name: str) -> None:
    made = paper_model(name)
    if name in ROUNDED:
        assert made.parameters / 1e6 == pytest.approx(ROUNDED[name], rel=0.1)
    else:
        every, active = PUBLISHED[name]
        assert made.parameters / 1e6 == pytest.approx(every, rel=2e-3)
        assert made.active / 1e6 == pytest.approx(active, rel=2e-2)
    assert len(made.plan.layers) == len(made.spec.blocks)
    assert made.file_bytes["F16"] == pytest.approx(2 * made.parameters, rel=1e-2)


def test_a_recurrent_layer_keeps_a_state_instead_of_tokens() -> None:
    made = paper_model("qwen3.5-0.8b")
    memory, convolution = 16 * 128 * 128, 3 * (2 * 16 * 128 + 16 * 128)
    assert made.state_bytes == 18 * 4 * (memory + convolution)
    assert made.token_bytes == 6 * 2 * 2 * 256 * 2
    assert paper_model("llama-3-8b").state_bytes == 0


def test_a_layer_with_a_window_keeps_no_more_than_its_window() -> None:
    made, layer = paper_model("llama-4-scout"), 2 * 8 * 128 * 2
    assert made.token_bytes == 48 * layer
    assert made.context_bytes == 12 * layer * made.spec.context + 36 * layer * 8192
    full = paper_model("llama-3-8b")
    assert full.context_bytes == full.token_bytes * full.spec.context


def test_a_token_reads_and_multiplies_what_it_uses() -> None:
    made = paper_model("llama-3-8b")
    assert made.token_bytes == 32 * 2 * 8 * 128 * 2
    assert made.multiply_adds == pytest.approx(made.active, rel=1e-3)
    assert made.read_bytes == pytest.approx(made.active * 4.5 / 8, rel=0.05)
    fast = Rates(read=made.read_bytes * 100.0, multiply=made.multiply_adds * 1000.0)
    assert made.decode(fast) == pytest.approx(100)
    assert made.prefill(fast) == pytest.approx(1000)
    assert made.decode(Rates(read=1e30, multiply=made.multiply_adds * 7.0)) == pytest.approx(7)


def test_of_a_table_of_layers_a_token_uses_a_row(tmp_path: Path) -> None:
    random_model("gemma3n", tmp_path / "model", kind="safetensors")
    made = paper_model(str(tmp_path / "model" / "config.json"))
    rows, width = expected_shapes(made.spec)["per_layer.embed.weight"]
    assert made.parameters - made.active == (rows - 1) * width  # ``embed.weight`` is the output projection too


def test_keys_and_values_by_hand() -> None:
    """GPT-3 keeps and reads 96 layers of 96 heads of 128 keys and 128 values in 16 bits."""
    made = paper_model("gpt3-175b")
    token = 96 * 96 * (128 + 128) * 2
    assert made.token_bytes == token == 4_718_592
    assert made.cache_description == "96 layers x 96 heads x (128 + 128) f16"
    rates = Rates(read=220e9, multiply=1e18)
    apart = 1 / made.decode(rates, 1500) - 1 / made.decode(rates, 50)
    assert apart == pytest.approx(1450 * token / 220e9)
    assert apart == pytest.approx(0.031, rel=0.01)


def test_a_latent_vector_is_kept_as_key_and_as_value() -> None:
    """DeepSeek-V3 keeps 512 values of the latent vector, 64 rotated values, and the latent vector again as value."""
    made = paper_model("deepseek-v3")
    assert made.token_bytes == 61 * (512 + 64 + 512) * 2
    assert made.cache_description.startswith(
        "61 layers x 1 heads x (576 + 512) bf16; a key is the latent vector and the"
    )
    (cost,) = attention_costs(made.plan)
    assert cost.nbytes == made.token_bytes
    assert cost.multiply_adds == 61 * 128 * (576 + 512)


def test_a_window_limits_what_is_read() -> None:
    made, layer = paper_model("gpt-oss-20b"), 8 * (64 + 64) * 2
    found = {cost.window: cost.nbytes for cost in attention_costs(made.plan)}
    assert found == {128: 12 * layer, 0: 12 * layer}
    rates = Rates(read=1e9, multiply=1e18)
    seconds = [1 / made.decode(rates, seen) for seen in (0, 100, 128, 1000)]
    assert np.diff(seconds) == pytest.approx([100 * 24 * layer / 1e9, 28 * 24 * layer / 1e9, 872 * 12 * layer / 1e9])


def test_a_state_is_read_and_written() -> None:
    made = paper_model("qwen3.5-0.8b")
    assert state_bytes(made.plan) == 2 * made.state_bytes


GOLDENS = Path(__file__).parents[1] / "goldens" / "model"
# Folders of sentence-transformers have a config.json for each module; the model's own has a type.
CONFIGS = [path for path in sorted(GOLDENS.rglob("config.json")) if "model_type" in json.loads(path.read_text())]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: "/".join(file.parts[-3:-1]))
def test_any_configuration_can_be_planned(file: Path) -> None:
    made = paper_model(str(file))
    assert made.parameters >= made.active > 0
    assert made.plan.operations
    assert made.file_bytes["F16"] >= 2 * made.parameters


@pytest.mark.parametrize("name", [name for name in TINY if name in ("llama", "mixtral", "gemma3", "gpt2")])
def test_a_configuration_has_the_parameters_of_its_model(name: str) -> None:
    with contextlib.closing(open_checkpoint(TINY[name])) as checkpoint:
        shapes = expected_shapes(read_model(checkpoint).spec)
    assert paper_model(str(TINY[name] / "config.json")).parameters == sum(map(math.prod, shapes.values()))


def test_what_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, message in (
        ("[1]", "must be a JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "model_type: missing"),
        ('{"model_type": "llama", "hidden_size": -1}', "hidden_size: is -1"),
    ):
        file.write_text(text)
        with pytest.raises(FileFormatError, match=message):
            paper_model(str(file))
    file.write_text('{"model_type": "zork"}')
    assert on_paper(str(tmp_path))
    with pytest.raises(UnsupportedModel, match="architecture 'zork' is not supported"):
        paper_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not on_paper(str(tmp_path)), "a folder with weights is a model"
    assert on_paper(str(file))
