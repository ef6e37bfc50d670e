"""Speeds of two source trees in turns: import, load, first token, a prompt of 512 tokens, decode. The model is SmolLM2.

    .venv/bin/python bench/versions.py OLD/src NEW/src [--rounds 11]

Prints the median of each tree, and the median of the ratios old / new of neighbouring runs: above 1 NEW is faster. The
first run of each tree, which may compile kernels, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from statistics import median

PROGRAM = """
import json, time
start = time.perf_counter()
import pellucid
imported = time.perf_counter()
llm = pellucid.load("smollm2", threads=2)
loaded = time.perf_counter()
llm.generate("The capital of France is", max_new_tokens=1)
first = time.perf_counter()

def seconds(prompt, **options):
    begun = time.perf_counter()
    llm.generate(prompt, temperature=0, prompt_lookup=False, ignore_eos=True, **options)
    return time.perf_counter() - begun

prompt = seconds(list(range(100, 612)), max_new_tokens=1)
decode = min(seconds("Once upon a time", max_new_tokens=96) for _ in range(3))
times = {"import": imported - start, "load": loaded - imported, "first token": first - start}
print(json.dumps({**times, "prompt": prompt, "decode": decode}))
"""


def run(tree: str) -> dict[str, float]:
    """The seconds of one process with the modules of a source tree."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": tree}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run both trees in turns, and print their times."""
    parser = argparse.ArgumentParser(description="Speeds of two source trees.")
    parser.add_argument("trees", nargs=2, metavar="TREE", help="a folder that holds the package, such as src")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    trees: list[str] = [os.path.abspath(tree) for tree in options.trees]
    found: list[list[dict[str, float]]] = [[run(tree) for tree in trees] for _ in range(options.rounds + 1)][1:]
    for name in found[0][0]:
        old, new = ([pair[side][name] for pair in found] for side in (0, 1))
        ratio = median(a / b for a, b in zip(old, new))
        print(f"{name:12} old {median(old):8.4f} s   new {median(new):8.4f} s   old / new {ratio:.3f}")


if __name__ == "__main__":
    main()
