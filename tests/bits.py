"""Hashes of results, to compare two versions: the same hash means the same bits.

Scores, generations with log-probabilities, beams, traces and sentence vectors of models, on one and on two threads, as
usual and with ``precise``:

    python tests/bits.py smollm2 gemma3 qwen2.5-coder-0.5b minilm
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np

import pellucid
from pellucid.llm import LLM
from pellucid.trace import scale

TEXT = "The tower of the old town was built in 1423, and since then the people of the valley meet in its hall. " * 6
CODE = "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n"
DRAWN: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "ignore_eos": True}
POINTS = ("blocks.*.residual", "blocks.0.attention.pattern", "blocks.1.feedforward.hidden", "project.logits")


def results_of(llm: LLM) -> Iterator[tuple[str, Any]]:
    """The name and the result of each method."""
    if not llm.spec.generates:
        yield "vectors", llm.embed([TEXT[:100], CODE, "中国 — ünïcödé"])
        return
    yield "score", vars(llm.score(TEXT[:400], top=3).logprobs)
    for seed in (1, 2):
        made = llm.generate(TEXT, max_new_tokens=48, seed=seed, logprobs=4, prompt_logprobs=2, **DRAWN)
        yield "generation", (made.ids, vars(made.logprobs), vars(made.prompt_logprobs))
    made = [one.ids for one in llm.generate([TEXT[:90], CODE, "Hi"], max_new_tokens=24, seed=3, **DRAWN)]
    yield "requests that run together", made
    yield "samples", [one.ids for one in llm.samples(CODE, 3, max_new_tokens=24, seed=4, **DRAWN)]
    yield ("beams", [(one.ids, one.score) for one in llm.beam_search(CODE, num_beams=4, max_new_tokens=16).texts])
    with llm.trace(*POINTS) as trace:
        llm.generate(TEXT[:200], max_new_tokens=8, temperature=0, ignore_eos=True)
    yield "trace", {name: trace[name] for name in trace}
    edited = llm.generate(CODE, edits=[scale("blocks.1.residual", 1.5)], max_new_tokens=12, temperature=0)
    yield "edits", edited.ids


def add(digest: Any, value: Any) -> None:
    """Add a value to a hash: arrays by their bytes, so that equal hashes mean equal bits."""
    if isinstance(value, dict):
        for name, one in sorted(value.items()):
            add(digest, name)
            add(digest, one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            add(digest, one)
    elif isinstance(value, np.ndarray):
        digest.update(str((value.dtype, value.shape)).encode() + value.tobytes())
    else:
        digest.update(repr(value).encode())


def main(models: list[str]) -> None:
    for model in models:
        for precise in (False, True):
            for threads in (1, 2):
                with pellucid.load(model, threads=threads, precise=precise) as llm:
                    for name, result in results_of(llm):
                        digest = sha256()
                        add(digest, result)
                        how = f"{threads} threads{', precise' if precise else ''}"
                        print(f"{model:20} {how:20} {name:28} {digest.hexdigest()[:16]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["smollm2", "gemma3", "qwen2.5-coder-0.5b", "minilm"])
