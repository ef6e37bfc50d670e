"""Tokens per second of Pellucid and of the installed peers on the same workloads, and the ratios.

    python bench/compare.py [--models NAME...] [--only ROW...] [--peers NAME...] [--rounds 5] [--threads N] [--quick]

`make bench-peers` installs the peers. For each model, every round measures each engine once on each row, in turn, so
that a busy moment affects all engines equally. Output: medians, and JSON in the last line. A model is a name in MODELS,
or any source that `pellucid.load` accepts. docs/measuring.md describes the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import HERE, IK_LLAMA_CPP, LLAMA_CPP, OPENVINO, PEERS, TRANSFORMERS, Engine, Peer, PeerError

import pellucid
from pellucid.errors import PellucidError
from pellucid.llm import LLM
from pellucid.measure.roofs import REST, Figure, facts, measure
from pellucid.measure.suite import DecodeWorkload, PrefillWorkload
from pellucid.runtime.processors import processors
from pellucid.weights.store import resolve

PRECISE = {"default": False, "precise": True}  # how Pellucid is loaded: name → precise
MADE = HERE / ".models"
# Above this load average, other work slows the engines, most of all engines with spinning threads.
BUSY = 0.5


@dataclass(frozen=True)
class Row:
    """A workload, the peers that also run it, and its maximum number of rounds."""

    workload: PrefillWorkload | DecodeWorkload
    peers: tuple[Peer, ...]
    rounds: int = 1000


START, TOKENS = 16, 128  # a short context; llama-bench's tg128
LONG = 3  # maximum rounds of the slowest rows
LLAMAS = (LLAMA_CPP, IK_LLAMA_CPP)
ROWS = {
    "decode": Row(DecodeWorkload(START, TOKENS), (*LLAMAS, OPENVINO, TRANSFORMERS)),
    "prefill": Row(PrefillWorkload(512), (*LLAMAS, OPENVINO, TRANSFORMERS)),
    "batch": Row(DecodeWorkload(START, TOKENS, 16), LLAMAS),
    "long-decode": Row(DecodeWorkload(4096, TOKENS), LLAMAS, LONG),
    "long-prefill": Row(PrefillWorkload(4096), LLAMAS, LONG),
}
SHORT = ("decode", "prefill", "batch")  # the rows of --quick


@dataclass(frozen=True)
class Model:
    """A model file: ``spec`` is its name in Pellucid, ``made`` the target format of llama-quantize."""

    spec: str
    rows: tuple[str, ...] = tuple(ROWS)
    made: str | None = None

    def file(self) -> Path:
        """Path of the file, downloaded or converted if necessary. Raises PeerError if it cannot be converted."""
        path = resolve(self.spec)
        if self.made is None:
            return path
        target = MADE / f"{path.name.split('.')[0]}.{self.made}.gguf"
        if not target.exists():
            if not LLAMA_CPP.ready():
                raise PeerError(
                    "left out: llama-quantize, which makes the file, is not installed: run make bench-peers"
                )
            LLAMA_CPP.quantize(path, target, self.made)
        return target

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The peers to measure. transformers always uses bfloat16, so it is not measured on converted files."""
        return tuple(peer for peer in PEERS.values() if self.made is None or peer is not TRANSFORMERS)


MODELS = {
    "smollm2": Model("smollm2"),  # Q4_1
    "smollm2-q4_0": Model("smollm2", SHORT, "Q4_0"),
    "smollm2-q8_0": Model("smollm2", ("decode", "prefill"), "Q8_0"),
    "smollm2-q4_k_m": Model("smollm2", ("decode", "prefill"), "Q4_K_M"),
    "gemma3": Model("gemma3", ("decode", "prefill", "long-decode", "long-prefill")),  # Q4_K_M
    "qwen2.5-coder-0.5b": Model("qwen2.5-coder-0.5b", ("decode", "prefill")),  # Q4_K_M
    "qwen2.5-coder-1.5b": Model("qwen2.5-coder-1.5b", ("decode", "prefill")),  # Q4_K_M
}


