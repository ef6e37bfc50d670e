"""Write a model of a given size with random weights, for measuring speed only.

    python bench/synthetic.py OUT.gguf [--format Q4_K] [--width 2048] [--layers 16] [--feed-forward 8192]

The architecture is Llama's, with 1.1 billion weights by default. The tokenizer is copied from SmolLM2's file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pellucid.weights.store import resolve

HEAD = 64  # K
SCALE = 0.01  # magnitude of the blocks' float16 scales: small enough for activations to stay finite


def random_blocks(rng: np.random.Generator, kind: Any, rows: int, columns: int) -> np.ndarray:
    """(rows, bytes): random bits, with the same float16 scales in every block."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // values, size), np.uint8)
    factor = np.array([SCALE / 32, SCALE / 32], np.float16).view(np.uint8)
    where = {"Q6_K": slice(208, 210), "Q4_K": slice(0, 4), "Q4_1": slice(0, 4)}.get(kind.name, slice(0, 2))
    raw[..., where] = factor[: where.stop - where.start]
    return raw.reshape(rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", default="Q4_K")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--feed-forward", type=int, default=8192)
    parser.add_argument("--kv-heads", type=int, default=8)
    given = parser.parse_args()
    kind, rng = gguf.GGMLQuantizationType[given.format], np.random.default_rng(0)
    D, F, G = given.width, given.feed_forward, given.kv_heads * HEAD

    source = gguf.GGUFReader(resolve("smollm2"))
    V = len(source.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(given.out, "llama")
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            of_list = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], of_list)
    writer.add_name(f"random {given.format}")
    writer.add_context_length(8192)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(given.layers)
    writer.add_head_count(D // HEAD)
    writer.add_head_count_kv(given.kv_heads)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)

    def matrix(name: str, rows: int, columns: int) -> None:
        data = random_blocks(rng, kind, rows, columns)
        writer.add_tensor(name, data, raw_dtype=kind)

    matrix("token_embd.weight", V, D)
    writer.add_tensor("output_norm.weight", np.ones(D, np.float32))
    for layer in range(given.layers):
        at = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{at}.{name}.weight", np.ones(D, np.float32))
        for name, rows, columns in (
            ("attn_q", D, D), ("attn_k", G, D), ("attn_v", G, D), ("attn_output", D, D),
            ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F),
        ):  # fmt: skip
            matrix(f"{at}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
