"""Predicted step times on more cores than this machine has, from parts that are measured on this machine.

    python bench/many_cores.py [--models smollm2 qwen2.5-coder-1.5b] [--bandwidth 280] [--rounds 5]

Measured: the time of each operation on one thread; the memory bandwidth of one and two cores; the time that two threads
take to meet.
Computed: the largest part of each operation that a thread runs, with the code that partitions it; the number of
meetings of a barrier.
Assumed, because this machine cannot measure it:
- Each socket has 64 cores and ``--bandwidth`` GB/s. All cores are as fast as the two cores of this machine.
- A cache line from another cache of the socket takes ``FAR`` times as long as on this machine, and from another socket
  ``FARTHER`` times as long.
- A waiting thread has ``IN_FLIGHT`` cache lines in flight at a meeting.

Whole steps on one and two threads are measured too, to validate the sum of the parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

import pellucid
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.loop import RADIX
from pellucid.kernels.matmul.product import part_of_thread
from pellucid.measure.roofs import Profile, Roofs, cpu_name, profile_step
from pellucid.plan.plan import Operation
from pellucid.runtime.executor import Executor, Program, table

CORES = (1, 2, 8, 16, 32, 64, 128)
SOCKET, CACHE = 64, 8  # cores of a socket, and cores that share a third-level cache
FAR, FARTHER, IN_FLIGHT = 2.5, 5.0, 4
PROMPT = 256
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "prompt_lookup": False}
BARRIERS = 10_000
TILED = ("matmul_int8", "matmul_float", "activation", "combine")


def meeting_seconds() -> float:
    """Seconds that two threads of this machine take to meet after both have arrived."""
    key = KernelKey("roof.multiply")
    record, address = definition(key.name).record, shared().load([key])[key]
    assert record is not None
    out = np.zeros((2, 16), np.int32)
    fields = {"rounds": 0, "factor": 1, "out": out.ctypes.data}
    executor, seconds = Executor(2), []
    try:
        for meets in (1, 0):
            program = Program(table([record.pack(fields, address, meets)] * BARRIERS), (out,))
            times = []
            for _ in range(9):
                start = time.perf_counter()
                executor.run(program, np.zeros(1, np.int64))
                times.append(time.perf_counter() - start)
            seconds.append(statistics.median(times))
    finally:
        executor.close()
    return (seconds[0] - seconds[1]) / BARRIERS


def read_rate(threads: int, rounds: int) -> float:
    """Bytes per second that the given number of threads (1 or 2) reads from memory."""
    with closing(Roofs(threads, 1 << 29)) as roofs:
        return statistics.median(roofs.read(1 << 29) for _ in range(rounds))


def barrier_seconds(threads: int, meeting: float) -> float:
    """Seconds of a barrier: the sum of its meetings, each with the delay of its farthest thread."""
    total, apart = 0.0, 1
    while apart < threads:
        reach = min(threads, apart * RADIX)
        lines = min(RADIX - 1, -(-threads // apart) - 1)
        far = 1.0 if reach <= CACHE else FAR if reach <= SOCKET else FARTHER
        total += meeting * far * (1 + (lines - 1) / IN_FLIGHT)
        apart *= RADIX
    return total


def largest_part(op: Operation, rows: int, threads: int) -> float:
    """The busiest thread's part of an operation, as a fraction."""
    if op.kernel.name.startswith(TILED):
        fields: Mapping[str, Any] = op.fields
        wide = 16 * fields["groups"] if "groups" in fields else fields["width"]
        sizes = [part_of_thread(wide, rows, thread, threads) for thread in range(threads)]
        largest = max((last - first) * (high - low) for first, last, low, high in sizes)
        return largest / float(wide * rows)
    if op.kernel.name in ("attention", "quantize", "heads", "cache_write"):
        return 1 / threads
    return float(-(-rows // threads) / rows)


def step_seconds(
    profile: Profile, rows: int, threads: int, read: Mapping[int, float], limit: float, meeting: float
) -> float:
    """Predicted seconds of a step."""
    bandwidth = read.get(threads) or min(threads * read[1], limit * -(-threads // SOCKET))
    total = 0.0
    for op, timed in zip(profile.operations, profile.timed):
        own = rows if op.rows == "tokens" else 1
        seconds = timed.seconds * largest_part(op, own, threads)
        total += max(seconds, timed.cost.nbytes / bandwidth)
        if threads > 1 and (op.barrier == "always" or (op.barrier == "rows" and own > 1)):
            total += barrier_seconds(threads, meeting)
    return total


def predicted(model: str, rounds: int, limit: float, meeting: float) -> Mapping[str, Mapping[int, float]]:
    """Predicted tokens per second of prefill and of decode, by number of threads."""
    out: dict[str, dict[int, float]] = {}
    profiles, measured = {}, {}
    for threads in (1, 2):
        llm = pellucid.load(model, threads=threads, context=1024)
        for what, rows, depth in (("text", 1, 16), ("prompt", PROMPT, 0)):
            if threads == 1:
                profiles[what] = profile_step(llm.runner, rows, depth, rounds)
            ids = list(range(100, 100 + max(rows, 16)))
            times = []
            for _ in range(rounds):
                llm.runner.cache.clear_prefixes()
                start = time.perf_counter()
                made = llm.generate(ids, max_new_tokens=1 if rows > 1 else 32, **GREEDY)
                times.append(made.tokens_per_second if rows == 1 else rows / (time.perf_counter() - start))
            measured[what, threads] = statistics.median(times)
        llm.close()
    read = {threads: read_rate(threads, rounds) for threads in (1, 2)}
    for what, rows in (("text", 1), ("prompt", PROMPT)):
        profile = profiles[what]
        out[what] = {n: rows / step_seconds(profile, rows, n, read, limit, meeting) for n in CORES}
        print(
            f"{model}, {what}: {profile.total.cost.nbytes / 1e6:,.0f} MB a step; measured as a whole with 1 and 2 "
            f"threads: {measured[what, 1]:,.0f} and {measured[what, 2]:,.0f} tokens/s"
        )
        print("  threads   " + "".join(f"{n:>9}" for n in CORES))
        print("  tokens/s  " + "".join(f"{out[what][n]:>9,.0f}" for n in CORES))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen2.5-coder-1.5b"])
    parser.add_argument("--bandwidth", type=float, default=280.0, help="GB/s of a socket")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    meeting = meeting_seconds()
    print(f"{cpu_name()}: two threads meet in {1e9 * meeting:,.0f} ns")
    barriers = {n: barrier_seconds(n, meeting) for n in CORES if n > 1}
    print("barriers: " + ", ".join(f"{n} threads {1e6 * seconds:.2f} µs" for n, seconds in barriers.items()))
    found = {m: predicted(m, asked.rounds, 1e9 * asked.bandwidth, meeting) for m in asked.models}
    print(json.dumps({"meeting": meeting, "barriers": barriers, "tokens_per_second": found}))


if __name__ == "__main__":
    main()
