"""The cost of a logit lens beside the trace of the residual streams that it reads.

    python bench/lens.py [--models smollm2 gemma3] [--tokens 24] [--rounds 5] [--threads N]

A lens of L layers at T positions needs L * T rows of logits. Every round runs, in turn, a trace of the residual stream
after every block, the lens of the whole trace, a lens of the last position, and only the matrix products of the whole
lens (``ModelRunner.project``). Output: the medians, the median of the rounds' ratios to the trace, and the products'
share of the lens. The rest of the lens is overhead. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import facts
from pellucid.runtime.processors import processors
from pellucid.trace import logit_lens
from pellucid.trace.lenses.logit_lens import TOGETHER
from pellucid.trace.traced_model import read, residual_points


def seconds(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(llm: LLM, tokens: int, rounds: int) -> dict[str, Any]:
    """The medians in milliseconds, and the medians of the rounds' ratios."""
    ids, names = [100 + number for number in range(tokens)], residual_points(llm)
    sequence = read(llm, ids, names)
    rows = np.concatenate([sequence[name] for name in names])

    def products() -> None:
        for first in range(0, len(rows), TOGETHER):
            llm.runner.project(rows[first : first + TOGETHER])

    ways: dict[str, Callable[[], object]] = {
        "trace": lambda: read(llm, ids, names),
        "lens": lambda: logit_lens(llm, sequence),
        "lens of the last position": lambda: logit_lens(llm, sequence, positions=[-1]),
        "products": products,
    }
    for work in ways.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))

    def ratio(name: str, of: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[name], times[of])), 3)

    return {
        "rows": len(rows),
        "milliseconds": {name: round(1e3 * statistics.median(found), 2) for name, found in times.items()},
        "of_trace": {name: ratio(name, "trace") for name in times},
        "products_of_lens": ratio("products", "lens"),
    }


def main() -> None:
    """Measure, and print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["smollm2", "gemma3"])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="one for each physical core by default")
    asked = parser.parse_args()
    threads = processors().threads if asked.threads is None else asked.threads
    found = {}
    for model in asked.models:
        with pellucid.load(model, threads=threads) as llm:
            found[model] = made = measure(llm, asked.tokens, asked.rounds)
        print(f"{model}: {asked.tokens} tokens, {made['rows']:,} rows")
        for name, value in made["milliseconds"].items():
            print(f"  {name:<26}{value:>10,.1f} ms{made['of_trace'][name]:>9.2f} of the trace")
        print(f"  products of the lens      {made['products_of_lens']:>10.0%}")
    machine = {name: value for name, value in facts().items() if name in ("cpu", "instructions", "pellucid")}
    print(json.dumps({**machine, "threads": threads, "tokens": asked.tokens, "models": found}))


if __name__ == "__main__":
    main()
