"""Replicas in their own processes. Tests kill them to simulate the loss of a machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pellucid
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.remote_request import RemoteRequest
from pellucid.cluster.replica_link import ReplicaLink
from pellucid.cluster.secret import ClusterSecret
from pellucid.loading import open_model

SECONDS = 60
SECRET = "a secret of these tests alone"
_processes = multiprocessing.get_context("forkserver")
# Replicas are forks of a process that has imported everything.
_processes.set_forkserver_preload(["support.replicas", "pellucid.cluster.replica"])


def _serve(path: str, name: str, secret: str, threads: int, said: str, address: Connection) -> None:
    """Serve a model as a replica, and send its address. Standard error goes to the file ``said``."""
    from pellucid.cluster.replica import Replica

    with open(said, "wb", buffering=0) as errors:
        os.dup2(errors.fileno(), 2)

    async def serve() -> None:
        with pellucid.load(path, threads=threads) as llm:
            replica = Replica(llm, ClusterSecret(secret), name)
            address.send(await replica.listen())
            await replica.serve()

    asyncio.run(serve())


class ReplicaProcess:
    """A replica of a model file in its own process. It listens on ``address``."""

    def __init__(self, path: Path | str, name: str, secret: str = SECRET, threads: int = 1) -> None:
        handle, said = tempfile.mkstemp(prefix="pellucid-replica-")
        os.close(handle)
        self._said = Path(said)
        ours, theirs = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=_serve, args=(str(path), name, secret, threads, said, theirs))
        self.process.start()
        theirs.close()
        with ours:
            try:
                self.address: str = ours.recv()
            except EOFError:
                raise AssertionError(self.close()) from None

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        self.process.kill()
        self.process.join()

    def close(self) -> str:
        """Kill the process if it runs. Returns its standard error."""
        self.kill()
        said = self._said.read_text() if self._said.exists() else ""
        self._said.unlink(missing_ok=True)
        return said

    def __enter__(self) -> ReplicaProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Replicas:
    """Replicas of a model, and the fleet that connects to them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count, self.opened = path, count, open_model(path)
        self.processes: dict[str, ReplicaProcess] = {}
        self.made = 0

    fleet: Fleet

    def add_later(self) -> None:
        """Start a replica and add it to the fleet. May be called from any thread."""
        self.made += 1
        one = ReplicaProcess(self.path, f"replica {self.made}")
        self.processes[one.address] = one
        self.fleet.loop.call_soon_threadsafe(self.fleet.add, one.address)

    @property
    def busy(self) -> list[ReplicaLink]:
        """Links to the replicas that run requests."""
        return [link for link in self.fleet.links if link.load.running]

    async def kill(self) -> None:
        """Kill a replica, if possible a replica that runs a request."""
        for address in [link.address for link in self.busy][:1] or list(self.processes)[:1]:
            self.processes.pop(address).close()
            await self.fleet.remove(address)

    async def up(self, count: int) -> None:
        while sum(link.up for link in self.fleet.links) < count:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def replicas(path: Path, count: int = 2) -> AsyncIterator[tuple[Replicas, RemoteModel]]:
    made = Replicas(path, count)
    made.fleet = Fleet(ClusterSecret(SECRET))
    try:
        await asyncio.gather(*(asyncio.to_thread(made.add_later) for _ in range(count)))
        await asyncio.wait_for(made.up(count), SECONDS)
        yield made, RemoteModel(made.opened, made.fleet)
    finally:
        await made.fleet.close()
        made.opened.checkpoint.close()
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
