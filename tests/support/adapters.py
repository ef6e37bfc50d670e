"""A tiny Jina Embeddings v3 as published, with adapters, and the same model with an adapter merged into its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.drawn import draw
from support.model_files import safetensors
from support.tiny import GOLDENS

NAMES = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
INSTRUCTIONS = {**dict.fromkeys(NAMES, ""), NAMES[0]: "the question: ", NAMES[1]: "the document: "}
RANK, ALPHA, VOCABULARY = 3, 2, 301
TABLES = ("word_embeddings", "token_type_embeddings")
CONFIG = {
    "architectures": ["XLMRobertaModel"],
    "load_trained_adapters": True,
    "lora_adaptations": NAMES,
    "lora_alpha": ALPHA,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": RANK,
    "model_type": "xlm-roberta",
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": INSTRUCTIONS,
    "truncate_dim": None,
    "use_flash_attn": True,
    "use_reg_tokens": False,
}
"""Keys of the published config.json that transformers does not write, or writes with other values."""


def _drawn() -> dict[str, np.ndarray]:
    said = json.loads((GOLDENS / "encoders" / "jina_embeddings_v3" / "tensors.json").read_text())
    shapes = said["tensors"] | {"embeddings.word_embeddings.weight": [VOCABULARY, 64]}
    drawn = draw(shapes, said["seed"], said["offset"])
    return {name: (x.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, x in drawn.items()}  # bfloat16


def _adapters(weights: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Matrices A and B of each matrix, of all adapters: (E, R, D) and (E, N, R), and of a table (E, N, R), (E, R, D).

    Their values are small integers, so that products are exact.
    """
    random, found = np.random.default_rng(3), {}
    for name, x in weights.items():
        if x.ndim == 2:
            rows, columns = x.shape
            shapes = (len(NAMES), RANK, columns), (len(NAMES), rows, RANK)
            shapes = shapes if not name.endswith(tuple(f"{table}.weight" for table in TABLES)) else (
                (len(NAMES), rows, RANK), (len(NAMES), RANK, columns)
            )  # fmt: skip
            found[name] = tuple(random.integers(-2, 3, shape).astype(np.float32) / 8 for shape in shapes)
    return found


def write_published(folder: Path, prefix: str = "roberta.", form: str = "BF16", **config: Any) -> Path:
    """Write the model with the tensors of its adapters, a tokenizer, and changed keys of config.json.

    ``form`` is the format of the tensors: "BF16", as published, or "F32".
    """
    weights, tensors = _drawn(), dict[str, np.ndarray]()
    adapters = _adapters(weights)
    for name, x in weights.items():
        if name in adapters:
            at = prefix + name.removesuffix(".weight") + ".parametrizations.weight"
            tensors |= {f"{at}.original": x} | {f"{at}.0.lora_{part}": side for part, side in zip("AB", adapters[name])}
        else:
            tensors[prefix + name] = x
    _write(folder, tensors, {**CONFIG, **config}, form)
    return folder


def write_merged(folder: Path, adapter: str = "") -> Path:
    """Write the model with an adapter merged, as modeling_lora.py computes it ("": the base model)."""
    weights = _drawn()
    for name, (a, b) in _adapters(weights).items() if adapter else ():
        number = NAMES.index(adapter)
        left, right = (a, b) if any(table in name for table in TABLES) else (b, a)
        change = left[number].astype(np.float64) @ right[number]
        weights[name] = np.float32(weights[name] + ALPHA / RANK * change)
    kept = {key: value for key, value in CONFIG.items() if key.startswith(("rotary_", "position_"))}
    _write(folder, weights, {**kept, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]})
    return folder


def _write(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], form: str = "F32") -> None:
    folder.mkdir(parents=True)
    stored = {name: x.view(np.uint32) >> 16 for name, x in tensors.items()} if form == "BF16" else tensors
    dtype = np.uint16 if form == "BF16" else np.float32
    (folder / "model.safetensors").write_bytes(
        safetensors({name: (form, x.shape, x.astype(dtype).tobytes()) for name, x in stored.items()})
    )
    stated = json.loads((GOLDENS / "encoders" / "jina_embeddings_v3" / "config.json").read_text())
    del stated["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**stated, "vocab_size": VOCABULARY, **config}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "tasks" / "xlm-tag" / name, folder)
