"""Files beside a model, and files that are no model: each is named, and none is silently ignored."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_files import gguf, safetensors

from pellucid.errors import FileFormatError, PellucidError, UnsupportedModel
from pellucid.model.read import read_model
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

TENSOR = {"w": ((4,), 0, bytes(16))}
COMPANIONS: dict[str, dict[str, Any]] = {
    "lora": {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
    "imatrix": {"general.type": "imatrix", "imatrix.chunk_count": 3},
    "mmproj": {"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True},
    "older mmproj": {"general.architecture": "clip", "general.file_type": 1},
    "control": {"general.architecture": "controlvector", "controlvector.layer_count": 2},
}
SAID = {
    "lora": "is a LoRA adapter, not a model: merge it into its model",
    "imatrix": "is an importance matrix",
    "mmproj": "is the image part of a model (mmproj)",
    "older mmproj": "is the image part of a model (mmproj)",
    "control": "is a control vector",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("llama", tmp_path_factory.mktemp("base") / "m", kind="safetensors", layers=1)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "folder"))


def zeros(*shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", shape, bytes(4 * int(np.prod(shape)))


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_checkpoint(folder) as checkpoint:  # type: ignore[attr-defined]
        return {n: (t.format, t.shape, checkpoint.data(n).tobytes()) for n, t in checkpoint.tensors.items()}


def said(path: Path, kind: type[PellucidError] = FileFormatError) -> str:
    with pytest.raises(kind) as caught:
        read_model(open_checkpoint(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_gguf_file_that_is_no_model_says_what_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(gguf(COMPANIONS[name], TENSOR))
    assert SAID[name] in said(path)


def test_of_a_folder_the_gguf_file_that_is_a_model_is_opened(tmp_path: Path) -> None:
    random_model("llama", tmp_path / "model.gguf", layers=1)
    for number, metadata in enumerate(COMPANIONS.values()):
        (tmp_path / f"a{number}.gguf").write_bytes(gguf(metadata, TENSOR))
    with pytest.warns(UserWarning, match=r"ignored files .* a0\.gguf \(adapter\), a1\.gguf \(imatrix\), a2") as told:
        assert open_checkpoint(tmp_path).path == tmp_path / "model.gguf"
    assert len(told) == 1
    random_model("llama", tmp_path / "other.gguf", layers=1)
    assert "holds 2 GGUF models, name one: model.gguf, other.gguf" in said(tmp_path)
    for name in ("model.gguf", "other.gguf"):
        (tmp_path / name).unlink()
    assert "holds 0 GGUF models" in said(tmp_path)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"])
def test_an_adapter_beside_a_model_is_refused(folder: Path, file: str) -> None:
    content = json.dumps({"base_model_name_or_path": "org/base"}).encode()
    (folder / file).write_bytes(content if file.endswith("json") else safetensors({"x.lora_A.weight": zeros(2, 4)}))
    assert f"holds an adapter beside the model ({file})" in said(folder)
    with open_checkpoint(folder / "model.safetensors") as checkpoint:  # type: ignore[attr-defined]
        assert read_model(checkpoint).spec.family == "llama"


def test_a_folder_with_an_adapter_alone_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors({"x.lora_A.weight": zeros(2, 4)}))
    assert "holds a LoRA adapter and no model: merge it" in said(tmp_path)
    for config in ("[]", "{", '{"base_model_name_or_path": 3}'):
        (tmp_path / "adapter_config.json").write_text(config)
        assert "holds a LoRA adapter and no model" in said(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "holds a LoRA adapter of 'org/base' and no model: merge it" in said(tmp_path)


def test_the_tensors_of_an_adapter_are_refused_under_any_name(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    (folder / "model.safetensors").write_bytes(safetensors({name: zeros(2, 4)}))
    assert "belongs to a LoRA adapter: merge it" in said(folder)
    (folder / "other.safetensors").write_bytes(
        safetensors({**stored(folder), "model.layers.0.self_attn.q_proj.lora_B.default.weight": zeros(2, 4)})
    )
    assert "belongs to a LoRA adapter" in said(folder / "other.safetensors")


def test_a_file_beside_the_model_is_told(folder: Path) -> None:
    for number in range(6):
        (folder / f"more{number}.safetensors").write_bytes(safetensors({"x": zeros(1)}))
    with pytest.warns(UserWarning, match=r"ignored files .* more0\.safetensors, .* and 2 more") as told:
        read_model(open_checkpoint(folder))
    assert len(told) == 1


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_tensor_of_a_shard_that_its_index_does_not_list_is_refused(folder: Path, where: str) -> None:
    tensors = stored(folder)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    weight_map = {name: shard for shard, its in shards.items() for name in its}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for shard, its in shards.items():
        (folder / shard).write_bytes(safetensors({name: tensors[name] for name in its}))
    assert read_model(open_checkpoint(folder)).spec.family == "llama"
    more = {"model.layers.0.self_attn.q_proj.bias": zeros(64)}
    if where == "second":  # the index places the tensor in another file
        more = {names[0]: tensors[names[0]]}
    (folder / "b.safetensors").write_bytes(safetensors({name: tensors[name] for name in names[3:]} | more))
    refused = said(folder)
    assert f"b.safetensors: tensor {next(iter(more))}" in refused
    assert "according to model.safetensors.index.json it" in refused
    assert ("is in 'a.safetensors'" if where == "second" else "is in no file") in refused


@pytest.mark.parametrize(
    ("stated", "task"),
    [
        (["LlamaForRewardModel", "LlamaForScore"], "RewardModel"),
        (["LlamaForCausalLM"], ""),
        (["OpenAIGPTLMHeadModel"], ""),
        (["Gemma3ForConditionalGeneration"], ""),
        (["LlamaForSequenceClassification", "LlamaForCausalLM"], ""),
        (["LlamaForCausalLMEagle"], ""),
        ([], ""),
        (None, ""),
        ("LlamaForTokenClassification", ""),
        ([3, None], ""),
    ],
)
def test_a_model_that_was_made_for_another_task_is_refused(folder: Path, stated: Any, task: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"architectures": stated}
    (folder / "config.json").write_text(json.dumps(config))
    if task:
        assert f"a head for {task} is not supported" in said(folder, UnsupportedModel)
    else:
        assert read_model(open_checkpoint(folder)).spec.head


@pytest.mark.parametrize(
    ("stated", "missing"),
    [
        ("LlamaForSequenceClassification", "score.weight"),
        ("LlamaForTokenClassification", "score.weight"),
        ("LlamaForQuestionAnswering", "qa_outputs.weight"),
    ],
)
def test_a_task_without_the_weights_of_its_head_is_refused(folder: Path, stated: str, missing: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [stated]}
    (folder / "config.json").write_text(json.dumps(config))
    assert f"{missing}: tensor missing" in said(folder)


def test_a_model_without_a_task_is_an_encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_model(open_checkpoint(folder)).spec.head is None


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pth", "pytorch_model-00001-of-00002.bin"])
def test_a_folder_of_pickled_weights_names_the_remedy(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"PK\3\4")
    assert f"holds PyTorch (pickle) weights ({file})" in said(tmp_path)
    assert ".save_pretrained('NEW')" in said(tmp_path)
    assert ".save_pretrained('NEW')" in said(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        *(("lama", "llama"), ("Qwen2_5", "qwen2"), ("gemma9", "gemma"), ("STARCODER", "starcoder2")),
        *(("stablelm", ""), ("baichuan", ""), ("rwkv", ""), ("x" * 9999, ""), ("", "")),
    ],
)
def test_an_unknown_family_names_the_nearest(folder: Path, name: str, nearest: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": name}
    (folder / "config.json").write_text(json.dumps(config))
    line = said(folder, UnsupportedModel)
    assert len(line) < 200
    assert (f"; the nearest name is {nearest}" in line) if nearest else ("nearest" not in line)
    assert "`pellucid list --families` shows all" in line


def test_nothing_is_told_of_a_model_alone(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_model(open_checkpoint(folder)).spec.family == "llama"
