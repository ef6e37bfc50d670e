"""Encoders in GGUF: the same bits as safetensors with the same numbers; pooling, classifiers, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.metadata import GGUF, Metadata
from support.model_files import gguf
from support.tiny import ENCODERS, OF_FAMILY, model_runner, opened

from pellucid.errors import FileFormatError, PellucidError, UnsupportedModel
from pellucid.model.outputs import Dense, Pooling, UnitLength
from pellucid.model.shapes import expected_shapes
from pellucid.model.slot_reader import SlotReader
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

BERT = (
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.self\.(q|k|v)\w+", r"blk.\1.attn_\2"),
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.output\.dense", r"blk.\1.attn_output"),
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"blk.\1.attn_output_norm"),
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.intermediate\.dense", r"blk.\1.ffn_up"),
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.output\.dense", r"blk.\1.ffn_down"),
    (r"(?:\w+\.)?encoder\.layer\.(\d+)\.output\.LayerNorm", r"blk.\1.layer_output_norm"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.attention\.(q|k|v)_lin", r"blk.\1.attn_\2"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.attention\.out_lin", r"blk.\1.attn_output"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.sa_layer_norm", r"blk.\1.attn_output_norm"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.ffn\.lin1", r"blk.\1.ffn_up"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.ffn\.lin2", r"blk.\1.ffn_down"),
    (r"(?:\w+\.)?transformer\.layer\.(\d+)\.output_layer_norm", r"blk.\1.layer_output_norm"),
    (r"(?:\w+\.)?embeddings\.word_embeddings", "token_embd"),
    (r"(?:\w+\.)?embeddings\.position_embeddings", "position_embd"),
    (r"(?:\w+\.)?embeddings\.token_type_embeddings", "token_types"),
    (r"(?:\w+\.)?embeddings\.LayerNorm", "token_embd_norm"),
    (r"classifier\.dense|bert\.pooler\.dense", "cls"),
    (r"classifier\.out_proj|classifier", "cls.output"),
)
"""Names of transformers, and names in GGUF as in ``get_tensor_name_map(MODEL_ARCH.BERT)`` of gguf 0.19."""
FIRST = {"roberta": 2, "roberta-rank": 2, "roberta-odd": 5}
"""The first row of the position table, which llama.cpp's converter removes."""
TWINS = ("bert", "roberta", "roberta-odd", "roberta-rank", "distilbert", "bert-classify")


def renamed(name: str) -> str:
    base, _, part = name.rpartition(".")
    for pattern, new in BERT:
        if found := re.fullmatch(pattern, base):
            return f"{found.expand(new)}.{part}"
    return ""


