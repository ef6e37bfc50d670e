"""Greedy texts of real models in precise mode, against transformers' float32 run of the same file.

    python tests/oracles/greedy_long.py [MODEL...] [--tokens 64]

Pellucid and transformers continue twenty prompts greedily, prose and code. At the first difference the two tokens must
tie in the float32 run: their logits differ by at most 1e-4. transformers dequantizes the weights of the GGUF file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GgufConfig

import pellucid
from pellucid.weights.store import resolve

TIE = 1e-4
PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village by the sea,", "Water boils at",
    "The three laws of thermodynamics say", "In 1969, the first human", "Dear Sir or Madam,",
    "A recipe for pancakes:\n1.", "Photosynthesis is the process by which", "Es war einmal", "Le petit prince",
    "def fibonacci(n):\n", "import numpy as np\n\ndef softmax(x):\n", "class Stack:\n    def __init__(self):\n",
    "#include <stdio.h>\n\nint main(void) {\n", "SELECT name, COUNT(*) FROM",
    "// Reverse a linked list\nfunction reverse(",
    "fn main() {\n    let mut", "<!DOCTYPE html>\n<html>\n<head>", "for i in range(10):\n    print(",
    '{"name": "Ada", "born":',
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    bad = sum(compare(name, given.tokens) for name in given.models)
    sys.exit(bool(bad))


def compare(name: str, tokens: int) -> int:
    """Number of prompts that a model continues differently, not counting ties."""
    path = resolve(name)
    ours = continued(path, tokens)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    equal = ties = 0
    for prompt, (ids, found) in zip(PROMPTS, ours):
        at = first_difference(model, ids, found)
        if at is None:
            equal += 1
        elif at[1] <= TIE:
            ties += 1
        else:
            print(f"{name}: {prompt!r} differs at token {at[0]}, where the logits are {at[1]:.1e} apart")
    print(f"{name}: {equal} of {len(ours)} equal for {tokens} tokens, {ties} more until a tie")
    return len(ours) - equal - ties


def continued(path: Path, tokens: int) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, generated ids) of each prompt in Pellucid."""
    with pellucid.load(path, precise=True, context=512) as llm:
        prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        neutral = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
        return [(ids, llm.generate(ids, **options, **neutral).ids) for ids in prompts]


def first_difference(model: Any, ids: list[int], found: list[int]) -> tuple[int, float] | None:
    """First position where the float32 run chooses another token than ``found``, and the difference of the two logits.

    Up to the first difference both runs have the same tokens, so a single pass over the whole text is enough. Returns
    None if all tokens agree.
    """
    logits = model(torch.tensor([[*ids, *found]])).logits[0]
    for number, token in enumerate(found):
        row = logits[len(ids) + number - 1]
        best = int(row.argmax())
        if best != token:
            return number, float(row[best] - row[token])
    return None


if __name__ == "__main__":
    main()
