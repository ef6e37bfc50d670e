"""GGUF files of encoders give the same bits as safetensors with the same numbers.

The names and the order of rows are those of llama.cpp: conversion/bert.py and gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.drawn import draw
from support.model_files import gguf, safetensors
from support.tiny import ENCODERS, GOLDENS, model_runner, opened

from pellucid.errors import PellucidError
from pellucid.model.outputs import Pooling
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

MODERN = {
    r"model\.": "",
    "embeddings.tok_embeddings": "token_embd",
    "embeddings.norm": "token_embd_norm",
    "final_norm": "output_norm",
    r"layers\.(\d+)": r"blk.\1",
    "attn.Wqkv": "attn_qkv",
    "attn.Wo": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.Wi": "ffn_up",
    "mlp.Wo": "ffn_down",
    "head.dense": "cls",
    "head.norm": "cls.norm",
    "classifier": "cls.output",
}
POST_NORM = {
    r"(roberta|nomic_bert)\.": "",
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    r"emb_ln|embeddings\.LayerNorm": "token_embd_norm",
    r"encoder\.layers?\.(\d+)": r"blk.\1",
    r"(attn|mixer)\.Wqkv": "attn_qkv",
    r"(attn|mixer)\.out_proj": "attn_output",
    "norm1": "attn_output_norm",
    "norm2": "layer_output_norm",
}
NOMIC = POST_NORM | {
    r"mlp\.fc1\.|mlp\.fc11": "ffn_up.",
    "mlp.fc12": "ffn_gate",
    "mlp.fc2": "ffn_down",
    "mlp.router.layer": "ffn_gate_inp",
    "mlp.experts.mlp.w1": "ffn_up_exps.weight",
    "mlp.experts.mlp.w2": "ffn_down_exps.weight",
    r"\.\.": ".",
}
JINA = POST_NORM | {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.self.layer_norm_q": "attn_q_norm",
    "attention.self.layer_norm_k": "attn_k_norm",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "layer_norm_1": "attn_norm_2",
    r"mlp\.layernorm|layer_norm_2": "layer_output_norm",
    r"mlp\.(up_)?gated_layers?": "ffn_up",
    r"mlp\.(wo|down_layer)": "ffn_down",
}
EURO = {
    r"model\.": "",
    "embed_tokens": "token_embd",
    r"^norm": "output_norm",
    r"layers\.(\d+)": r"blk.\1",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    r"self_attn\.([qkv])_proj": r"attn_\1",
    "self_attn.o_proj": "attn_output",
    r"mlp\.(gate|up|down)_proj": r"ffn_\1",
}
COMMON = {"context_length": 64, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4}
POOLED = COMMON | {"attention.causal": False, "pooling_type": 1, "attention.layer_norm_epsilon": 1e-12}
WINDOWS = POOLED | {
    "block_count": 4,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 160_000.0,
    "rope.freq_base_swa": 10_000.0,
    "rope.scaling.type": "none",
    "attention.sliding_window": 16,
    "attention.sliding_window_pattern": 3,
    "vocab_size": 128,
    "hidden_activation": "gelu",
}
MIXTURE = {"expert_count": 3, "expert_used_count": 2, "moe_every_n_layers": 2}
V3 = {"block_count": 4, "rope.freq_base": 20_000.0, "attention.layer_norm_epsilon": 1e-5}
RMS = {"attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}
TWINS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "modernbert": ("modern-bert", MODERN, WINDOWS),
    "modernbert-classify": ("modern-bert", MODERN, WINDOWS | {"pooling_type": 4}),
    "modernbert-rank": ("modern-bert", MODERN, WINDOWS | {"pooling_type": 4, "classifier.pooling_type": 2}),
    "nomic_bert": ("nomic-bert", NOMIC, POOLED | {"block_count": 4, "rope.freq_base": 1000.0}),
    "nomic_bert-mixture": ("nomic-bert-moe", NOMIC, POOLED | MIXTURE | {"block_count": 4, "rope.freq_base": 1000.0}),
    "jina_bert": ("jina-bert-v2", JINA, POOLED | {"block_count": 2}),
    "jina_bert-code": ("jina-bert-v2", JINA, POOLED | {"block_count": 2}),
    "jina_embeddings_v3": ("jina-bert-v3", NOMIC, POOLED | V3),
    "eurobert": ("eurobert", EURO, COMMON | RMS | {"block_count": 4, "pooling_type": 1}),
}
"""Architecture, names and keys of a GGUF file by the encoder with the same numbers."""


def numbers(name: str) -> dict[str, np.ndarray]:
    said = json.loads((GOLDENS / "encoders" / name / "tensors.json").read_text())
    weights = draw(said["tensors"], said["seed"], said["offset"])
    # GGUF has no bias of the sum of experts, and llama.cpp's conversion leaves out poolers.
    zero = {key: 0 * x for key, x in weights.items() if key.endswith("experts.bias")}
    return {key: x for key, x in (weights | zero).items() if "pooler" not in key}


def as_gguf(name: str, weights: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file."""
    found = {}
    for key, x in weights.items():
        if key.endswith("experts.bias"):
            continue
        for pattern, new in names.items():
            key = re.sub(pattern if "\\" in pattern or "^" in pattern else re.escape(pattern), new, key)
        if "_exps" in key:
            x = x.reshape(3, 96, 64)
            x = x if "up" in key else np.ascontiguousarray(x.transpose(0, 2, 1))
        found[key] = x
    return found