def stored(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a tiny model, as float32."""
    with opened(path) as (checkpoint, _):
        return {
            name: np.frombuffer(checkpoint.data(name), np.float32).reshape(tensor.shape)
            for name, tensor in checkpoint.tensors.items()
        }


def twin(name: str, path: Path, *, fused: bool = False, **metadata: Any) -> Path:
    """A GGUF file with the numbers of a tiny model, as llama.cpp's converter writes it."""
    folder = {**OF_FAMILY, **ENCODERS}[name]
    tensors = {renamed(key): x for key, x in stored(folder).items() if renamed(key)}
    tensors["position_embd.weight"] = tensors["position_embd.weight"][FIRST.get(name, 0) :]
    if name == "roberta-odd":  # a matrix of one row: NumPy's shape (1, D) is (D,) in some files
        tensors["token_types.weight"] = tensors["token_types.weight"][0]
    blocks = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blk."))
    if fused:
        for at, part in ((f"blk.{i}.attn", part) for i in range(blocks) for part in ("weight", "bias")):
            tensors[f"{at}_qkv.{part}"] = np.concatenate([tensors.pop(f"{at}_{x}.{part}") for x in "qkv"])
    width = tensors["token_embd.weight"].shape[1]
    keys = {
        "general.architecture": "bert",
        "bert.context_length": len(tensors["position_embd.weight"]),
        "bert.embedding_length": width,
        "bert.feed_forward_length": tensors["blk.0.ffn_up.weight"].shape[0],
        "bert.block_count": blocks,
        "bert.attention.head_count": 3 if width == 96 else 4,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        **({"tokenizer.ggml.token_type_count": 2} if name.startswith("bert") else {}),
        **metadata,
    }
    path.write_bytes(gguf(keys, {key: (x.shape, 0, x.tobytes()) for key, x in tensors.items()}))
    return path


def outputs(path: Path, activation_bits: int) -> np.ndarray:
    ids = np.random.default_rng(3).integers(5, 128, 40).tolist()
    types: list[int] = [0] * 24 + [1] * 16
    with model_runner(path, activation_bits=activation_bits) as runner:
        two = runner.spec.embedding.types == 2
        return runner.forward([Chunk(BlockTable(), ids, 0, types=types if two else None)])


@pytest.mark.parametrize("activation_bits", [8, 24])
@pytest.mark.parametrize("name", TWINS)
def test_a_gguf_file_has_the_bits_of_safetensors(name: str, activation_bits: int, tmp_path: Path) -> None:
    folder = {**OF_FAMILY, **ENCODERS}[name]
    wanted = outputs(folder, activation_bits)
    assert np.isfinite(wanted).all()
    assert outputs(twin(name, tmp_path / "twin.gguf"), activation_bits).tobytes() == wanted.tobytes()


def test_queries_keys_and_values_in_one_tensor_are_the_same(tmp_path: Path) -> None:
    paths = [twin("bert", tmp_path / f"{fused}.gguf", fused=fused) for fused in (False, True)]
    with opened(paths[0]) as (plain, model), opened(paths[1]) as (fused, joined):
        assert model.spec == joined.spec
        for slot in expected_shapes(model.spec):
            one, other = SlotReader(plain, model.sources(slot)), SlotReader(fused, joined.sources(slot))
            assert np.array_equal(one.values(), other.values()), slot


@pytest.mark.parametrize(
    ("metadata", "task", "pooling", "layers"),
    [
        ({}, "embed", Pooling("mean"), (UnitLength(),)),
        ({"bert.pooling_type": 1}, "embed", Pooling("mean"), (UnitLength(),)),
        ({"bert.pooling_type": 2}, "embed", Pooling("cls"), (UnitLength(),)),
        ({"bert.pooling_type": 3}, "embed", Pooling("last"), (UnitLength(),)),
        ({"bert.pooling_type": 0}, "tokens", None, (UnitLength(),)),
    ],
)
def test_pooling(metadata: Mapping[str, Any], task: str, pooling: Any, layers: Any, tmp_path: Path) -> None:
    with opened(twin("bert", tmp_path / "m.gguf", **metadata)) as (_, model):
        assert (model.spec.task, model.spec.pooling, model.spec.output) == (task, pooling, layers)


def test_a_reranker(tmp_path: Path) -> None:
    """The file's classifier; ``pooling_type`` may state it or be absent."""
    for number, metadata in enumerate(({}, {"bert.pooling_type": 4})):
        path = twin("roberta-rank", tmp_path / f"{number}.gguf", **metadata)
        with opened(path) as (_, model):
            assert model.spec.task == "classify"
            assert model.spec.output == (Dense(64, "tanh"), Dense(1))
            assert model.spec.labels is not None
            assert (model.spec.labels.names, model.spec.labels.scale) == (("LABEL_0",), "sigmoid")


def test_labels_of_a_classifier(tmp_path: Path) -> None:
    key, names = "bert.classifier.output_labels", ["joy", "anger", "fear"]
    with opened(twin("bert-classify", tmp_path / "m.gguf", **{key: names})) as (_, model):
        assert model.spec.labels is not None
        assert (model.spec.labels.names, model.spec.labels.scale) == (tuple(names), "softmax")
    for number, wrong in enumerate((["joy"], "joy", 3)):
        path = twin("bert-classify", tmp_path / f"{number}.gguf", **{key: wrong})
        with pytest.raises(FileFormatError, match=r"output_labels: is .*; it must be a list of 3 labels"):
            Metadata.of(path).read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bert.attention.causal": True}, "attention.causal"),
        ({"bert.pooling_type": 5}, "pooling_type is 5, which is not supported (known: 1, 2, 3, 4)"),
        ({"bert.pooling_type": 4}, "no tensor cls.weight or cls.output.weight"),
    ],
)
def test_what_is_not_implemented_is_refused(changes: dict[str, Any], words: str) -> None:
    checkpoint = GGUF["bert"]()
    checkpoint.metadata |= changes
    with pytest.raises(UnsupportedModel, match=re.escape(words)):
        checkpoint.read()


def test_a_task_that_the_file_has_no_tensors_for() -> None:
    from pellucid.model.read import read_model

    with pytest.raises(PellucidError, match="task=tag: the file's task is embed"):
        read_model(GGUF["bert"](), "tag")
