"""Costs and benefits of a cluster.

    python bench/cluster.py ingress [--streams 64] [--seconds 10]
    python bench/cluster.py prefix [--sessions 50] [--replicas 4]
    python bench/cluster.py stages [--stages 2]

``ingress`` measures one server process in front of engines that compute nothing: its maximum throughput in tokens per
second over all streams, and the latency between sending and arrival of a token when each stream has 20 tokens a second.

``prefix`` compares prefix-aware routing with random routing, for sessions with growing conversations: hit rate, and
time to first token. It runs in simulated time (``pellucid.capacity``), with step times measured on this machine.

``stages`` measures the time that the border between two stages on one machine adds to a decode step. Each stage is a
process with one thread. The steps alternate with steps of a process that has the whole model and one thread. The models
are SmolLM2, and a model so small that the border dominates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import uvicorn

import pellucid
import pellucid.cluster.remote_model
from pellucid.capacity.layouts import ModelSize
from pellucid.capacity.simulate import Simulation, Traffic
from pellucid.capacity.step_costs import measure_steps
from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.remote_request import RemoteRequest
from pellucid.cluster.routing import ChosenReplica, ReplicaLoad, choose
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageServer, runner_of
from pellucid.cluster.staged_runner import StagedRunner
from pellucid.engine.output import TokenOutput
from pellucid.llm import LLM
from pellucid.loading import open_model
from pellucid.measure.server_load import Lengths
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.prefix_cache import page_names
from pellucid.runtime.processors import machine_bytes
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.serve.server import create_app
from pellucid.testing import random_model

SECRET = ClusterSecret("a secret of this measurement")
MODEL, USUAL_RATE = "smollm2", 20.0


def fake_replica(rate: float, address: Any) -> None:
    """A replica without a model: requests get tokens at ``rate`` (0: immediately). A token's text is its send time."""

    async def main() -> None:
        import zmq
        import zmq.asyncio
        import zmq.auth
        from zmq.auth.asyncio import AsyncioAuthenticator

        context = zmq.asyncio.Context()
        auth = AsyncioAuthenticator(context)
        auth.start()
        auth.configure_curve(domain="*", location=zmq.auth.CURVE_ALLOW_ANY)
        one = context.socket(zmq.ROUTER)
        keys = SECRET.replica
        one.curve_server, one.curve_secretkey, one.curve_publickey = True, keys.secret, keys.public
        one.sndhwm = 0
        address.put(f"tcp://127.0.0.1:{one.bind_to_random_port('tcp://127.0.0.1')}")
        running: dict[tuple[bytes, int], int] = {}

        async def make() -> None:
            """Send a token to every running request in each step, as an engine does."""
            while True:
                await asyncio.sleep(1 / rate if rate else 0.002)
                by: dict[bytes, list[list[Any]]] = {}
                for (sender, part), at in list(running.items()):
                    token = TokenOutput(1, f"{time.perf_counter_ns()} ", 0.0)
                    by.setdefault(sender, []).append(["token", part, 0, at, *wire.token_fields(token)])
                    running[sender, part] = at + 1
                for sender, messages in by.items():
                    one.send_multipart([sender, wire.pack(messages)])

        task = asyncio.ensure_future(make())
        while not task.done():
            sender, frame = await one.recv_multipart()
            for kind, *fields in wire.unpack(frame):
                if kind == "hello":
                    one.send_multipart([sender, wire.pack([["welcome", "fake", 4096, []]])])
                elif kind == "run":
                    running[sender, fields[0]] = 0
                elif kind == "cancel":
                    running.pop((sender, fields[0]), None)

    asyncio.run(main())


class FakeRequest(RemoteRequest):
    """Generates the tokens of ``fake_replica`` in the server's own process, to measure a server without a cluster."""

    running: ClassVar[set[FakeRequest]] = set()

    def start(self) -> None:
        self.running.add(self)

    def close(self) -> None:
        self.running.discard(self)

    @classmethod
    async def make(cls, rate: float) -> None:
        while True:
            await asyncio.sleep(1 / rate)
            for one in cls.running:
                token = TokenOutput(1, f"{time.perf_counter_ns()} ", 0.0)
                one.outputs[0].add(token, 0.0)
                one._queue.put_nowait(token)


def ingress(addresses: list[str], rate: float, port: Any) -> None:
    """The server in front of the replicas. Without addresses it generates the tokens itself."""
    import socket

    listening = socket.create_server(("127.0.0.1", 0))
    opened = open_model(MODEL)

    async def started(name: str) -> Any:
        fleet = Fleet(SECRET)
        if not addresses:
            pellucid.cluster.remote_model.RemoteRequest = FakeRequest  # type: ignore[attr-defined]
            tasks.append(asyncio.ensure_future(FakeRequest.make(rate)))
            return RemoteModel(opened, fleet)
        for address in addresses:
            fleet.add(address)
        await fleet.ready(30)
        return RemoteModel(opened, fleet)

    tasks = list[asyncio.Future[None]]()
    models = ModelPool([MODEL], lambda name: started(name), 1 << 62)
    config = uvicorn.Config(create_app(models, AccessRules()), log_level="warning")
    port.put(listening.getsockname()[1])
    uvicorn.Server(config).run(sockets=[listening])


