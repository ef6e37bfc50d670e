"""Tokens per second of decode while values are recorded or changed, compared with plain decode.

    python bench/tracing.py [--model smollm2] [--rounds 5] [--threads N] [--peers PYTHON] [--dtype float32]

Every round generates 64 tokens in each way, in turn. Output: the medians, and the median of the rounds' ratios to plain
decode after a prompt of the same length.

`--peers` names an interpreter with nnsight and TransformerLens (tracing_peers.py lists its packages). Each round then
also runs these tools, on the same file unpacked to float32. The output has their speeds, and Pellucid's speedup while
it records the same values of its own run, with the file's quantized weights. The row "plain" of transformers shows the
part of the speedup that is due to the engine. Torch's threads spin while they wait, so other work on the machine slows
the peers most. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pellucid
from pellucid.llm import LLM
from pellucid.measure.roofs import facts
from pellucid.runtime.processors import processors
from pellucid.trace.edits import Edit, ablate

TOKENS = 64
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "prompt_lookup": False, "max_new_tokens": TOKENS}
PEERS = Path(__file__).with_name("tracing_peers.py")
BUSY = 0.5  # load average of a busy machine
Speeds = dict[str, list[float]]


@dataclass(frozen=True)
class Way:
    """Decode after a prompt of ``depth`` tokens while ``points`` are recorded, or with the edit of one head."""

    depth: int = 16
    points: tuple[str, ...] = ()
    edited: bool = False

    @property
    def plain(self) -> str:
        """Name of the plain way with the same depth, for the comparison."""
        return "plain" if self.depth == 16 else f"plain {self.depth}"


RESIDUALS, PATTERNS = ("blocks.*.residual",), ("blocks.*.attention.pattern",)
WAYS = {
    "plain": Way(),
    "residuals": Way(points=RESIDUALS),
    "patterns": Way(points=PATTERNS),
    "head edited": Way(edited=True),
    "everything": Way(points=("**",)),
    "plain 512": Way(512),
    "residuals 512": Way(512, RESIDUALS),
    "patterns 512": Way(512, PATTERNS),
}  # names match tracing_peers.py where it has the same way


def measure(llm: LLM, way: Way) -> float:
    """Tokens per second. Ends the program if values were dropped."""
    ids = [100 + number for number in range(way.depth)]
    edits: list[Edit] = []
    if way.edited:
        edits.append(ablate(f"blocks.{len(llm.spec.blocks) // 2}.attention.heads[heads=1]"))
    with llm.trace(*way.points) if way.points else nullcontext() as trace:
        made = llm.generate(ids, edits=edits, **GREEDY)
    if trace is not None and trace.dropped:
        raise SystemExit(f"{trace}: values were dropped")
    return made.tokens_per_second


def ask_peers(python: str, llm: LLM, threads: int, dtype: str) -> dict[str, Any]:
    """Run one round of the peers. Returns the JSON that tracing_peers.py prints last."""
    options = ["--rounds", "1", "--threads", str(threads), "--dtype", dtype]
    done = subprocess.run(
        [python, PEERS, llm.checkpoint.path, *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(speeds, others))


def best(speeds: Sequence[float], others: Sequence[float]) -> float:
    """The ratio of the fastest rounds, which other work on the machine affects least."""
    return max(speeds) / max(others)


def table(ours: Speeds, peers: Mapping[str, Speeds]) -> str:
    """The lines of all ways. A peer's column has its speed, and in brackets Pellucid's speedup."""
    lines = [("", "tokens/s", "of plain", *peers)]
    for name, speeds in ours.items():
        plain = ratio(speeds, ours[WAYS[name].plain])
        cells = [name, f"{statistics.median(speeds):.1f}", f"{plain:.3f}"]
        for theirs in peers.values():
            found = theirs.get(name)
            times = f"{ratio(speeds, found):.1f}, {best(speeds, found):.1f}" if found else ""
            cells.append(f"{statistics.median(found):.1f} ({times})" if found else "")
        lines.append(tuple(cells))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}" + "".join(f"  {cell:>{n}}" for cell, n in zip(line[1:], widths[1:])) for line in lines
    )


def main() -> None:
    """Measure, and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="one for each physical core by default")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with nnsight and TransformerLens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the peers")
    asked = parser.parse_args()
    threads = processors().threads if asked.threads is None else asked.threads
    ours: Speeds = {name: [] for name in WAYS}
    peers: dict[str, Speeds] = {}
    versions: dict[str, str] = {}
    notes: list[str] = []
    if (load := os.getloadavg()[0]) > BUSY:
        notes.append(f"other work ran on this machine at the beginning (load {load:.1f})")
    with pellucid.load(asked.model, threads=threads) as llm:
        for way in WAYS.values():
            measure(llm, way)
        for number in range(asked.rounds):
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
            for name, way in WAYS.items():
                ours[name].append(measure(llm, way))
            if asked.peers:
                answer = ask_peers(asked.peers, llm, threads, asked.dtype)
                versions = answer["versions"]
                notes += [note for note in answer["notes"] if note not in notes]
                for peer, found in answer["tokens_per_second"].items():
                    for name, speeds in found.items():
                        peers.setdefault(peer, {}).setdefault(name, []).extend(speeds)
    machine = {name: value for name, value in facts().items() if name in ("cpu", "instructions", "pellucid")}
    print(f"Decode of {asked.model} on {machine['cpu']}, threads {threads}, median of rounds: {asked.rounds}")
    if peers:
        print(f"{', '.join(' '.join(pair) for pair in versions.items())}, in {asked.dtype}")
        print(
            "In brackets: Pellucid's speed divided by the peer's speed, in the median round and in the fastest rounds"
        )
    print(f"\n{table(ours, peers)}\n")
    for note in notes:
        print(note)
    document = {
        "model": asked.model,
        "rounds": asked.rounds,
        "threads": threads,
        **machine,
        "tokens_per_second": {name: [round(speed, 1) for speed in speeds] for name, speeds in ours.items()},
        "of_plain": {name: round(ratio(s, ours[WAYS[name].plain]), 3) for name, s in ours.items()},
        "peers": {
            "versions": versions,
            "dtype": asked.dtype,
            "tokens_per_second": peers,
            **{
                key: {
                    peer: {name: round(times(ours[name], speeds), 2) for name, speeds in found.items()}
                    for peer, found in peers.items()
                }
                for key, times in (("ratio", ratio), ("ratio_of_fastest", best))
            },
        }
        if peers
        else None,
        "notes": notes,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
