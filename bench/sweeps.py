"""Seconds of interpretability sweeps: activation patching, attention knock-out, attribution patching.

    python bench/sweeps.py [--model smollm2] [--rounds 5] [--threads N] [--peers PYTHON] [--dtypes float32 ...]
        [--sweeps attribution ...]

patch          every block and token of a prompt of 14 tokens, one copy each (30 x 14 with SmolLM2)
knock-out      every block and key that the last token attends to, one copy each (30 x 13)
attribution    two runs and a backward pass, for all blocks and tokens

`--peers` names an interpreter with torch, transformers and gguf, and optionally nnsight and transformer-lens: each
round then also runs `sweeps_peers.py`, which does the same with hooks of torch, nnsight and TransformerLens on batches
of copies, in each of `--dtypes`, on the same file unpacked. A peer whose package is absent is skipped with one line.
Output: each tool's median, its copies in a batch, and the correlation of its result with the result of the torch hooks
in the first dtype; the ratio of the fastest peer's median to Pellucid's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import facts
from pellucid.runtime.processors import processors
from pellucid.trace import attribution_patch, knockout_sweep, logit_difference, patch_sweep

PEERS = Path(__file__).with_name("sweeps_peers.py")
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "After Alice and Bob went to the store, Alice gave a drink to"
TOKENS = " Mary", " John"
RUNS = {"attribution": 2}
"""Runs in a round, whose fastest counts; 1 of other sweeps. A peer runs each sweep once with each of two sizes of
batches, which are the same for attribution patching."""
SWEEPS = ["patch", "knock-out", "attribution"]


def ways(llm: LLM, names: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Some sweeps by name. Each returns values by block and token."""
    target = logit_difference(llm, *TOKENS)
    found = {
        "patch": lambda: patch_sweep(llm, CLEAN, CORRUPTED, target).values,
        "knock-out": lambda: knockout_sweep(llm, CLEAN, target).values,
        "attribution": lambda: attribution_patch(llm, CLEAN, CORRUPTED, target).values,
    }
    return {name: found[name] for name in names}


def timed(llm: LLM, way: Callable[[], Any]) -> float:
    """Seconds of a run."""
    llm.engine.cache.clear_prefixes()
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def ask_peers(
    python: str, llm: LLM, threads: int, dtypes: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Run some sweeps of the peers once. Returns seconds, values and copies of each peer and sweep, and the notes."""
    ids = [llm.inputs.prompt(text) for text in (CLEAN, CORRUPTED)]
    tokens = [llm.tokenizer.encode(text, add_special=False)[0] for text in TOKENS]
    done = subprocess.run(
        [
            python,
            PEERS,
            llm.checkpoint.path,
            json.dumps([*ids, tokens]),
            "--threads",
            str(threads),
            "--dtypes",
            *dtypes,
            "--sweeps",
            *names,
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peers"], found["notes"]


def correlations(results: dict[str, Any], reference: str) -> dict[str, float]:
    """The correlation of each tool's result with the result of ``reference``; empty if ``reference`` has no result."""
    if reference not in results:
        return {}
    theirs = results[reference].ravel()
    return {tool: float(np.corrcoef(values.ravel(), theirs)[0, 1]) for tool, values in results.items()}


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=processors().usable)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=SWEEPS)
    asked = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    results: dict[str, dict[str, Any]] = {}
    copies: dict[str, dict[str, list[int]]] = {}
    notes: list[str] = []
    with pellucid.load(asked.model, threads=asked.threads) as llm:
        for name, way in ways(llm, asked.sweeps).items():
            # warm: kernels are compiled, weights of gradients are kept
            results[name], copies[name], seconds[name] = {"pellucid": way()}, {}, {}
        for _ in range(asked.rounds):
            for name, way in ways(llm, asked.sweeps).items():
                seconds[name].setdefault("pellucid", []).append(min(timed(llm, way) for _ in range(RUNS.get(name, 1))))
            if asked.peers:
                peers, noted = ask_peers(asked.peers, llm, asked.threads, asked.dtypes, asked.sweeps)
                notes += [note for note in noted if note not in notes]
                for peer, sweeps in peers.items():
                    for name, (spent, values, batch) in sweeps.items():
                        seconds[name].setdefault(peer, []).append(spent)
                        copies[name].setdefault(peer, []).append(batch)
                        results[name][peer] = np.array(values)
    medians = {name: {tool: statistics.median(own) for tool, own in tools.items()} for name, tools in seconds.items()}
    found = {name: correlations(own, f"torch hooks {asked.dtypes[0]}") for name, own in results.items()}
    for name, tools in medians.items():
        for tool, spent in tools.items():
            batch = f"batches of {statistics.mode(copies[name][tool])}" if tool in copies[name] else ""
            agreement = f"  correlation {found[name][tool]:.4f}" if found[name] else ""
            print(f"{name:<13}{tool:<26}{spent * 1000:>8,.0f} ms  {batch:<13}{agreement}".rstrip())
        peers = {tool: spent for tool, spent in tools.items() if tool != "pellucid"}
        if peers:
            fastest = min(peers, key=lambda tool: peers[tool])
            print(f"{name:<13}ratio {peers[fastest] / tools['pellucid']:.2f} ({fastest})")
    print(*notes, sep="\n", end="\n" if notes else "")
    print(json.dumps({"seconds": medians, "correlations": found, "notes": notes, "machine": facts()}))


if __name__ == "__main__":
    main()