async def read(port: int, late: list[float], counted: list[int], end: float) -> None:
    """One client: reads a stream, and records the age of each token."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 100_000, "stream": True, "ignore_eos": True})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write((head + body).encode())
    while time.perf_counter() < end:
        line = await reader.readline()
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter_ns()
        at = line.find(b'"text": "') + 9
        late.append((now - int(line[at : line.find(b" ", at)])) / 1e6)
        counted[0] += 1
    writer.close()


def passed_on(rate: float, streams: int, seconds: float, count: int = 2) -> tuple[float, float, float]:
    """Tokens per second, and the median and 95th percentile of the milliseconds between sending and arrival."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    replicas = [context.Process(target=fake_replica, args=(rate, queue), daemon=True) for _ in range(count)]
    for one in replicas:
        one.start()
    addresses = [queue.get() for _ in replicas]
    server = context.Process(target=ingress, args=(addresses, rate, queue), daemon=True)
    server.start()
    port, late, counted = queue.get(), list[float](), [0]

    async def clients() -> float:
        end = time.perf_counter() + seconds + 3
        reading = [asyncio.ensure_future(read(port, late, counted, end)) for _ in range(streams)]
        await asyncio.sleep(3)  # until all streams run
        late.clear()
        before, start = counted[0], time.perf_counter()
        await asyncio.sleep(seconds - 0.5)
        found = (counted[0] - before) / (time.perf_counter() - start)
        late[:] = list(late)
        for one in reading:
            one.cancel()
        return found

    rate_found = asyncio.run(clients())
    for one in (server, *replicas):
        one.kill()
    ordered = sorted(late)
    return rate_found, statistics.median(ordered), ordered[int(0.95 * len(ordered))]


def measure_ingress(streams: int, seconds: float) -> None:
    most, *_ = passed_on(0.0, streams, seconds)
    print(f"{most:,.0f} tokens/s through one process, with {streams} streams at their maximum rate")
    for some in (1, 16, streams):
        found = {count: passed_on(USUAL_RATE, some, seconds, count)[1:] for count in (0, 2)}
        (plain, _), (median, high) = found[0], found[2]
        print(
            f"{some} streams of {USUAL_RATE:g} tokens/s: {median:.2f} ms median, {high:.2f} ms p95 from an engine to a "
            f"client; {plain:.2f} ms in a server's own process: {median - plain:.2f} ms more"
        )


def measure_prefix(sessions: int, replicas: int) -> None:
    """Simulate conversations with a common prefix: 8 turns of 450 to 600 tokens, a minute apart."""
    llm = pellucid.load(MODEL)
    costs, room = measure_steps(llm), ModelSize.of(llm).replica_capacity(machine_bytes())
    llm.close()
    traffic = Traffic(
        Lengths(450, 600), Lengths(50, 150), rate=sessions / 60, shared=400, prefixes=5, turns=8, think=60.0
    )
    rng = random.Random(1)

    def at_random(ids: Sequence[int], loads: Sequence[ReplicaLoad]) -> ChosenReplica:
        chosen, names = rng.choice(loads), list(page_names(ids))
        return ChosenReplica(chosen, chosen.has(names), names)

    for title, route in (("by prefix", choose), ("at random", at_random)):
        found = Simulation(traffic, replicas, room, costs, route).run(seconds=600.0, warm=300.0)
        print(
            f"{title}: {100 * found.hits:.0f} % of the pages of prompts were cached; time to the first token "
            f"{found.first_token['p50']:.2f} s median, {found.first_token['p95']:.2f} s p95; replicas run steps "
            f"{100 * found.busy:.0f} % of the time"
        )


def serve_stage(path: str, number: int, count: int, address: Any) -> None:
    """Run a stage before the last stage."""
    make = runner_of(number, count)
    server = StageServer(pellucid.load(path, threads=1, make=make).runner, SECRET)
    address.put((number, server.address))
    server.serve()


def step_seconds(llm: LLM, ids: list[int]) -> float:
    """Median seconds of a step with one token."""
    table, times = BlockTable(), []
    llm.runner.forward([Chunk(table, ids)])
    for _ in range(40):
        start = time.perf_counter()
        llm.runner.forward([Chunk(table, [5])])
        times.append(time.perf_counter() - start)
    llm.runner.cache.release(table)
    return statistics.median(times)


def measure_stages(count: int) -> None:
    context = multiprocessing.get_context("spawn")
    small = str(Path(mkdtemp()) / "small.gguf")
    random_model("llama", small, layers=count, context=1024)
    for path in (small, MODEL):
        queue: Any = context.Queue()
        given = [(path, n, count, queue) for n in range(count - 1)]
        many = [context.Process(target=serve_stage, args=one, daemon=True) for one in given]
        for one in many:
            one.start()
        addresses = [address for _, address in sorted(queue.get() for _ in many)]
        make = partial(StagedRunner, stages=addresses, secret=SECRET)
        with pellucid.load(path, threads=1) as whole, pellucid.load(path, threads=1, make=make) as llm:
            pairs = [(step_seconds(whole, [5] * 16), step_seconds(llm, [5] * 16)) for _ in range(31)]
        for one in many:
            one.kill()
        alone, staged = (1e6 * statistics.median(times) for times in zip(*pairs))
        more = 1e6 * statistics.median(b - a for a, b in pairs) / (count - 1)
        print(
            f"{Path(path).name}: a step takes {alone:,.0f} µs, in {count} stages {staged:,.0f} µs: {more:.0f} µs for "
            "each border"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("ingress", "prefix", "stages"))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--stages", type=int, default=2)
    given = parser.parse_args()
    if given.what == "ingress":
        measure_ingress(given.streams, given.seconds)
    elif given.what == "stages":
        measure_stages(given.stages)
    else:
        measure_prefix(given.sessions, given.replicas)


if __name__ == "__main__":
    main()