def written(name: str, path: Path, separate_gates: bool = False, **changes: Any) -> Path:
    """Write the GGUF twin of an encoder. ``separate_gates``: gates and up-projections are two tensors."""
    architecture, names, keys = TWINS[name]
    metadata = {f"{architecture}.{key}": value for key, value in (keys | changes).items()}
    tensors = as_gguf(name, numbers(name), names)
    for key in [key for key in tensors if separate_gates and key.endswith("ffn_up.weight")]:
        first, second = np.split(tensors.pop(key), 2)
        gate, up = (second, first) if name.endswith("code") else (first, second)
        tensors |= {key.replace("up", "gate"): gate, key: up}
    if "token_types.weight" in tensors:
        metadata["tokenizer.ggml.token_type_count"] = len(tensors["token_types.weight"])
    metadata["general.architecture"] = architecture
    path.write_bytes(gguf(metadata, {key: (x.shape, 0, x.tobytes()) for key, x in tensors.items()}))
    return path


def outputs(path: Path, ids: list[int], bits: int) -> np.ndarray:
    with model_runner(path, activation_bits=bits, threads=2) as runner:
        return runner.forward([Chunk(BlockTable(), ids, len(ids))])


@pytest.mark.parametrize("bits", [8, 24])
@pytest.mark.parametrize("name", TWINS)
def test_gguf_has_the_bits_of_safetensors(name: str, bits: int, tmp_path: Path) -> None:
    folder = tmp_path / "safetensors"
    folder.mkdir()
    config = json.loads((GOLDENS / "encoders" / name / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {key: ("F32", x.shape, x.tobytes()) for key, x in numbers(name).items()}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    ids = np.load(ENCODERS[name] / "expected.npz")["input_ids"].tolist()
    got = outputs(written(name, tmp_path / "twin.gguf"), ids, bits)
    np.testing.assert_array_equal(got, outputs(folder, ids, bits))


@pytest.mark.parametrize("name", ["jina_bert", "jina_bert-code"])
def test_separate_gates_of_older_files_equal_joined_gates(name: str, tmp_path: Path) -> None:
    """llama.cpp wrote gate and up-projection as two tensors before it joined them."""
    older = written(name, tmp_path / "older.gguf", separate_gates=True)
    ids = list(range(5, 45))
    np.testing.assert_array_equal(outputs(older, ids, 24), outputs(written(name, tmp_path / "newer.gguf"), ids, 24))


@pytest.mark.parametrize(("number", "kind"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_pooling_type_of_llamacpp(number: int, kind: Any, tmp_path: Path) -> None:
    with opened(written("nomic_bert", tmp_path / "m.gguf", pooling_type=number)) as (_, model):
        assert model.spec.pooling == Pooling(kind)


def test_a_pattern_lists_the_layers_with_a_window(tmp_path: Path) -> None:
    stated = np.array([False, True, True, False])
    listed = written("modernbert", tmp_path / "a.gguf", **{"attention.sliding_window_pattern": stated})
    ids = list(range(5, 45))
    np.testing.assert_array_equal(
        outputs(listed, ids, 24), outputs(written("modernbert", tmp_path / "b.gguf"), ids, 24)
    )


def test_labels_of_a_classifier(tmp_path: Path) -> None:
    labels = {"classifier.output_labels": ["no", "maybe", "yes"]}
    with opened(written("modernbert-classify", tmp_path / "m.gguf", **labels)) as (_, model):
        assert model.spec.labels is not None
        assert model.spec.labels.names == ("no", "maybe", "yes")
        assert model.spec.task == "classify"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("modernbert-classify", {"classifier.output_labels": ["a", "b"]}, "it must be a list of 3 labels"),
        ("nomic_bert", {"attention.causal": True}, "attention.causal = True is not supported"),
        ("nomic_bert", {"pooling_type": 7}, "pooling_type is 7, which is not supported"),
        ("jina_bert", {"attention.max_alibi_bias": 4}, "max_alibi_bias = 4 is not supported"),
    ],
)
def test_refused_options(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PellucidError, match=re.escape(message)), opened(written(name, tmp_path / "m.gguf", **changes)):
        pass
