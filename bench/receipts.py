"""Cost of receipts: decode with and without a receipt, bytes of a token, and the time of a verification.

    python bench/receipts.py [--model smollm2] [--rounds 7] [--tokens 128] [--threads N]

Every round generates the same text without and with a receipt, in turn, and then replays the receipt. Output: medians;
the median of the rounds' ratios; the time of the digest of a row of logits with SHA-256 and with BLAKE2b; the time of
the hash of the weights. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pellucid
from pellucid.measure.roofs import facts
from pellucid.weights.manifest import _computed
from pellucid.weights.sources.source import Silent

PROMPT = "Once upon a time"


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    how: dict[str, Any] = {"max_new_tokens": options.tokens, "ignore_eos": True, "seed": 1, "prompt_lookup": False}
    plain, with_receipt, ratios, replays = list[float](), list[float](), list[float](), list[float]()
    with pellucid.load(options.model, threads=options.threads) as llm:
        weights = seconds(lambda: _computed(llm.checkpoint, Silent()))
        made = llm.generate(PROMPT, receipt=True, **how).receipt
        assert made is not None
        for _ in range(options.rounds):
            plain.append(llm.generate(PROMPT, **how).tokens_per_second)
            with_receipt.append(llm.generate(PROMPT, receipt=True, **how).tokens_per_second)
            ratios.append(with_receipt[-1] / plain[-1])
            start = time.perf_counter()
            assert llm.verify_receipt(made)
            replays.append(options.tokens / (time.perf_counter() - start))
        row = np.random.default_rng(0).standard_normal(llm.width).astype(np.float32)
        digests = {
            name: min(seconds(lambda one=one: one(row.data).digest()) for _ in range(50))  # type: ignore[misc]
            for name, one in (("sha256", hashlib.sha256), ("blake2b", hashlib.blake2b))
        }
        vocabulary, stored = llm.width, llm.weight_bytes
    text = json.dumps(made.as_dict())
    fixed = len(text) - len(json.dumps(made.tokens)) - 4 * len(made.links) // 3
    figures = {
        "machine": facts(),
        "model": options.model,
        "vocabulary": vocabulary,
        "plain": statistics.median(plain),
        "receipt": statistics.median(with_receipt),
        "ratio": statistics.median(ratios),
        "replay": statistics.median(replays),
        "bytes_per_token": (len(text) - fixed) / options.tokens,
        "fixed_bytes": fixed,
        "digest_ms": {name: 1e3 * value for name, value in digests.items()},
        "weights_seconds": weights,
        "weights_gb": stored / 1e9,
    }
    print(f"decode {figures['plain']:.1f} tokens/s, with a receipt {figures['receipt']:.1f} ({figures['ratio']:.3f})")
    print(f"replay {figures['replay']:.1f} tokens/s, {figures['bytes_per_token']:.1f} bytes a token")
    print(f"digest of {vocabulary:,} logits: " + ", ".join(f"{n} {v:.3f} ms" for n, v in figures["digest_ms"].items()))
    print(f"hash of {stored / 1e9:.2f} GB of weights: {weights:.2f} s")
    print(json.dumps(figures, default=str))


if __name__ == "__main__":
    main()
