"""A tokenizer for random models: a token for each of the 256 bytes, "<s>", "</s>", and unused tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.tokenize.stages.decode import byte_alphabet

SMALLEST = 258
BOS, EOS = 256, 257
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # llama.cpp's types of tokens


def _pieces(vocabulary: int) -> list[str]:
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    unused = [f"<unused{i}>" for i in range(vocabulary - SMALLEST)]
    return [*(spelling[byte] for byte in range(256)), "<s>", "</s>", *unused]


def gguf_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Keys of the tokenizer in GGUF. ``vocabulary`` is at least SMALLEST."""
    pieces = _pieces(vocabulary)
    types = [_NORMAL] * 256 + [_CONTROL] * 2 + [_UNUSED] * (len(pieces) - SMALLEST)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": False,
    }


def json_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Contents of tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {piece: number for number, piece in enumerate(_pieces(vocabulary))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text], "content": text, **special} for text in ("<s>", "</s>")],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": ids, "merges": [],
        },
    }  # fmt: skip
