"""How fast text is made: tokens per second, against what this machine's memory allows and against llama.cpp.

    python bench/decode.py [--model smollm2] [--rounds 7] [--tokens 128] [--threads N]

Every round measures each of them once, in turn, so that a busy moment hits all alike; medians are printed, and
one JSON line last. The roof is the time to read the bytes that a token needs, measured in the same round by a
kernel that does nothing but read a buffer of that size. llama-bench is used if ``make bench-peers`` built it or
LLAMA_BENCH names it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import LLAMA_BENCH

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import Roofs
from pellucid.measure.rounds import REST
from pellucid.measure.suite import Decode, Prefill
from pellucid.weights.store import resolve

START = 16  # tokens of context before the first measured one, as short as llama-bench's
PROMPT = 512  # tokens, llama-bench's pp512


def speed(llm: LLM, workload: Decode | Prefill) -> float:
    """Tokens per second."""
    return workload.count / workload.seconds(llm.network)


def llama_bench(binary: Path, model: Path, threads: int, prompt: int, new: int) -> float:
    """One figure of llama-bench, tokens per second."""
    command = [
        str(binary),
        "-m",
        str(model),
        "-t",
        str(threads),
        "-p",
        str(prompt),
        "-n",
        str(new),
        "-r",
        "1",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
    done = subprocess.run(
        [*command, "-o", "json"], check=True, capture_output=True, text=True, env=environment
    )
    return float(json.loads(done.stdout)[0]["avg_ts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--activation-bits", type=int, default=16)
    arguments = parser.parse_args()
    llm = pellucid.load(arguments.model, threads=arguments.threads, activation_bits=arguments.activation_bits)
    threads = llm.network.threads
    weights = sum(op.weight_bytes for op in llm.plan.operations)
    roofs = Roofs(threads, weights)
    measure: dict[str, Callable[[], float]] = {
        "roof": lambda: roofs.read(weights) / weights,
        "decode": lambda: speed(llm, Decode(START, arguments.tokens)),
        "prefill": lambda: speed(llm, Prefill(PROMPT)),
    }
    peer = Path(os.environ.get("LLAMA_BENCH", LLAMA_BENCH))
    if peer.exists():
        path = resolve(arguments.model)
        measure["llama.cpp decode"] = lambda: llama_bench(peer, path, threads, 0, arguments.tokens)
        measure["llama.cpp prefill"] = lambda: llama_bench(peer, path, threads, PROMPT, 0)
    else:
        print("llama-bench is not here: make bench-peers builds it")
    report(arguments.model, threads, weights, rounds(measure, arguments.rounds))


def rounds(measure: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Each measurement once a round."""
    found: dict[str, list[float]] = {name: [] for name in measure}
    for number in range(count):
        for name, figure in measure.items():
            time.sleep(REST)  # the threads of the one before let go of their cores
            found[name].append(figure())
        print(f"round {number + 1}: " + ", ".join(f"{n} {v[-1]:.0f}" for n, v in found.items()), flush=True)
    return found


def report(model: str, threads: int, weights: int, found: dict[str, list[float]]) -> None:
    """Medians, ratios of the same round, and the JSON line."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    result: dict[str, Any] = {"model": model, "threads": threads, "bytes_per_token": weights}
    result["tokens_per_second"] = {name: round(value, 1) for name, value in medians.items() if name != "roof"}
    result["read_gigabytes_per_second"] = round(medians["roof"] * weights / 1e9, 2)
    result["share_of_bandwidth"] = round(_ratio(found["decode"], found["roof"]), 3)
    for name in ("decode", "prefill"):
        if f"llama.cpp {name}" in found:
            result[f"{name}_over_llama.cpp"] = round(_ratio(found[name], found[f"llama.cpp {name}"]), 2)
    print(f"\n{model}, {threads} threads, medians of {len(found['roof'])} rounds")
    print(
        f"  memory          {result['read_gigabytes_per_second']} GB/s: {medians['roof']:.0f} tokens/s at most"
    )
    for name, value in medians.items():
        if name != "roof":
            print(f"  {name:<18}{value:8.1f} tokens/s")
    print(f"  decode is {result['share_of_bandwidth']:.0%} of what the memory allows")
    for name in ("decode", "prefill"):
        if f"{name}_over_llama.cpp" in result:
            print(f"  {name} is {result[f'{name}_over_llama.cpp']} times llama.cpp's")
    print(json.dumps(result))


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs))


if __name__ == "__main__":
    main()