@dataclass
class Result:
    """Results of a row, by round: Pellucid's figures by name in PRECISE, and the peers' tokens per second."""

    workload: PrefillWorkload | DecodeWorkload
    ours: dict[str, list[Figure]] = field(default_factory=lambda: {way: [] for way in PRECISE})
    theirs: dict[str, list[float]] = field(default_factory=dict)

    def figure(self, way: str) -> Figure:
        """The figures of all rounds as one figure."""
        figures = self.ours[way]
        speeds = tuple(figure.per_second[0] for figure in figures)
        return Figure(self.workload, figures[0].cost, speeds, tuple(figure.rates[0] for figure in figures))

    def ratio(self, way: str, peer: str) -> float:
        """Pellucid's speed divided by the peer's: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.figure(way).per_second, self.theirs[peer]))

    def document(self) -> dict[str, Any]:
        """The row's part of the JSON line."""
        return {
            "what": self.workload.what,
            "pellucid": {way: self._ours(way) for way in PRECISE},
            "peers": {name: self._theirs(name) for name in self.theirs},
        }

    def _ours(self, way: str) -> dict[str, Any]:
        figure = self.figure(way)
        read = statistics.median(rates.read for rates in figure.rates)
        return {
            "tokens_per_second": round(figure.median, 1),
            "share": round(figure.share, 3),
            "bound": figure.bound,
            "read_gigabytes_per_second": round(read / 1e9, 2),
            "rounds": [round(speed, 1) for speed in figure.per_second],
        }

    def _theirs(self, name: str) -> dict[str, Any]:
        speeds = self.theirs[name]
        return {
            "tokens_per_second": round(statistics.median(speeds), 1),
            "ratio": {way: round(self.ratio(way, name), 3) for way in PRECISE},
            "rounds": [round(speed, 1) for speed in speeds],
        }


class Bench:
    """A model in every engine that reads it. ``notes`` lists skipped measurements and the reasons."""

    def __init__(self, path: Path, peers: Sequence[Peer], threads: int, notes: list[str]) -> None:
        self._notes, self._name = notes, path.name
        self._stack = ExitStack()
        self._llms: dict[str, LLM] = {}
        self._engines: dict[str, Engine] = {}
        try:
            for way, precise in PRECISE.items():
                self._llms[way] = pellucid.load(path, threads=threads, precise=precise)
                self._stack.callback(self._llms[way].close)
            if not self._llms["default"].spec.generates:
                raise PellucidError("the model generates no text: use pellucid bench")
            for peer in peers:
                self._open(peer, path, threads)
        except BaseException:
            self.close()
            raise

    def _open(self, peer: Peer, path: Path, threads: int) -> None:
        if not peer.ready():
            return
        progress(f"{self._name}: opening the model in {peer.name}")
        try:
            engine = peer.open(path, threads)
        except PeerError as error:
            self._notes.append(f"{self._name}: {peer.name} cannot open the model: {error}")
            return
        self._engines[peer.name] = engine
        self._stack.callback(engine.close)

    def close(self) -> None:
        """Release the models and end the peers' processes."""
        self._stack.close()

    def run(self, names: Sequence[str], rounds: int) -> dict[str, Result]:
        """Measure the rows; results by name."""
        llm = self._llms["default"]
        results: dict[str, Result] = {}
        for name in names:
            workload = ROWS[name].workload
            if room(workload) > llm.context:
                self._notes.append(
                    f"{self._name}: the model's context of {llm.context:,} is too short for {workload.what}"
                )
                continue
            results[name] = Result(workload)
            results[name].theirs = {p.name: [] for p in ROWS[name].peers if p.name in self._engines}
        for number in range(rounds):
            for name, result in results.items():
                if number < ROWS[name].rounds:
                    progress(f"{self._name}: round {number + 1} of {rounds}, {result.workload.what}")
                    self._round(result)
        return results

    def _round(self, result: Result) -> None:
        for way, llm in self._llms.items():
            result.ours[way] += measure(llm.runner, [result.workload], 1)
        for name in list(result.theirs):
            time.sleep(REST)
            try:
                result.theirs[name].append(ask(self._engines[name], result.workload))
            except PeerError as error:
                self._notes.append(f"{self._name}: {name} is left out of {result.workload.what}: {error}")
                del result.theirs[name]


def room(workload: PrefillWorkload | DecodeWorkload) -> int:
    """Tokens of context that a workload needs."""
    if isinstance(workload, PrefillWorkload):
        return workload.tokens
    return (workload.depth + workload.tokens) * workload.sequences


def ask(engine: Engine, workload: PrefillWorkload | DecodeWorkload) -> float:
    """A peer's tokens per second."""
    if isinstance(workload, PrefillWorkload):
        return engine.prefill(workload.tokens)
    return engine.decode(workload.depth, workload.tokens, workload.sequences)


def progress(what: str) -> None:
    """Print progress to standard error."""
    print(what, file=sys.stderr, flush=True)


