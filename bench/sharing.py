"""Delays that long prompts cause for short prompts, and that a client causes for another client.

    python bench/sharing.py [--model smollm2] [--long 8000] [--short 30] [--many 64] [--rounds 3] [--busy 0]

Four measurements, each the median of the rounds:

- A short prompt beside a long prompt: the short prompt's time to first token, divided by the time of a step that runs
  the long prompt alone; and the long prompt's time, relative to its time alone.
- 200 short prompts, one after the other, beside a prompt of 3,400 tokens that is read again and again: the median, 95th
  percentile and maximum of seconds and steps until the first token. ``--busy N`` processes compute beside it.
- Many long prompts, and a short prompt every half second: the longest wait of a short prompt, and the number of short
  prompts that ended.
- A client with many long prompts, and a client that sends one prompt after the other: the second client's time to first
  token, relative to its time alone.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from requests_together import GREEDY, forget, random_ids

import pellucid
from pellucid.llm import LLM


def first_token(llm: LLM, prompt: list[int]) -> float:
    """Seconds until the first token after a prompt."""
    start = time.perf_counter()
    llm.generate(prompt, max_new_tokens=1, **GREEDY)
    return time.perf_counter() - start


def together(*functions: Callable[[], object]) -> None:
    """Run functions in threads, and wait for all."""
    threads = [threading.Thread(target=one) for one in functions]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def short_beside_long(llm: LLM, long: int, short: int, seed: int) -> dict[str, float]:
    prompt = random_ids(llm, long, seed)
    forget(llm)
    steps, seconds = llm.engine.steps, llm.engine.step_seconds
    alone = first_token(llm, prompt)
    step = (llm.engine.step_seconds - seconds) / (llm.engine.steps - steps)
    forget(llm)
    found = dict[str, float]()

    def ask_short() -> None:
        time.sleep(alone / 3)
        found["short"] = first_token(llm, random_ids(llm, short, seed + 1))

    def ask_long() -> None:
        found["long"] = first_token(llm, prompt)

    together(ask_long, ask_short)
    return {
        "short_seconds": found["short"],
        "short_in_steps": found["short"] / step,
        "long_relative_to_alone": found["long"] / alone,
    }


def shorts_beside_long(llm: LLM, short: int, seed: int, count: int = 200, long: int = 3400) -> dict[str, float]:
    """Measure short prompts while long prompts, one after the other, are read without an end."""
    over, by = threading.Event(), random.Random(seed)
    waits, steps = list[float](), list[int]()

    def ask_long() -> None:
        number = seed
        while not over.is_set():
            number += 1000
            first_token(llm, random_ids(llm, long, number))

    def ask_short() -> None:
        for number in range(count):
            time.sleep(by.uniform(0.02, 0.12))
            begun = llm.engine.steps
            waits.append(first_token(llm, random_ids(llm, short, seed + number + 1)))
            steps.append(llm.engine.steps - begun)
        over.set()

    together(ask_long, ask_short)
    waits.sort()
    steps.sort()
    found: dict[str, list[Any]] = {"seconds": waits, "steps": steps}
    return {
        f"{name}_{at}": values[min(int(share * count), count - 1)]
        for name, values in found.items()
        for at, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0))
    }


def trickle(llm: LLM, many: int, long: int, short: int, seed: int) -> dict[str, float]:
    forget(llm)
    over, waits = threading.Event(), list[float]()

    def ask_long() -> None:
        prompts = [random_ids(llm, long, seed + number) for number in range(many)]
        llm.generate(prompts, max_new_tokens=1, **GREEDY)
        over.set()

    def ask_short() -> None:
        while not over.wait(0.5):
            waits.append(first_token(llm, random_ids(llm, short, seed + 1000 + len(waits))))

    together(ask_long, ask_short)
    return {"longest_wait": max(waits), "median_wait": statistics.median(waits), "short_prompts": len(waits)}


def two_clients(llm: LLM, many: int, long: int, seed: int) -> dict[str, float]:
    """Measure a client with one prompt at a time beside a client with many prompts."""
    forget(llm)
    asked = [random_ids(llm, long, seed + 500 + number) for number in range(3)]
    alone = statistics.median(first_token(llm, prompt) for prompt in asked)
    forget(llm)
    started, waits = threading.Event(), list[float]()

    def ask_many() -> None:
        prompts = [random_ids(llm, long, seed + number) for number in range(many)]
        started.set()
        llm.for_client("many").generate(prompts, max_new_tokens=1, **GREEDY)

    def ask_one() -> None:
        started.wait()
        time.sleep(0.2)
        waits.extend(first_token(llm.for_client("one"), prompt) for prompt in asked)

    together(ask_many, ask_one)
    return {"relative_to_alone": statistics.median(waits) / alone}


def _spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--long", type=int, default=8000)
    parser.add_argument("--short", type=int, default=30)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    asked = parser.parse_args()
    found: dict[str, Any] = {"model": asked.model}
    busy = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(asked.busy)]
    for process in busy:
        process.start()
    with pellucid.load(asked.model) as llm:
        first_token(llm, random_ids(llm, 600, 0))
        rounds = [
            {
                "short_beside_long": short_beside_long(llm, asked.long, asked.short, 10 * number),
                "shorts_beside_long": shorts_beside_long(llm, asked.short, 10 * number),
                "trickle": trickle(llm, asked.many, asked.long // 8, asked.short, 10 * number),
                "two_clients": two_clients(llm, asked.many // 4, asked.long // 8, 10 * number),
            }
            for number in range(asked.rounds)
        ]
    for name, figures in rounds[0].items():
        found[name] = {figure: round(statistics.median(one[name][figure] for one in rounds), 3) for figure in figures}
        print(name, found[name], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
