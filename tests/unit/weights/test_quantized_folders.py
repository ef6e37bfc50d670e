"""Folders of quantized safetensors that are not read are refused with the name of their method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.metadata import Metadata
from support.tiny import TINY

from pellucid.errors import UnsupportedModel
from pellucid.model.read import read_model
from pellucid.weights.checkpoint import Tensor

LAYER = "model.layers.0.self_attn.q_proj"


def line(folder: Path, config: dict[str, Any], *tensors: str, **files: Any) -> str:
    """The error of a tiny model with more keys, tensors and files."""
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.path = folder
    checkpoint.metadata.update(config)
    for name in tensors:
        checkpoint.tensors[name] = Tensor(name, (8,), "I32", folder, 0, 32)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(UnsupportedModel) as error:
        read_model(checkpoint)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    assert message.endswith("open the unquantized safetensors of this model, or a GGUF file of it")
    return message


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
        ({"quant_method": "AWQ", "bits": 4}, "AWQ"),
        ({"quant_method": "exl2", "version": "0.1.4", "bits": 4.0}, "EXL2"),
        ({"quant_method": "exl3", "bits": 3.5}, "EXL3"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({"quant_method": "new\nmethod"}, r"new\nmethod"),
        ({"bits": 4}, "an unknown method, {'bits': 4}"),
    ],
)
@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "text_config"])
def test_a_method_that_config_json_states(tmp_path: Path, stated: dict[str, Any], method: str, place: str) -> None:
    inner = place == "text_config"
    config = {"text_config": {"quantization_config": stated}} if inner else {place: stated}
    key = "text_config.quantization_config" if inner else place
    assert f"quantized with {method} ({key}), which is not read" in line(tmp_path, config)


@pytest.mark.parametrize(
    ("tensors", "files", "said"),
    [
        (["qweight", "qzeros", "scales"], {"quantize_config": {"bits": 4}}, "GPTQ (quantize_config.json)"),
        (["qweight", "scales"], {"quantize_config": {"quant_method": "awq"}}, "AWQ (quantize_config.json)"),
        (["qweight", "qzeros", "scales"], {"quant_config": {"w_bit": 4}}, "AWQ (quant_config.json)"),
        (["qweight"], {"quantize_config": "no json"}, "GPTQ (quantize_config.json)"),
        (["weight_scale"], {"hf_quant_config": {"quantization": {}}}, "ModelOpt (hf_quant_config.json)"),
        (["trellis", "suh"], {}, f"EXL3 (tensor {LAYER}.trellis)"),
        (["q_weight", "q_scale"], {}, f"EXL2 (tensor {LAYER}.q_weight)"),
        (["qweight", "scales"], {}, f"GPTQ or AWQ (tensor {LAYER}.qweight)"),
        (["weight.absmax"], {}, f"bitsandbytes (tensor {LAYER}.weight.absmax)"),
        (["SCB"], {}, f"bitsandbytes (tensor {LAYER}.SCB)"),
        (["weight_packed"], {}, f"compressed-tensors (tensor {LAYER}.weight_packed)"),
        (["weight_scale_inv"], {}, f"FP8 (tensor {LAYER}.weight_scale_inv)"),
        (["scales", "biases"], {}, f"MLX (tensor {LAYER}.scales)"),
    ],
)  # fmt: skip
def test_a_method_that_files_and_tensors_show(
    tmp_path: Path, tensors: list[str], files: dict[str, Any], said: str
) -> None:
    assert said in line(tmp_path, {}, *(f"{LAYER}.{name}" for name in tensors), **files)


def test_mlx_states_its_method_in_a_key_of_its_own(tmp_path: Path) -> None:
    assert "MLX (quantization)" in line(tmp_path, {"quantization": {"group_size": 64, "bits": 4}})


def test_plain_weights_beside_the_file_of_an_older_export_are_read(tmp_path: Path) -> None:
    checkpoint = Metadata.of(TINY["llama"])
    checkpoint.path = tmp_path
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert read_model(checkpoint).spec.family == "llama"
