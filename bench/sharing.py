"""Delays that long prompts cause for short prompts, and that a client causes for another client.

    python bench/sharing.py [--model smollm2] [--long 8000] [--short 30] [--many 64] [--rounds 3]

Three measurements, each the median of the rounds:

- A short prompt beside a long prompt: the short prompt's time to first token, divided by the time of a step that runs
  the long prompt alone; and the long prompt's time, relative to its time alone.
- Many long prompts, and a short prompt every half second: the longest wait of a short prompt, and the number of short
  prompts that ended.
- A client with many long prompts, and a client that sends one prompt after the other: the second client's time to first
  token, relative to its time alone.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--long", type=int, default=8000)
    parser.add_argument("--short", type=int, default=30)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, Any] = {"model": asked.model}
    with pellucid.load(asked.model) as llm:
        first_token(llm, random_ids(llm, 600, 0))
        rounds = [
            {
                "short_beside_long": short_beside_long(llm, asked.long, asked.short, 10 * number),
                "trickle": trickle(llm, asked.many, asked.long // 8, asked.short, 10 * number),
                "two_clients": two_clients(llm, asked.many // 4, asked.long // 8, 10 * number),
            }
            for number in range(asked.rounds)
        ]
    for name, figures in rounds[0].items():
        found[name] = {
            figure: round(statistics.median(one[name][figure] for one in rounds), 3) for figure in figures
        }
        print(name, found[name], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
