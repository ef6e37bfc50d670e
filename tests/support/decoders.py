"""Tiny decoders that are used as encoders: copies of the goldens with other files, and their twins in GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pellucid import pipeline
from pellucid.model.outputs import Task
from pellucid.model.read import read_model
from pellucid.model.weight_map import Model
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.weights.open import open_checkpoint
from support.model_files import gguf, safetensors
from support.tiny import model_runner, opened

GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QWEN3 = {"post_attention_layernorm": "ffn_norm"}
GEMMA3 = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
Arrays = Mapping[str, np.ndarray]


def modules(*kinds: tuple[str, str]) -> list[dict[str, Any]]:
    """``modules.json`` with a Transformer, and modules of these kinds in these folders."""
    listed = [("Transformer", ""), *kinds]
    return [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(listed)
    ]


def write_tensors(path: Path, tensors: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors({name: ("F32", x.shape, x.tobytes()) for name, x in tensors.items()}))


def edited(
    folder: Path,
    base: Path,
    files: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Arrays] | None = None,
    **config: Any,
) -> Path:
    """A copy of ``base`` with changes of config.json, and further files (JSON by path, tensors by path)."""
    shutil.copytree(base, folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    for name, arrays in (tensors or {}).items():
        write_tensors(folder / name, arrays)
    return folder


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a model in float32."""
    checkpoint = open_checkpoint(path)
    try:
        return {
            name: np.frombuffer(bytes(checkpoint.data(name)), np.float32).reshape(tensor.shape).copy()
            for name, tensor in checkpoint.tensors.items()
        }
    finally:
        checkpoint.close()


def read(path: Path, task: Task | None = None, vocabulary: Mapping[str, int] | None = None) -> Model:
    checkpoint = open_checkpoint(path)
    try:
        return read_model(checkpoint, task, (vocabulary or {}).get)
    finally:
        checkpoint.close()


def outputs(path: Path, ids: list[int], task: Task | None = None, **vocabulary: int) -> np.ndarray:
    """The outputs of a model for token ids, computed precisely: one row if it pools, else a row for each token."""
    model = read(path, task, vocabulary)
    with opened(path) as (checkpoint, _):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 24)
    count = 1 if model.spec.pooling else len(ids)
    with model_runner(path, plan, spec=model.spec, model=model) as runner:
        return runner.forward([Chunk(BlockTable(), ids, count)]).copy()


def write_gguf_twin(
    path: Path, base: Path, architecture: str, extra: Mapping[str, Any], more: Arrays | None = None
) -> Path:
    """The model ``base`` as llama.cpp's converter writes it, with ``extra`` metadata and ``more`` tensors."""
    config, plus = json.loads((base / "config.json").read_text()), 1.0 if "gemma" in architecture else 0.0
    names, tensors = {**GGUF_NAMES, **(GEMMA3 if plus else QWEN3)}, dict[str, np.ndarray]()
    for name, array in arrays_of(base).items():
        place, _, part = name.removeprefix("model.").rpartition(".")
        block = ""
        if place.startswith("layers."):
            _, number, place = place.split(".", 2)
            block = f"blk.{number}."
        if place not in names:
            continue
        value = np.float32(array + plus) if place.endswith("norm") else array
        tensors[f"{block}{names[place]}.{part}"] = value
    rope = config["rope_parameters"]
    metadata = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
    }
    own = {f"{architecture}.{key}": value for key, value in metadata.items()}
    data = {name: (x.shape, 0, x.tobytes()) for name, x in {**tensors, **(more or {})}.items()}
    path.write_bytes(gguf({"general.architecture": architecture, **own, **extra}, data))
    return path
