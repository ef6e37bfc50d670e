"""Runs fuzzers: numbered cases in worker processes. A worker whose case exceeds its limits is killed.

A fuzzer is a file ``tests/fuzz/fuzz_*.py`` with

    SECONDS   float, maximum time of one case
    MEMORY    int, bytes of address space of a worker
    SMALL     int, number of cases in ``make test``
    LONG      int, number of cases in ``make fuzz``
    def case(random: Random, folder: Path) -> str | None
    def prepare(folder: Path) -> None     optional: runs once in each worker, without the limits of a case

``case`` makes one input from the random numbers and passes it to Pellucid. It returns None, or a line that describes
the problem. An uncaught exception, a signal and an exceeded limit are findings too. Case ``i`` of a seed always has the
same random numbers, so that it can run alone.
"""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parents[1] / "fuzz"
PORTION = 200  # cases that a worker gets at a time
STARTUP_SECONDS = 300.0  # imports and ``prepare``, before the first case of a worker


@dataclass(frozen=True)
class Finding:
    """A problem with one case."""

    case: int
    problem: str


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    left: list[int]  # cases that have not started
    case: int | None = None  # the running case
    since: float = 0.0  # when it started


def known() -> list[str]:
    """Names of all fuzzers."""
    return sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.py"))


def load(name: str):  # type: ignore[no-untyped-def]
    """Import the module of a fuzzer."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(f"fuzz_{name}")


def run(
    name: str, seed: int, cases: Iterable[int], processes: int = 2, done: Callable[[int], None] | None = None
) -> list[Finding]:
    """Run cases of a fuzzer and call ``done`` after each case. Returns the findings in the order of the cases."""
    fuzzer, findings = load(name), list[Finding]()
    portions = _portions(list(cases))
    workers = [worker for _ in range(processes) if (worker := _start(name, seed, portions)) is not None]
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=0.2)
            for worker in list(workers):
                problem = _heard(worker, done, findings) if worker.pipe in ready else _late(worker, fuzzer)
                if problem is None:
                    continue
                worker.process.kill()
                worker.process.join()
                workers.remove(worker)
                if problem:
                    findings.append(Finding(-1 if worker.case is None else worker.case, problem))
                    rest = iter([worker.left] if worker.left else [])
                    replacement = _start(name, seed, rest) or _start(name, seed, portions)
                else:
                    replacement = _start(name, seed, portions)
                workers += [] if replacement is None else [replacement]
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
    return sorted(findings, key=lambda finding: finding.case)


def _portions(cases: list[int]) -> Iterator[list[int]]:
    for at in range(0, len(cases), PORTION):
        yield cases[at : at + PORTION]


def _start(name: str, seed: int, portions: Iterator[list[int]]) -> _Worker | None:
    portion = next(portions, None)
    if portion is None:
        return None
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(name, seed, list(portion), theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, list(portion), None, time.monotonic())


def _heard(worker: _Worker, done: Callable[[int], None] | None, findings: list[Finding]) -> str | None:
    """Receive a message of a worker. Returns the reason for its end, "" after its last case, None while it runs."""
    try:
        case, problem = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode or 0
        if code == 0 and not worker.left:
            return ""
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"the worker ended with code {code}"
    if problem is None:  # the case starts
        worker.case, worker.since = case, time.monotonic()
        worker.left.remove(case)
        return None
    if problem:
        findings.append(Finding(case, problem))
    worker.since = time.monotonic()
    if done is not None:
        done(case)
    return None


def _late(worker: _Worker, fuzzer) -> str | None:  # type: ignore[no-untyped-def]
    limit = STARTUP_SECONDS if worker.case is None else 2 * fuzzer.SECONDS + 2
    if not worker.process.is_alive() and not worker.pipe.poll():
        return f"the worker ended with code {worker.process.exitcode}"
    return f"more than {limit:g} s, killed" if time.monotonic() - worker.since > limit else None


def _work(name: str, seed: int, cases: list[int], pipe: Connection) -> None:
    fuzzer = load(name)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (fuzzer.MEMORY, hard))
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(fuzzer, "prepare"):
            fuzzer.prepare(Path(folder))
        for case in cases:
            pipe.send((case, None))
            began = time.process_time()
            try:
                problem = fuzzer.case(Random(f"{seed}:{case}"), Path(folder)) or ""
            except (Exception, KeyboardInterrupt) as error:
                problem = _told(error)
            if not problem and (spent := time.process_time() - began) > fuzzer.SECONDS:
                problem = f"{spent:.1f} s; {fuzzer.SECONDS:g} are allowed"
            pipe.send((case, problem))


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}"
