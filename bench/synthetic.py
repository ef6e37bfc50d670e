"""Write a model of a given shape with random weights, for measuring speed only.

    python bench/synthetic.py OUT.gguf [--family llama] [--form Q4_K] [--shape width=2048 layers=16 ...]
    python bench/synthetic.py OUT.gguf --like olmoe-1b-7b

The names of dimensions are as in `pellucid.testing.random_model`. --like takes the
shape of a published model (`pellucid/measure/paper.json`). The tokenizer is
SmolLM2's, with additional unused tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.measure.paper import DEFAULT_FORMAT, paper_shapes
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint
from pellucid.weights.store import resolve

UNUSED = 5  # llama.cpp's token type for unused tokens


def _extend(tokenizer: dict[str, Any], vocabulary: int) -> None:
    """Add unused tokens up to ``vocabulary`` tokens."""
    tokens = list(tokenizer["tokenizer.ggml.tokens"])
    missing = range(vocabulary - len(tokens))
    types = np.array(tokenizer["tokenizer.ggml.token_type"], np.int32)
    tokenizer["tokenizer.ggml.tokens"] = tokens + [f"<unused {number}>" for number in missing]
    tokenizer["tokenizer.ggml.token_type"] = np.concatenate([types, np.full(len(missing), UNUSED, np.int32)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=paper_shapes(), default="llama-3.2-1b")
    parser.add_argument("--family")
    parser.add_argument("--form")
    parser.add_argument("--shape", nargs="*", default=[], metavar="NAME=NUMBER")
    given = parser.parse_args()
    like = {"family": given.family, "shape": {}} if given.family else paper_shapes()[given.like]
    own = {name: int(number) for name, _, number in (one.partition("=") for one in given.shape)}
    tokenizer: dict[str, Any] = {
        key: value
        for key, value in open_checkpoint(resolve("smollm2")).metadata.items()
        if key.startswith("tokenizer.")
    }
    vocabulary = max(like["shape"].get("vocabulary", 0), len(tokenizer["tokenizer.ggml.tokens"]))
    shape = {**like["shape"], "vocabulary": vocabulary, "context": 8192, **own}
    _extend(tokenizer, shape["vocabulary"])
    random_model(
        like["family"],
        given.out,
        kind="gguf",
        form=given.form or like.get("form", DEFAULT_FORMAT),
        tied=like.get("tied", True),
        metadata={**tokenizer, **like.get("gguf_metadata", {})},
        **shape,
    )


if __name__ == "__main__":
    main()
