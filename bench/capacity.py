"""Predictions of ``pellucid capacity`` beside real runs.

    python bench/capacity.py [--model smollm2] [--rounds 1] [--replicas]

The script measures the time of steps as the command does. Then it simulates requests and sends the same requests to a
real server, in up to five cases: one client, eight clients, sixteen clients with a shared prefix, requests at random
times, and, with --replicas, a cluster with two replicas of one core each. It compares the throughput and the
percentiles of the time to first token.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pellucid
from pellucid.capacity.layouts import ModelSize
from pellucid.capacity.server_costs import PLAIN, with_server
from pellucid.capacity.simulate import Simulation
from pellucid.capacity.simulated_replica import ReplicaCapacity
from pellucid.capacity.step_costs import StepCosts, measure_steps
from pellucid.loading import open_model
from pellucid.measure.roofs import cpu_name
from pellucid.measure.server_load import Lengths, ServerLoad, arrivals, measure_server
from pellucid.runtime.processors import machine_bytes
from pellucid.tokenize import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.ray_server import ray_nodes
from support.replays import Replay


@dataclass(frozen=True)
class Case:
    """A pattern of arriving requests."""

    what: str
    load: ServerLoad
    clients: int | None = None
    rate: float | None = None
    replicas: int = 1


def cases(url: str, model: str) -> list[Case]:
    def load(requests: int, prompt: Lengths, shared: int, tokens: Lengths) -> ServerLoad:
        return ServerLoad(url, model, requests=requests, prompt=prompt, shared=shared, tokens=tokens, body=PLAIN)

    short = Lengths(64, 256)
    return [
        Case("1 client", load(40, Lengths(200, 200), 0, Lengths(64, 64)), clients=1),
        Case("8 clients", load(64, short, 0, Lengths(32, 128)), clients=8),
        Case("16 clients, shared", load(96, Lengths(300, 300), 200, Lengths(64, 96)), clients=16),
        Case("2.5 requests/s", load(96, Lengths(64, 192), 64, Lengths(48, 96)), rate=2.5),
        Case("2 replicas, 1 request/s", load(64, short, 64, Lengths(32, 96)), rate=1.0, replicas=2),
    ]


def replayed(case: Case, tokenizer: Tokenizer) -> Replay:
    """The requests of a case with their arrival times."""
    requests = [(tokenizer.encode(body["prompt"]), body["max_tokens"]) for body in case.load.bodies()]
    if case.clients is not None:
        return Replay(requests=requests, clients=case.clients)
    times = itertools.islice(arrivals(case.load.seed, case.rate or 1.0), len(requests))
    return Replay(requests=requests, times=list(times))


@contextlib.contextmanager
def server(model: str, *more: str) -> Iterator[str]:
    """Run a server in its own process. Yields its address."""
    command = [sys.executable, "-u", "-m", "pellucid", "serve", model, "--port", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"at (http://\S+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        yield found[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def costs_here(model: str, threads: int | None = None) -> tuple[StepCosts, ReplicaCapacity]:
    llm = pellucid.load(model, threads=threads)
    costs, room = measure_steps(llm), ModelSize.of(llm).replica_capacity(machine_bytes())
    return with_server(llm, costs, room), room


def costs_side_by_side(model: str, count: int) -> tuple[StepCosts, ReplicaCapacity]:
    """Measure the step times of a replica while ``count`` replicas share this machine and all replicas run steps."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        found = pool.starmap(costs_here, [(model, 1)] * count)
    costs, room = found[0]
    mean = {
        name: statistics.fmean(getattr(one, name) for one, _ in found)
        for name in ("row_attention", "prompt_attention", "request", "stream", "server_step", "server_row")
    }
    for name in ("rows", "prompts"):
        many = [getattr(one, name) for one, _ in found]
        mean[name] = {n: statistics.fmean(one[n] for one in many) for n in many[0]}  # type: ignore[assignment]
    return replace(costs, **mean), room  # type: ignore[arg-type]


def compare(
    case: Case,
    measured_here: tuple[StepCosts, ReplicaCapacity],
    tokenizer: Tokenizer,
    errors: dict[tuple[str, int], list[float]],
) -> None:
    """Send the requests of a case, and simulate them."""
    costs, room = measured_here
    real = measure_server(case.load, clients=case.clients, rate=case.rate)
    simulation = Simulation(replayed(case, tokenizer), case.replicas, room, costs)
    for at, error in enumerate(shown(case.what, real, simulation.run(requests=case.load.requests))):
        errors.setdefault((case.what, at), []).append(error)


def warm_up(url: str, model: str, replicas: int = 1) -> None:
    """Fill the prefix caches, so that pages are reused as in a server that has run for long.

    The first use of memory takes time, in a virtual machine a fifth of a prompt's prefill time.
    """
    long, one = Lengths(1500, 1500), Lengths(1, 1)
    load = ServerLoad(url, model, requests=60 * replicas, prompt=long, shared=0, tokens=one, seed=99, body=PLAIN)
    measure_server(load, clients=4)


def shown(what: str, real: dict[str, Any], simulated: Any) -> list[float]:
    pairs = [
        ("tokens/s", real["tokens_per_second"], simulated.tokens_per_second, 1),
        ("first token p50 ms", real["first_token"]["p50"], simulated.first_token["p50"], 1e3),
        ("p95 ms", real["first_token"]["p95"], simulated.first_token["p95"], 1e3),
    ]
    parts = [f"{name} {scale * a:,.0f} and {scale * b:,.0f} ({b / a - 1:+.0%})" for name, a, b, scale in pairs]
    print(f"{what}: " + "; ".join(parts), flush=True)
    return [b / a - 1 for _, a, b, _ in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--replicas", action="store_true", help="also measure two replicas (needs Ray)")
    given = parser.parse_args()
    print(f"{cpu_name()}; real and simulated:")
    errors: dict[tuple[str, int], list[float]] = {}
    opened = open_model(given.model)
    tokenizer = opened.inputs.tokenizer
    opened.checkpoint.close()
    for _ in range(given.rounds):
        one = costs_here(given.model)
        with server(given.model) as url:
            warm_up(url, given.model)
            for case in cases(url, given.model)[:4]:
                compare(case, one, tokenizer, errors)
        if given.replicas:
            each = costs_side_by_side(given.model, 2)
            with ray_nodes(1, 2) as nodes, server(
                given.model, "--cluster", nodes.address, "--replicas", "2", "--replica-cpus", "1"
            ) as url:  # fmt: skip
                warm_up(url, given.model, 2)
                compare(cases(url, given.model)[-1], each, tokenizer, errors)
    if given.rounds > 1:
        for (what, at), some in errors.items():
            name = ("tokens/s", "first token p50", "p95")[at]
            print(f"{what}, {name}: {statistics.median(some):+.0%} at the median")


if __name__ == "__main__":
    main()
