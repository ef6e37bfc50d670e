"""Write a model of a given shape with random weights, for measuring speed only.

    python bench/synthetic.py OUT.gguf [--family llama] [--form Q4_K] [--shape width=2048 layers=16 ...]
    python bench/synthetic.py OUT.gguf --like olmoe

The dimensions are those of `pellucid.testing.random_model`; --like names a set of them. The tokenizer is SmolLM2's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint
from pellucid.weights.store import resolve

LIKE: dict[str, tuple[str, str, dict[str, int]]] = {
    "llama-1b": (
        "llama",
        "Q4_K",
        {"width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64, "feed_forward": 8192},
    ),
    "qwen2.5-1.5b": (
        "qwen2",
        "Q4_K",
        {"width": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "head_dim": 128, "feed_forward": 8960},
    ),
    "olmoe": (
        "olmoe",
        "Q4_K",
        {
            "width": 2048,
            "layers": 16,
            "heads": 16,
            "kv_heads": 16,
            "head_dim": 128,
            "feed_forward": 1024,
            "experts": 64,
            "chosen": 8,
            "expert_width": 1024,
        },
    ),
    "gpt-oss-20b": (
        "gpt-oss",
        "MXFP4",
        {
            "width": 2880,
            "layers": 24,
            "heads": 64,
            "kv_heads": 8,
            "head_dim": 64,
            "window": 128,
            "feed_forward": 2880,
            "experts": 32,
            "chosen": 4,
            "expert_width": 2880,
        },
    ),
}
"""Family, format and dimensions of models that people have."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=LIKE, default="llama-1b")
    parser.add_argument("--family")
    parser.add_argument("--form")
    parser.add_argument("--shape", nargs="*", default=[], metavar="NAME=NUMBER")
    given = parser.parse_args()
    family, form, shape = LIKE[given.like]
    if given.family:
        family, shape = given.family, {}
    own = {name: int(number) for name, _, number in (one.partition("=") for one in given.shape)}
    tokenizer: dict[str, Any] = {
        key: value
        for key, value in open_checkpoint(resolve("smollm2")).metadata.items()
        if key.startswith("tokenizer.")
    }
    vocabulary = len(tokenizer["tokenizer.ggml.tokens"])
    shape = {"vocabulary": vocabulary, "context": 8192, **shape, **own}
    tied = family == "llama"  # as the models are that these are like
    random_model(
        family, given.out, kind="gguf", form=given.form or form, tied=tied, metadata=tokenizer, **shape
    )


if __name__ == "__main__":
    main()
