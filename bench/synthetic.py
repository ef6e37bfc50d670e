"""Write a model of a given shape with random weights, for measuring speed only.

    python bench/synthetic.py OUT.gguf [--family llama] [--form Q4_K] [--shape width=2048 layers=16 ...]
    python bench/synthetic.py OUT.gguf --like olmoe-1b-7b

The dimensions are those of `pellucid.testing.random_model`; --like names a shape on
paper (`pellucid/measure/paper.json`). The tokenizer is SmolLM2's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pellucid.measure.paper import USUAL, known_papers
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint
from pellucid.weights.store import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=known_papers(), default="llama-3.2-1b")
    parser.add_argument("--family")
    parser.add_argument("--form")
    parser.add_argument("--shape", nargs="*", default=[], metavar="NAME=NUMBER")
    given = parser.parse_args()
    like = {"family": given.family, "shape": {}} if given.family else known_papers()[given.like]
    own = {name: int(number) for name, _, number in (one.partition("=") for one in given.shape)}
    tokenizer: dict[str, Any] = {
        key: value
        for key, value in open_checkpoint(resolve("smollm2")).metadata.items()
        if key.startswith("tokenizer.")
    }
    vocabulary = len(tokenizer["tokenizer.ggml.tokens"])
    shape = {**like["shape"], "vocabulary": vocabulary, "context": 8192, **own}
    random_model(
        like["family"],
        given.out,
        kind="gguf",
        form=given.form or like.get("form", USUAL),
        tied=like.get("tied", True),
        metadata=tokenizer,
        **shape,
    )


if __name__ == "__main__":
    main()
