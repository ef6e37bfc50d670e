"""Seconds of interpretability sweeps: activation patching, attention knock-out, attribution patching.

    python bench/sweeps.py [--model smollm2] [--rounds 5] [--threads N] [--peers PYTHON] [--dtypes float32 ...]

patch          every block and token of a prompt of 14 tokens, one copy each (30 x 14 with SmolLM2)
knock-out      every block and key that the last token attends to, one copy each (30 x 13)
attribution    two runs and a backward pass, for all blocks and tokens

`--peers` names an interpreter with torch, transformers and gguf: each round then also runs `sweeps_peers.py`, which
does the same with hooks of torch on batches of copies, in each of `--dtypes`, on the same file unpacked. Output: the
medians, the ratio of the fastest peer's median to Pellucid's, and the correlation with the peer's results. The last
line is JSON.
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
from pellucid.measure.machine import facts
from pellucid.runtime.processors import processors
from pellucid.trace import attribution_patch, knockout_sweep, logit_difference, patch_sweep

PEERS = Path(__file__).with_name("sweeps_peers.py")
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "After Alice and Bob went to the store, Alice gave a drink to"
TOKENS = " Mary", " John"


def ways(llm: LLM) -> dict[str, Callable[[], Any]]:
    """The sweeps by name. Each returns values by block and token."""
    target = logit_difference(llm, *TOKENS)
    return {
        "patch": lambda: patch_sweep(llm, CLEAN, CORRUPTED, target).values,
        "knock-out": lambda: knockout_sweep(llm, CLEAN, target).values,
        "attribution": lambda: attribution_patch(llm, CLEAN, CORRUPTED, target).values,
    }


def ask_peers(python: str, llm: LLM, threads: int, dtypes: Sequence[str]) -> dict[str, Any]:
    """Run the peers once. Returns the JSON that they print last."""
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
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=processors().usable)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    results: dict[str, dict[str, Any]] = {"pellucid": {}}
    with pellucid.load(asked.model, threads=asked.threads) as llm:
        for name, way in ways(llm).items():
            results["pellucid"][name] = way()  # warm: kernels are compiled, weights of gradients are kept
        for _ in range(asked.rounds):
            for name, way in ways(llm).items():
                llm.engine.cache.clear_prefixes()
                start = time.perf_counter()
                way()
                seconds.setdefault(name, {}).setdefault("pellucid", []).append(time.perf_counter() - start)
            if asked.peers:
                for peer, found in ask_peers(asked.peers, llm, asked.threads, asked.dtypes).items():
                    for name, (spent, values) in found.items():
                        seconds[name].setdefault(peer, []).append(spent)
                        results.setdefault(peer, {})[name] = np.array(values)
    medians = {
        name: {tool: statistics.median(own) for tool, own in tools.items()} for name, tools in seconds.items()
    }
    for name, tools in medians.items():
        peers = {tool: spent for tool, spent in tools.items() if tool != "pellucid"}
        line = "  ".join(f"{tool} {spent * 1000:,.0f} ms" for tool, spent in tools.items())
        if peers:
            fastest = min(peers, key=lambda tool: peers[tool])
            ours, theirs = results["pellucid"][name].ravel(), results[asked.dtypes[0]][name].ravel()
            line += f"  ratio {peers[fastest] / tools['pellucid']:.2f} ({fastest})"
            line += f"  correlation {np.corrcoef(ours, theirs)[0, 1]:.4f}"
        print(f"{name:12} {line}")
    print(json.dumps({"seconds": medians, "machine": facts()}))


if __name__ == "__main__":
    main()
