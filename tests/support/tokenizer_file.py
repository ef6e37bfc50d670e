"""Writes a byte-level tokenizer.json with a chat template: 256 bytes, pairs of letters, special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}<|turn|>assistant:"
SPECIAL = ["<|end|>", "<|turn|>"]


def byte_letters() -> list[str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    return [letters[byte] for byte in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """``size`` tokens, and the merges that produce the last tokens."""
    letters = "etaoinsr"
    pairs = [(a, b) for a in letters for b in letters][: size - 258]
    tokens = [*SPECIAL, *byte_letters(), *(a + b for a, b in pairs)]
    assert len(tokens) == size
    return tokens, pairs


def gguf_tokenizer(size: int = 320) -> dict[str, Any]:
    """The same tokenizer as the metadata of a GGUF file."""
    tokens, pairs = vocabulary(size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3] + [1] * (size - 2), np.int32),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_tokenizer(folder: Path, size: int = 320, eos_ids: tuple[int, ...] = (0,)) -> None:
    """Write a tokenizer with ``size`` tokens: <|end|> and <|turn|>, the bytes, and merged tokens."""
    tokens, pairs = vocabulary(size)
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in pairs],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {"eos_token": SPECIAL[0], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(eos_ids)}))
