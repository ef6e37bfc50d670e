"""What runs in Ray's processes: a replica, and the stages before its last one."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from pellucid.cluster.refusals import RefusalLog, say
from pellucid.cluster.replica import Replica
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.staged_runner import StagedRunner
from pellucid.cluster.stages import StageServer, runner_of
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import InvalidRequest

ORPHANED = 600.0  # seconds after which a replica ends that no server asks or waits for
AGAIN = 1.0  # seconds until stages are looked for again


@dataclass(frozen=True)
class ReplicaSettings:
    """What a replica runs: a model's ``source``, ``load`` options of ``pellucid.load``, and ``cpus`` of a machine.

    There are ``least`` replicas, up to ``most`` when there is much to do. Each has ``stages``, which run a part of the
    model's blocks on ``cpus`` each.
    """

    source: str
    load: Mapping[str, Any] = field(default_factory=dict)
    cpus: int = 1
    least: int = 1
    most: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InvalidRequest(
                f"replicas from {self.least} to {self.most}: there must be one, and no more than at most"
            )


class StageActor:
    """A stage before the last one in a process of Ray, which starts it again when it ends."""

    def __init__(self, settings: ReplicaSettings, secret: str, number: int) -> None:
        self._settings, self._secret, self._number = settings, ClusterSecret(secret), number
        self._server: StageServer | None = None
        self._lock = asyncio.Lock()

    async def listen(self) -> str:
        """Load the stage and listen, once. Returns its address."""
        async with self._lock:
            if self._server is None:
                self._server = await asyncio.to_thread(self._loaded)
                # A thread that the process does not wait for when it ends.
                threading.Thread(target=self._server.serve, name="pellucid-stage", daemon=True).start()
        return self._server.address

    def _loaded(self) -> StageServer:
        from pellucid.loading import load

        make = runner_of(self._number, self._settings.stages)
        llm = load(self._settings.source, **_options(self._settings), make=make)
        return StageServer(llm.runner, self._secret, _here())


class ReplicaActor:
    """A replica in a process of Ray. After it was ended it is made again, and loads its model again.

    It outlives the server that has made it, which may be started again. Without any it ends after ``orphaned`` seconds,
    so that its cores are free; also where it was made again and has loaded nothing since nobody has asked for it. A
    server that comes later makes another one.
    """

    def __init__(self, settings: ReplicaSettings, secret: str, name: str, orphaned: float = ORPHANED) -> None:
        self._settings, self._secret, self._name = settings, ClusterSecret(secret), name
        self._replica: Replica | None = None
        self._asked, self._orphaned = time.monotonic(), orphaned
        self._watching = asyncio.ensure_future(self._watch())
        self._serving: asyncio.Task[None] | None = None
        self._address = ""
        self._lock = asyncio.Lock()
        self._stages: list[Any] = []

    def _started(self) -> list[Any]:
        """The stages before this one; they end with it."""
        settings, secret = self._settings, self._secret.text
        make = ray.remote(StageActor).options(
            num_cpus=settings.cpus, max_restarts=-1, max_concurrency=8, scheduling_strategy="SPREAD"
        )
        return [make.remote(settings, secret, number) for number in range(settings.stages - 1)]

    async def _addresses(self) -> Sequence[str]:
        found: Sequence[str] = await asyncio.gather(*(answer(one.listen.remote()) for one in self._stages))
        return found

    async def _lost(self, replica: Replica) -> None:
        """A stage is gone: what runs goes on elsewhere, or here when all stages are there again."""
        runner = replica.llm.runner
        assert isinstance(runner, StagedRunner)
        replica.drain()
        say(f"{self._name}: a stage is gone; what ran is read again when it is back")
        failures = RefusalLog(self._name)
        while True:
            await asyncio.sleep(AGAIN)
            if replica.busy:
                continue
            try:
                addresses = await self._addresses()
                await asyncio.to_thread(runner.begin_all, addresses)
                break
            except Exception as error:  # whatever it is, without its stages the replica is of no use
                failures.add(f"{type(error).__name__}: {error}")
        replica.resume()

    async def listen(self) -> tuple[str, str, str]:
        """Load the model and listen, once. Returns the address, the secret, and where it runs."""
        from pellucid.loading import load

        self._asked = time.monotonic()
        async with self._lock:
            if self._replica is None:
                make: Any = ModelRunner
                if self._settings.stages > 1:
                    self._stages = self._stages or self._started()
                    addresses = await self._addresses()
                    make = partial(StagedRunner, stages=addresses, secret=self._secret, host=_here())
                given = {**_options(self._settings), "make": make}
                llm = await asyncio.to_thread(lambda: load(self._settings.source, **given))
                self._replica = Replica(llm, self._secret, self._name, self._lost)
                self._address = await self._replica.listen(_here())
                self._serving = asyncio.ensure_future(self._serve(self._replica))
        return self._address, self._secret.text, f"{socket.gethostname()}, process {os.getpid()}"

    async def waited_for(self) -> None:
        """A server is there, and waits until it listens."""
        self._asked = time.monotonic()

    async def _watch(self) -> None:
        """End when no server is there any more."""
        while time.monotonic() - self._heard < self._orphaned:
            await asyncio.sleep(self._orphaned / 10)
        if self._replica:
            self._replica.close()
        else:
            self._end()

    @property
    def _heard(self) -> float:
        """When a server was heard last."""
        return max(self._asked, self._replica.last_heard) if self._replica else self._asked

    async def _serve(self, replica: Replica) -> None:
        try:
            await replica.serve()
        except Exception as error:
            say(f"{self._name}: {type(error).__name__}: {error}")
        self._end()

    def _end(self) -> None:
        """End the process. Otherwise Ray would start it again."""
        ray.kill(ray.get_runtime_context().current_actor)

    async def served(self) -> None:
        """Wait until it ends."""
        assert self._serving is not None
        await asyncio.shield(self._serving)


def _options(settings: ReplicaSettings) -> dict[str, Any]:
    """The options of ``load``: a thread for each of its cores, unless a number was asked for."""
    return {**settings.load, "threads": settings.load.get("threads") or settings.cpus}


def _here() -> str:
    """The address of this machine in the cluster."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


async def answer(ref: Any) -> Any:
    """What an actor answers, as a coroutine, of which asyncio can make a task."""
    return await ref
