"""The time that a server adds to steps, measured with a real server and clients on the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import uvicorn

from pellucid.capacity.simulate import Outcome, Simulation, Traffic
from pellucid.capacity.simulated_replica import ReplicaCapacity
from pellucid.capacity.step_costs import Progress, StepCosts
from pellucid.errors import KernelError, bounded
from pellucid.llm import LLM
from pellucid.measure.server_load import Lengths
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.server import Settings, create_app, listen

NAME = "measured"
FEW_CLIENTS, MANY_CLIENTS = 1, 8
PROMPT, TOKENS = 48, 48
REQUESTS = 5  # requests of each client
PLAIN = {"prompt_lookup": False}
"""Options of the requests. Prompt lookup is off, because its drafts need real text, and the simulation has none."""
START_SECONDS = 10.0  # maximum seconds until the server is up


def with_server(
    llm: LLM, costs: StepCosts, capacity: ReplicaCapacity, progress: Progress = lambda done, total, what: None
) -> StepCosts:
    """Return the step costs with the time that a server adds: the measured times of clients minus simulated times.

    The model is closed afterwards.
    """
    with _served(llm) as url:
        progress(0, 2, "a server with one client")
        few = seen_by_clients(url, FEW_CLIENTS, 3 * REQUESTS)
        progress(1, 2, f"a server with {MANY_CLIENTS} clients")
        many = seen_by_clients(url, MANY_CLIENTS, MANY_CLIENTS * REQUESTS)
    alone, _ = _simulated(costs, capacity, few, FEW_CLIENTS)
    costs = replace(costs, request=max(few["first_token"]["p50"] - alone.first_token["p50"], 0.0))
    alone, steps = _simulated(costs, capacity, few, FEW_CLIENTS)
    costs = replace(costs, server_step=max(few["seconds"] - alone.seconds, 0.0) / steps)
    together, _ = _simulated(costs, capacity, many, MANY_CLIENTS)
    rows = many["requests"] * TOKENS
    costs = replace(costs, server_row=max(many["seconds"] - together.seconds, 0.0) / rows)
    together, _ = _simulated(costs, capacity, many, MANY_CLIENTS)
    more = many["first_token"]["p50"] - together.first_token["p50"]
    return replace(costs, stream=max(more, 0.0) / (MANY_CLIENTS - FEW_CLIENTS))


def _simulated(
    costs: StepCosts, capacity: ReplicaCapacity, real: Mapping[str, Any], clients: int
) -> tuple[Outcome, int]:
    prompt = round(real["prompt_tokens"])
    traffic = Traffic(Lengths(prompt, prompt), Lengths(TOKENS, TOKENS), clients=clients)
    simulation = Simulation(traffic, 1, capacity, costs)
    return simulation.run(requests=real["requests"]), simulation.replicas[0].steps


def seen_by_clients(url: str, clients: int, requests: int) -> dict[str, Any]:
    """Run ``pellucid bench serve`` in a separate process, and return its figures. Raises KernelError if the benchmark
    failed.
    """
    command = [sys.executable, "-m", "pellucid", "bench", "serve", url, "--json", "--shared", "0"]
    command += ["--body", json.dumps(PLAIN)]
    numbers = {"clients": clients, "requests": requests, "prompt": PROMPT, "tokens": TOKENS}
    for name, value in numbers.items():
        command += [f"--{name}", str(value)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise KernelError(f"the server could not be measured: {bounded(process.stderr.strip())}")
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


@contextmanager
def _served(llm: LLM) -> Iterator[str]:
    """Serve the model in a thread, and yield the address. The model is closed at the end."""
    listening = listen(Settings("127.0.0.1", 0, 1.0))
    models = ModelPool([NAME], lambda name: llm, 1 << 62)
    models.put(NAME, llm)
    config = uvicorn.Config(create_app(models, AccessRules()), log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="pellucid-measured")
    thread.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
