"""Time to first token of a new process: the command `pellucid run MODEL "Hi" --raw --max-new-tokens 1`.

    python bench/first_token.py [--models smollm2 gemma3] [--rounds 15] [--against OTHER/src] [--llama-cpp COMMAND]

Every command first runs once untimed, so that its files and kernels are cached. Then each round runs all commands in
turn. ``--against`` is another source tree to compare with, ``--llama-cpp`` is llama.cpp's `llama-simple` or
`llama-cli`. Output: the best and the median time, the median CPU time, and the median ratio of the rounds. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pellucid.weights.store import resolve

SOURCES = Path(__file__).parents[1] / "src"


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall time and CPU time of a command, in seconds."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise SystemExit(f"{' '.join(command)} failed: {said}")
    return took, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(model: str, asked: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """The commands to compare, with their environments, by name."""
    run = [sys.executable, "-m", "pellucid", "run", model, "Hi", "--raw", "--max-new-tokens", "1"]
    found = {"pellucid": (run, {**os.environ, "PYTHONPATH": str(SOURCES)})}
    if asked.against:
        found["against"] = run, {**os.environ, "PYTHONPATH": str(Path(asked.against).resolve())}
    if asked.llama_cpp:
        theirs = [asked.llama_cpp, "-m", str(resolve(model)), "-n", "1"]
        options = ["Hi"] if Path(asked.llama_cpp).name == "llama-simple" else ["-p", "Hi", "-no-cnv"]
        found["llama.cpp"] = [*theirs, *options], dict(os.environ)
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--models", nargs="+", default=["smollm2", "gemma3"])
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--against", help="another tree of sources, such as a checkout's src")
    asked.add_argument("--llama-cpp", help="a program of llama.cpp")
    options = asked.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for model in options.models:
        found = commands(model, options)
        for command in found.values():
            seconds(*command)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        for number in range(options.rounds):
            for name in sorted(found, reverse=bool(number % 2)):
                times[name].append(seconds(*found[name]))
        results[model] = {}
        for name, measured in times.items():
            whole = [one for one, _ in measured]
            figures = {
                "best": min(whole),
                "median": statistics.median(whole),
                "processor": statistics.median(used for _, used in measured),
                "ratio": statistics.median(a / b for (a, _), (b, _) in zip(measured, times["pellucid"])),
            }
            results[model][name] = {key: round(value, 3) for key, value in figures.items()}
            print(
                f"{model:20} {name:10} best {figures['best']:.3f} s  median {figures['median']:.3f}  "
                f"processor {figures['processor']:.3f}  {figures['ratio']:.2f} x pellucid's time"
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
