"""The modules of sentence-transformers: pooling, dense layers, prompts, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_files import safetensors
from support.tiny import TINY

import pellucid
from pellucid.errors import FileFormatError, InvalidRequest, PellucidError, UnsupportedModel
from pellucid.model.outputs import Dense, Pooling, UnitLength
from pellucid.model.read import read_model
from pellucid.model.spec import ModelSpec
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

DENSE = {"in_features": 64, "out_features": 16, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


def written(folder: Path, *modules: tuple[str, str, dict[str, Any]]) -> Path:
    """The tiny BERT with these modules: their kinds, folders and configurations."""
    shutil.copytree(TINY["bert"], folder)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, path, config) in enumerate(modules, 1):
        name = f"sentence_transformers.models.{kind}"
        listed.append({"idx": number, "name": str(number), "path": path, "type": name})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def spec_of(folder: Path) -> ModelSpec:
    checkpoint = open_checkpoint(folder)
    try:
        return read_model(checkpoint).spec
    finally:
        checkpoint.close()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken", "word_embedding_dimension": 64}, "last"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
    ],
)
def test_each_kind_of_pooling(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path / "m", ("Pooling", "1_Pooling", config)))
    assert (spec.task, spec.pooling, spec.output) == ("embed", Pooling(kind), ())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "together"),
        ({"pooling_mode": "attention"}, "pooling_mode"),
        ({"pooling_mode_new": True}, "pooling_mode_new"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt"),
    ],
)
def test_other_pooling_is_refused(config: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(PellucidError, match=word):
        spec_of(written(tmp_path / "m", ("Pooling", "1_Pooling", config)))


def test_a_pooling_folder_without_a_list_of_modules_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", ("Pooling", "1_Pooling", {"pooling_mode_cls_token": True}))
    (folder / "modules.json").unlink()
    spec = spec_of(folder)
    assert (spec.pooling, spec.output) == (Pooling("cls"), (UnitLength(),))


def test_dense_layers_have_their_weights_in_their_folders(tmp_path: Path) -> None:
    modules = (("Pooling", "1_Pooling", {"pooling_mode": "mean"}), ("Dense", "2_Dense", DENSE), ("Normalize", "3", {}))
    folder = written(tmp_path / "m", *modules)
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal((16, 64)) / 8).astype(np.float32)
    bias = rng.standard_normal(16).astype(np.float32)
    tensors = {"linear.weight": ("F32", weight.shape, weight.tobytes()), "linear.bias": ("F32", (16,), bias.tobytes())}
    (folder / "2_Dense" / "model.safetensors").write_bytes(safetensors(tensors))
    spec = spec_of(folder)
    assert spec.output == (Dense(16, "tanh"), UnitLength())
    assert spec.output_width == 16
    tokenizer = random_model("bert", tmp_path / "random", kind="safetensors", layers=1, width=32, heads=2)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    with pellucid.load(folder, threads=1, precise=True) as llm, llm.trace("pool") as trace:
        found = llm.embed(["a text", "another text"])
    pooled = trace["pool"].reshape(2, -1).astype(np.float64)
    wanted = np.tanh(pooled @ weight.T + bias)
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_a_module_that_is_not_known_is_refused(tmp_path: Path) -> None:
    modules = (("Pooling", "1_Pooling", {"pooling_mode": "mean"}), ("CNN", "2_CNN", {}))
    with pytest.raises(UnsupportedModel, match="module 'CNN' in '2_CNN' is not supported"):
        spec_of(written(tmp_path / "m", *modules))


def test_pickled_weights_of_a_module_are_refused(tmp_path: Path) -> None:
    modules = (("Pooling", "1_Pooling", {"pooling_mode": "mean"}), ("Dense", "2_Dense", DENSE))
    folder = written(tmp_path / "m", *modules)
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FileFormatError, match="pickle"):
        spec_of(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/b", ".."])
def test_a_module_cannot_be_outside_the_folder(path: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "m")
    listed = [{"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(FileFormatError, match="module 0"):
        spec_of(folder)


def test_prompts_are_put_before_texts(tmp_path: Path) -> None:
    folder = random_model("bert", tmp_path / "m", kind="safetensors", layers=1, width=32, heads=2)
    settings = {"prompts": {"query": "find this: ", "plain": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (folder / "modules.json").unlink()
    with pellucid.load(folder, threads=1) as llm:
        whole = llm.embed(["find this: a text"], prompt="plain")
        assert np.array_equal(llm.embed(["a text"]), whole)
        assert np.array_equal(llm.embed(["a text"], prompt="query"), whole)
        assert np.array_equal(llm.embed(["a text"], prompt="find this: "), whole)
        assert not np.array_equal(llm.embed(["a text"], prompt="plain"), whole)
        with pytest.raises(InvalidRequest, match="no prompt of this name"):
            llm.embed(["a text"], prompt="passage")
