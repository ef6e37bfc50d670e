"""Replicas in their own processes. Tests kill them to simulate the loss of a machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pellucid.cluster.fleet import Fleet
from pellucid.cluster.group import RemoteRequest
from pellucid.cluster.model import RemoteModel
from pellucid.cluster.secret import ClusterSecret
from pellucid.loading import open_model

SECONDS = 60
SECRET = "a secret of these tests alone"
PROGRAM = """
import asyncio, sys
import pellucid
from pellucid.cluster.replica import Replica
from pellucid.cluster.secret import ClusterSecret

async def main(path, name, secret, threads):
    llm = pellucid.load(path, threads=int(threads))
    replica = Replica(llm, ClusterSecret(secret), name)
    print(await replica.listen(), flush=True)
    await replica.serve()

asyncio.run(main(*sys.argv[1:]))
"""


class ReplicaProcess:
    """A replica of a model file in its own process. It listens on ``address``."""

    def __init__(self, path: Path | str, name: str, secret: str = SECRET, threads: int = 1) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), name, secret, str(threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("tcp://"), self.process.stderr.read() if self.process.stderr else ""

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def close(self) -> str:
        """Kill the process if it runs. Returns its standard error."""
        if self.process.poll() is None:
            self.process.kill()
        _, said = self.process.communicate()
        return said

    def __enter__(self) -> ReplicaProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Replicas:
    """Replicas of a model, and the fleet that connects to them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.processes: dict[str, ReplicaProcess] = {}
        self.made = 0

    fleet: Fleet

    def add_later(self) -> None:
        """Start a replica and add it to the fleet. May be called from any thread."""
        self.made += 1
        one = ReplicaProcess(self.path, f"replica {self.made}")
        self.processes[one.address] = one
        self.fleet.loop.call_soon_threadsafe(self.fleet.add, one.address)

    async def kill(self, task: RemoteRequest | None = None) -> None:
        """Kill the replica that runs a request (by default any request)."""
        found = [link for link, own in self.fleet._running.values() if task is None or own is task._task]
        addresses = [found[0].address] if found else list(self.processes)[:1]
        for address in addresses:
            self.processes.pop(address).kill()
            await self.fleet.remove(address)

    async def up(self, count: int) -> None:
        while sum(link.up for link in self.fleet.links) < count:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def replicas(path: Path, count: int = 2) -> AsyncIterator[tuple[Replicas, RemoteModel]]:
    made = Replicas(path, count)
    made.fleet = Fleet(ClusterSecret(SECRET))
    opened = open_model(path)
    try:
        await asyncio.gather(*(asyncio.to_thread(made.add_later) for _ in range(count)))
        await asyncio.wait_for(made.up(count), SECONDS)
        yield made, RemoteModel(opened, made.fleet)
    finally:
        await made.fleet.close()
        opened.checkpoint.close()
        said = "".join(one.close() for one in made.processes.values())
    assert said == ""


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 2 * SECONDS))


async def finished(group: RemoteRequest, at: Callable[[int], Coroutine[Any, Any, None] | None]) -> None:
    """Read a request to its end. Calls ``at(n)`` after the n-th token and awaits its result."""
    count = 0
    async for _ in group.stream():
        count += 1
        if work := at(count):
            await work


def loads_from(folder: Path, addresses: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a server's function that loads models of a folder, each on the replicas at its addresses."""

    async def load(name: str) -> RemoteModel:
        fleet = Fleet(ClusterSecret(SECRET))
        for address in addresses[name]:
            fleet.add(address)
        await fleet.ready(SECONDS)
        return RemoteModel(open_model(folder / name), fleet)

    return load
