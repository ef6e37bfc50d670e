"""Text models inside vision models: both naming schemes, and other parts that are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support.model_files import safetensors
from support.tiny import TINY, model_runner, opened

from pellucid.errors import PellucidError
from pellucid.model.read import read_model
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.open import open_checkpoint

IDS = list(range(3, 23))


def nested(folder: Path, name: str, layout: str, **changes: Any) -> Path:
    """A tiny model as the text model of a larger one, with the tensors' names of a layout."""
    config = json.loads((TINY[name] / "config.json").read_text())
    outer = {
        "architectures": ["SomeForConditionalGeneration"],
        "model_type": "some_vision_model",
        "text_config": {**config, **changes},
        "vision_config": {"hidden_size": 8},
        "image_token_index": 5,
    }
    tensors = {}
    with opened(TINY[name]) as (checkpoint, _):
        for tensor in checkpoint.tensors.values():
            own = tensor.name
            if layout == "older":
                own = f"language_model.{own}"
            elif layout == "newer":
                own = own.replace("model.", "model.language_model.", 1)
            data = checkpoint.data(tensor.name)
            tensors[own] = (tensor.format, tensor.shape, data.tobytes())
    where = "model.visual" if layout == "newer" else "vision_tower"
    tensors[f"{where}.patch.weight"] = ("F32", (2, 2), bytes(16))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(outer))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


@pytest.mark.parametrize("layout", ["older", "newer", "plain"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3_moe", "gpt_oss", "gemma4"])
def test_the_text_model_is_what_it_is_alone(name: str, layout: str, tmp_path: Path) -> None:
    path = nested(tmp_path / "m", name, layout)
    found = []
    for each in (TINY[name], path):
        with model_runner(each) as net:
            found.append(net.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))]))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma4"])
def test_the_task_of_the_user_applies_to_the_text_model(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(nested(tmp_path / "m", name, "newer"))
    assert read_model(checkpoint).spec.task == "generate"
    spec = read_model(checkpoint, "embed").spec
    checkpoint.close()
    with opened(TINY[name]) as (alone, _):
        assert spec.task == "embed"
        assert spec == replace(read_model(alone, "embed").spec, name=spec.name)


def test_the_text_model_finds_the_words_of_a_reranker(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(nested(tmp_path / "m", "qwen3", "older"))
    with pytest.raises(PellucidError, match="vocabulary has no token"):
        read_model(checkpoint, "classify")
    assert read_model(checkpoint, "classify", {"yes": 5, "no": 6}.get).spec.task == "classify"
    checkpoint.close()


@pytest.mark.parametrize(("layout", "part"), [("older", "vision_tower"), ("newer", "visual")])
def test_the_other_parts_are_named(layout: str, part: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(nested(tmp_path / "m", "llama", layout))
    with pytest.warns(UserWarning, match=rf"m: only the text model is read; not read: {part} \(1 tensor\)"):
        read_model(checkpoint)
    checkpoint.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "64"}, ("text_config.hidden_size", "64")),
        ({"model_type": "lama"}, ("lama", "llama")),
        ({"num_hidden_layers": 3}, ("layers.2",)),
        ({"num_experts": 4}, ("text_config.num_experts", "4")),
        ({"quantization_config": {"bits": 4}}, ("text_config.quantization_config",)),
    ],
)
def test_errors_name_the_inner_key(changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(nested(tmp_path / "m", "llama", "older", **changes))
    with pytest.raises(PellucidError) as caught:
        read_model(checkpoint)
    assert all(word in str(caught.value) for word in words)
    checkpoint.close()


def test_a_tensor_that_is_there_in_both_ways_is_refused(tmp_path: Path) -> None:
    path = nested(tmp_path / "m", "llama", "older")
    extra = {"model.language_model.norm.weight": ("F32", (64,), bytes(256))}
    index = {"metadata": {}, "weight_map": {}}
    (path / "more.safetensors").write_bytes(safetensors(extra))
    checkpoint = open_checkpoint(path / "model.safetensors")
    names = dict.fromkeys(checkpoint.tensors, "model.safetensors")
    checkpoint.close()
    index["weight_map"] = {**names, **dict.fromkeys(extra, "more.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(path / "model.safetensors.index.json")
    with pytest.raises(PellucidError, match="is the same tensor of the text model as"):
        read_model(checkpoint)
    checkpoint.close()
