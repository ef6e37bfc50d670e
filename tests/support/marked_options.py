"""Random models that score each option at a mark: GGUF files as llama.cpp's converter writes them for its type "laya".

The module writes the files without the reader of the format, so that reader and writer cannot share a mistake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from support.decisions import QUESTIONS, text, tokenizer
from support.drawn import draw
from support.model_files import gguf

GOLDEN = Path(__file__).parents[1] / "goldens" / "decide" / "marked_options.json"
CLS, SEP, MASK = 258, 259, 260
NAMES = {CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}
TEMPLATE = (
    "[CLS]{{ type }} question: " + text("instructions") + "[SEP]{% for o in options %}[MASK] {% if o.description %}"
    + text("o.description") + "{% else %}{{ o.key }}{% endif %}{% endfor %}[SEP]" + text("state") + "[SEP]"
)  # fmt: skip
"""The template of the published models of this type, with the names of ModernBERT's tokens."""
COMMON = {
    "vocab_size": 320,
    "context_length": 512,
    "attention.causal": False,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.freq_base": 160_000.0,
    "decision.type": "laya",
}
MODELS: dict[str, dict[str, Any]] = {
    "laya": {
        "block_count": 6,
        "embedding_length": 64,
        "feed_forward_length": np.array([96] * 4 + [128] * 2, np.int32),
        "attention.head_count": 4,
        "attention.sliding_window": 16,
        "rope.freq_base_swa": 10_000.0,
        "decision.block_count": 2,
        "decision.max_head_tokens": 192,
        "decision.temperature.choice": 1.5,
        "decision.temperature.choice.3_5": 0.8,
        "decision.temperature.noul.2": 1.25,
    },
    "odd": {
        "block_count": 3,
        "embedding_length": 48,
        "feed_forward_length": np.array([40, 40, 72], np.int32),
        "attention.head_count": 2,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": np.array([1, 0, 1], np.bool_),
        "hidden_activation": "silu",
        "decision.block_count": 1,
        "decision.max_head_tokens": 60,
    },
}
"""Metadata: two shapes. In "odd", most questions and options are longer than the limit, and are cut."""
ASKED: dict[str, Any] = {
    **QUESTIONS,
    "masks": {"type": "choice", "instructions": "[MASK] or a[MASK]?", "criteria": {"b": "a [MASK]", "c": None}},
    "long": {"type": "noul", "instructions": "How long? " * 30, "criteria": {"false": "short " * 12}},
    "many": {"type": "choice", "instructions": "Which number?", "criteria": {f"number {at}": None for at in range(24)}},
}  # fmt: skip


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of llama.cpp's modern-bert with a decision head, row-major."""
    width, widths = config["embedding_length"], config["feed_forward_length"]
    encoder = config["block_count"] - config["decision.block_count"]
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (320, width),
        "token_embd_norm.weight": (width,),
        "output_norm.weight": (width,),
        "token_types.weight": (3, width),
        "cls.weight": (width, width),
        "cls.bias": (width,),
        "cls.norm.weight": (width,),
        "cls.norm.bias": (width,),
        "cls.output.weight": (1, width),
        "cls.output.bias": (1,),
    }
    for layer, inner in enumerate(map(int, widths)):
        decides, block = layer >= encoder, f"blk.{layer}"
        matrices = {
            "attn_qkv": (3 * width, width),
            "attn_output": (width, width),
            "ffn_up": (inner if decides else 2 * inner, width),
            "ffn_down": (width, inner),
        }
        norms = ("attn_norm", "ffn_norm") if layer else ("ffn_norm",)
        found |= {f"{block}.{name}.weight": shape for name, shape in matrices.items()}
        found |= {f"{block}.{name}.weight": (width,) for name in norms}
        if decides:
            found |= {f"{block}.{name}.bias": shape[:1] for name, shape in matrices.items()}
            found |= {f"{block}.{name}.bias": (width,) for name in norms}
    return found


def weights(name: str) -> dict[str, np.ndarray]:
    """The random weights of a model, float32."""
    return draw(tensor_shapes(MODELS[name]), name)


def marked_model(path: Path, name: str = "laya", **changes: Any) -> Path:
    """Write a model. ``changes`` are keys to replace, with None to remove: of the architecture without its name."""
    keys = tokenizer()
    pieces, types = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].copy()
    for token, piece in NAMES.items():
        pieces[token], types[token] = piece, 3
    metadata = {
        "general.architecture": "modern-bert",
        **keys,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.token_type_count": 3,
        "tokenizer.ggml.cls_token_id": CLS,
        "tokenizer.ggml.seperator_token_id": SEP,
        "tokenizer.ggml.mask_token_id": MASK,
        "tokenizer.chat_template.systemone": TEMPLATE,
        **{f"modern-bert.{key}": value for key, value in {**COMMON, **MODELS[name]}.items()},
    }
    for key, value in changes.items():
        metadata[key if key.startswith(("tokenizer.", "general.")) else f"modern-bert.{key}"] = value
    given = {key: value for key, value in metadata.items() if value is not None}
    path.write_bytes(gguf(given, {key: (x.shape, 0, x.tobytes()) for key, x in weights(name).items()}))
    return path


def golden() -> Any:
    """{model: [{question: {"ids": [id], "marks": [position], "scores": [float], "answer": {...}}}]} by state."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))
