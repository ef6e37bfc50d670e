"""Concurrent requests in one process: their throughput, a long prompt beside a text, and a shared prefix.

    python bench/requests_together.py [--model smollm2] [--prompt 4000] [--requests 1 4 16 64]

The script prints three results. The first is the tokens per second for each number of requests of 64 tokens. The second
is the prefill time of a prompt while a text is generated, relative to the prompt alone, and the gaps between the text's
tokens meanwhile. The third is the speedup of the first token if 2,000 tokens of the prompt are in the prefix cache. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import threading
import time
from typing import Any

import pellucid
from pellucid.llm import LLM

GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "prompt_lookup": False}


def forget(llm: LLM) -> None:
    llm.engine.settle()
    llm.runner.cache.clear_prefixes()


def random_ids(llm: LLM, count: int, seed: int) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(300, llm.inputs.vocabulary - 300) for _ in range(count)]


def throughput(llm: LLM, requests: int, tokens: int = 64) -> float:
    prompts = [random_ids(llm, 32, number) for number in range(requests)]
    forget(llm)
    start = time.perf_counter()
    llm.generate(prompts, max_new_tokens=tokens, **GREEDY)
    return requests * tokens / (time.perf_counter() - start)


def beside_a_text(llm: LLM, length: int) -> dict[str, float]:
    ids, times, over = random_ids(llm, length, 1), list[float](), threading.Event()
    forget(llm)
    start = time.perf_counter()
    llm.generate(ids, max_new_tokens=1, **GREEDY)
    alone = time.perf_counter() - start
    forget(llm)

    def read() -> None:
        for _ in llm.start([5, 6, 7], max_new_tokens=llm.context - 10, **GREEDY):
            times.append(time.perf_counter())
            if over.is_set():
                return

    reader = threading.Thread(target=read)
    reader.start()
    while len(times) < 40:
        time.sleep(0.01)
    begin = time.perf_counter()
    llm.generate(ids, max_new_tokens=1, **GREEDY)
    end = time.perf_counter()
    over.set()
    reader.join()
    gaps = sorted(b - a for a, b in itertools.pairwise(times) if begin <= a <= end)
    return {
        "times_as_long_as_alone": (end - begin) / alone,
        "median_gap": statistics.median(gaps),
        "p99_gap": gaps[int(0.99 * len(gaps))],
        "longest_gap": gaps[-1],
    }


def shared_prefix(llm: LLM, length: int = 2000) -> float:
    prefix, firsts = random_ids(llm, length, 2), list[float]()
    forget(llm)
    for number in range(4):
        made = llm.generate([*prefix, *random_ids(llm, 20, 3 + number)], max_new_tokens=1, **GREEDY)
        firsts.append(made.timings.first_token)
    return firsts[0] / statistics.median(firsts[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16, 64])
    asked = parser.parse_args()
    found: dict[str, Any] = {"model": asked.model}
    with pellucid.load(asked.model, context=max(asked.prompt, 4000) + 1000) as llm:
        throughput(llm, 2)
        found["tokens_per_second"] = {str(n): round(throughput(llm, n), 1) for n in asked.requests}
        print(found["tokens_per_second"], flush=True)
        found["long_prompt"] = {name: round(value, 3) for name, value in beside_a_text(llm, asked.prompt).items()}
        print(found["long_prompt"], flush=True)
        found["first_token_sooner"] = round(shared_prefix(llm), 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
