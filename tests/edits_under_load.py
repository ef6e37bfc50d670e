"""Edits by functions give the bits of static edits, on 2, 3 and 4 threads beside busy processes: make test-edits.

    .venv/bin/python tests/edits_under_load.py [--threads 2 3 4] [--busy 2] [--repeats 30] [--models smollm2 qwen3_next]

For each model, number of threads and point, one text is generated with ``scale`` and ``repeats`` times with a function
that does the same. Prints the number of runs of each text: ``[30]`` is one text in all thirty runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pellucid
from pellucid.testing import random_model
from pellucid.trace import call, scale

PROMPT = "The capital of France is"
HOW: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 0}
REAL = ("smollm2", "gemma3")
RANDOM = ("qwen3_moe", "granitemoehybrid")  # a mixture, and a hybrid of recurrent layers and attention


@contextmanager
def load_of(processes: int) -> Iterator[None]:
    """Processes that compute without a pause."""
    made = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(processes)]
    for process in made:
        process.start()
    try:
        yield
    finally:
        for process in made:
            process.terminate()


def _spin() -> None:
    while True:
        pass


def check(name: str, path: str | Path, threads: int, repeats: int) -> int:
    """The number of points where a run differs."""
    wrong = 0
    with pellucid.load(path, threads=threads) as llm:
        layers = sorted({0, len(llm.spec.blocks) // 2, len(llm.spec.blocks) - 1})
        points = [
            point
            for point, found in llm.points.items()
            if found.kind in ("scores", "pattern") or (found.kind == "value" and found.dtype == "float32")
            if not point.startswith("blocks.") or int(point.split(".")[1]) in layers
        ]
        for point in points:
            expected = llm.generate(PROMPT, edits=[scale(point, 0.5)], **HOW)
            runs = Counter(
                run.logprobs.chosen.tobytes() == expected.logprobs.chosen.tobytes() and run.ids == expected.ids
                for run in (llm.generate(PROMPT, edits=[call(point, _half)], **HOW) for _ in range(repeats))
            )
            if runs[False]:
                wrong += 1
            print(name, threads, point, [repeats] if not runs[False] else dict(runs), flush=True)
    return wrong


def _half(values: Any) -> Any:
    return values * values.dtype.type(0.5)


def main() -> int:
    """Exit code 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=[*REAL, *RANDOM])
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, load_of(options.busy):
        for name in options.models:
            path: str | Path = name
            if name not in REAL:
                path = Path(folder) / name
                random_model(name, path, layers=4)
            for threads in options.threads:
                wrong += check(name, path, threads, options.repeats)
    print(f"{wrong} points differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
