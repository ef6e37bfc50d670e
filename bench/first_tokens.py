"""Answers that begin with another token than in float32, by the bits of activations, with the price in speed.

    python bench/first_tokens.py [--model smollm2] [--questions 200]

A question is a prompt of the chat template. The reference is ``precise``, whose results are those of the float32 run
(``make test-greedy``). For 8 and 16 bits the output has the share of questions whose likeliest first token differs, the
mean KL divergence of the first token's distribution, and the speeds of prefill and decode relative to 8 bits. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from requests_together import GREEDY, random_ids

import pellucid
from pellucid.llm import LLM

KINDS = (
    "What is {}?", "How does {} work?", "Why is {} important?", "Write a poem about {}.", "Explain {} to a child.",
    "Name three facts about {}.", "Who invented {}?", "Is {} older than the telephone?", "Tell me a story about {}.",
    "How would you describe {} in one word?",
)  # fmt: skip
SUBJECTS = (
    "a river", "the moon", "bread", "a clock", "winter", "a bicycle", "the printing press", "a volcano", "chess",
    "glass", "the heart", "a lighthouse", "rain", "a library", "honey", "a magnet", "paper", "a bridge", "music",
    "the sea",
)  # fmt: skip


def log_probabilities(llm: LLM, questions: list[str]) -> NDArray[np.float64]:
    """The log-probabilities (questions, V) of the first token of each answer."""
    rows = []
    for question in questions:
        with llm.trace("project.logits") as trace:
            llm.chat(question, max_new_tokens=1, temperature=0)
        logits = trace["project.logits"][0, -1].astype(np.float64)
        top = logits.max()
        rows.append(logits - top - np.log(np.exp(logits - top).sum()))
    return np.stack(rows)


def speeds(llm: LLM, rounds: int = 5) -> tuple[float, float]:
    """Tokens per second of prefill (512 tokens) and decode (64 tokens): medians."""
    prefill, decode = [], []
    for number in range(rounds):
        start = time.perf_counter()
        llm.generate(random_ids(llm, 512, number), max_new_tokens=1, **GREEDY)
        prefill.append(512 / (time.perf_counter() - start))
        timings = llm.generate(random_ids(llm, 8, number), max_new_tokens=65, **GREEDY).timings
        decode.append(64 / (timings.total - timings.first_token))
    return statistics.median(prefill), statistics.median(decode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=200)
    asked = parser.parse_args()
    questions = [kind.format(subject) for subject, kind in product(SUBJECTS, KINDS)][: asked.questions]
    with pellucid.load(asked.model, precise=True) as llm:
        reference, exact = log_probabilities(llm, questions), speeds(llm)
    found: dict[str, Any] = {"model": asked.model, "questions": len(questions)}
    base = (0.0, 0.0)
    for bits in (8, 16):
        with pellucid.load(asked.model, activations=bits) as llm:
            values, speed = log_probabilities(llm, questions), speeds(llm)
        base = speed if bits == 8 else base
        divergence = (np.exp(reference) * (reference - values)).sum(axis=1)
        found[f"{bits} bits"] = {
            "other first token": float((values.argmax(1) != reference.argmax(1)).mean()),
            "mean KL divergence": float(divergence.mean()),
            "prefill": speed[0] / base[0],
            "decode": speed[1] / base[1],
        }
    found["precise"] = {"prefill": exact[0] / base[0], "decode": exact[1] / base[1]}
    for name, figures in found.items():
        print(name, figures)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
