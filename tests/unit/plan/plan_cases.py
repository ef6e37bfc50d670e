"""Plans to test: every tiny model, and a random Llama in Q8_0 with quantized activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.model_files import gguf
from support.tiny import LLAMA_GGUF, TINY, opened, random_weights

from pellucid.pipeline import build_plan, unoptimized_plan
from pellucid.plan.bind import layouts
from pellucid.plan.plan import Plan

ALL = [*TINY, "q8_0", "q8_0, 8 bits"]


def q8_0(weights: np.ndarray) -> bytes:
    """Q8_0 blocks of 32 values: a float16 scale, then int8."""
    blocks = weights.reshape(-1, 32)
    scale = np.float16(np.abs(blocks).max(1) / 127)
    values = np.int8(np.round(blocks / np.float32(scale)[:, None]).clip(-127, 127))
    return b"".join(s.tobytes() + v.tobytes() for s, v in zip(scale, values))


def write_q8_0(path: Path, head_dim: int = 32) -> Path:
    D, F, V = 64, 96, 64
    H, at = D // head_dim, "blk.0"
    shapes = {
        "token_embd.weight": (V, D),
        "output_norm.weight": (D,),
        **{f"{at}.{n}_norm.weight": (D,) for n in ("attn", "ffn")},
        **{f"{at}.attn_{n}.weight": (w, D) for n, w in (("q", D), ("k", head_dim), ("v", head_dim))},
        f"{at}.attn_output.weight": (D, D),
        **{f"{at}.ffn_{n}.weight": (F, D) for n in ("gate", "up")},
        f"{at}.ffn_down.weight": (D, F),
    }
    metadata = {**LLAMA_GGUF, "llama.embedding_length": D, "llama.feed_forward_length": F}
    metadata |= {"llama.attention.head_count": H, "llama.rope.dimension_count": head_dim}
    tensors = {
        name: (w.shape, 8, q8_0(w)) if w.ndim > 1 else (w.shape, 0, w.tobytes())
        for name, w in random_weights(shapes).items()
    }
    path.write_bytes(gguf(metadata, tensors))
    return path


def path_of(name: str, folder: Path) -> Path:
    return TINY[name] if name in TINY else write_q8_0(folder / "q8_0.gguf", 16 if "8 bits" in name else 32)


def activation_bits_of(name: str) -> int:
    return 8 if "8 bits" in name else 16


def plans(name: str, folder: Path) -> tuple[Path, Plan, Plan]:
    """The model's path, its plan without passes, and the optimized plan that runs."""
    path = path_of(name, folder)
    with opened(path) as (checkpoint, model):
        packed = layouts(checkpoint, model)
        return (
            path,
            unoptimized_plan(model.spec, packed, activation_bits_of(name)),
            build_plan(model.spec, packed, activation_bits_of(name)),
        )