def table(results: dict[str, dict[str, Result]]) -> str:
    """The table of all models' rows."""
    peers = [n for n in PEERS if any(n in row.theirs for rows in results.values() for row in rows.values())]
    lines = [("", *PRECISE, "share", *peers)]
    for file, rows in results.items():
        lines += [("",), (file,), *(_line(result, peers) for result in rows.values())]
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _line(result: Result, peers: Sequence[str]) -> tuple[str, ...]:
    figure = result.figure("default")
    cells = [f"  {result.workload.what}", *(_speed(result.figure(way).median) for way in PRECISE)]
    cells.append(f"{figure.share:.0%} {figure.bound}")
    for name in peers:
        if name in result.theirs:
            ratios = ", ".join(f"{result.ratio(way, name):.2f}" for way in PRECISE)
            cells.append(f"{_speed(statistics.median(result.theirs[name]))} ({ratios})")
        else:
            cells.append("")
    return tuple(cells)


def _aligned(line: tuple[str, ...], widths: Sequence[int]) -> str:
    if len(line) == 1:
        return line[0]
    first, *others = line
    return f"{first:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths[1:]))


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def compare(
    name: str, rows: Sequence[str], peers: Sequence[str], rounds: int, threads: int, notes: list[str]
) -> dict[str, dict[str, Result]]:
    """A model's results under the name of its file; empty if no rows are selected."""
    if not rows:
        return {}
    model = MODELS.get(name, Model(name))
    path = model.file()
    asked = [peer for peer in model.peers if peer.name in peers and any(peer in ROWS[row].peers for row in rows)]
    bench = Bench(path, asked, threads, notes)
    try:
        return {path.name: bench.run(rows, rounds)}
    finally:
        bench.close()


def main() -> None:
    """Measure the models and print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=None, help=f"5 by default; long rows have {LONG} at most")
    parser.add_argument("--threads", type=int, default=None, help="one for each physical core by default")
    parser.add_argument("--peers", nargs="*", metavar="NAME", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--no-precise",
        action="store_true",
        help="measure only Pellucid's default; needed for a model that takes half of the memory",
    )
    parser.add_argument("--quick", action="store_true", help="one round of the short rows")
    arguments = parser.parse_args()
    rounds = (1 if arguments.quick else 5) if arguments.rounds is None else arguments.rounds
    if arguments.no_precise:
        PRECISE.pop("precise")
    if rounds < 1:
        parser.error("--rounds: must be at least 1")
    wanted = arguments.only or (SHORT if arguments.quick else tuple(ROWS))
    absent = [peer for peer in PEERS.values() if peer.installable and not peer.ready()]
    notes = [f"{peer.name} is not installed: run make bench-peers" for peer in absent]
    if (load := os.getloadavg()[0]) > BUSY:
        notes.append(f"other work ran on this machine at the beginning (load {load:.1f}): do not trust these figures")
        progress(notes[-1])
    threads = processors().threads if arguments.threads is None else arguments.threads
    results: dict[str, dict[str, Result]] = {}
    start = time.perf_counter()
    try:
        for name in arguments.models:
            rows = [row for row in MODELS.get(name, Model(name)).rows if row in wanted]
            try:
                results.update(compare(name, rows, arguments.peers, rounds, threads, notes))
            except (PeerError, PellucidError) as error:
                notes.append(f"{name}: {error}")
    except KeyboardInterrupt:
        notes.append("stopped early: the remaining models are missing")
    report(results, rounds, threads, notes)
    progress(f"{(time.perf_counter() - start) / 60:.1f} minutes")


def report(results: dict[str, dict[str, Result]], rounds: int, threads: int, notes: Sequence[str]) -> None:
    """Print the table, the notes and the JSON line."""
    machine = {name: value for name, value in facts().items() if name in ("cpu", "instructions", "pellucid")}
    if results:
        print(f"Tokens per second on {machine['cpu']}, threads {threads}")
        print(f"Medians of rounds: {rounds} (long rows: {min(rounds, LONG)})")
        print("share: Pellucid's default, relative to the speed that the memory or the integer units allow")
        print("In brackets: Pellucid's speed divided by the peer's speed, for default and precise\n")
        print(table(results) + "\n")
    for note in notes:
        print(note)
    document = {
        "rounds": rounds,
        "threads": threads,
        **machine,
        "models": {file: {name: r.document() for name, r in rows.items()} for file, rows in results.items()},
        "notes": list(notes),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
