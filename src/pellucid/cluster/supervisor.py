"""The supervisor of a model's replicas, which are Ray actors.

Ray places the actors on machines, restarts actors after a crash, and finds actors by name. If Ray's head is down, calls
to the head block until it is up again, so each call has its own thread. Requests continue meanwhile, because they do
not pass through Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayError

from pellucid.cluster.fleet import Fleet
from pellucid.cluster.ray_actors import NAMESPACE, REACHES, ReplicaActor, ReplicaSettings, ask_head
from pellucid.cluster.secret import ClusterSecret, say
from pellucid.cluster.stage_server import StageLost
from pellucid.errors import PellucidError, QueueFull

SCALES = 2.0  # seconds between two checks of the number of replicas
BUSY, IDLE = 0.75, 0.25
"""Load: the number of requests, divided by the number of sequences that the replicas can run at a time.

A replica is added if the load is above BUSY, and removed if it is below IDLE.
"""
QUIET = 60.0  # seconds of low load before a replica is removed
DRAINS = 30.0  # seconds until the running requests of a removed replica move to another replica
REPORTS = 5.0  # seconds between two log lines about replicas that wait for a machine
DISMISSES = 15.0  # seconds for the end of a replica that this server does not need
LEAVES = 0.3  # seconds for the delivery of the ``leave`` message before connections close
TURN = 0.05  # seconds between two polls
RESTARTS = 1.0  # seconds from the loss of a replica to the next attempt to reach it
WAITS = 60.0  # seconds between two calls that tell a loading replica that a server waits for it


class Supervisor:
    """Keeps the replicas of a model running, and gives their addresses to a fleet. Use it in the fleet's event loop."""

    def __init__(self, fleet: Fleet, settings: ReplicaSettings, secret: ClusterSecret) -> None:
        self.fleet, self.settings, self._secret = fleet, settings, secret
        self._replicas: dict[str, _Supervised] = {}
        # Equal settings give equal names, so a restarted ingress finds its replicas.
        same = repr((settings.source, settings.load, settings.cpus, settings.stages))
        self._prefix = f"replica-{hashlib.blake2b(same.encode(), digest_size=6).hexdigest()}-"
        self._names = set[str]()
        """All names used so far. They are not reused, because Ray frees a name only some time after its actor's end."""
        self._quiet = 0.0
        self._tasks = list[asyncio.Task[None]]()
        self._replacing = asyncio.Lock()
        self._closed = False
        self._failure: asyncio.Future[PellucidError] = fleet.loop.create_future()
        """The first error that prevents replicas from starting."""

    async def start(self) -> None:
        """Start the minimum number of replicas. Replicas of an earlier ingress are used first."""
        names = [name for name in await ask_head(ray.util.list_named_actors) if name.startswith(self._prefix)]
        for name in sorted(names):
            self._add(name)
        surplus = sorted(names)[self.settings.most :]
        self._tasks += [asyncio.ensure_future(self._dismiss(name)) for name in surplus]
        for _ in range(self.settings.least - len(self._replicas)):
            self._add()
        self._tasks.append(asyncio.ensure_future(self._report_placed()))
        self._tasks.append(asyncio.ensure_future(self._scale()))

    @property
    def cores(self) -> int:
        """Number of cores of a replica."""
        return self.settings.cpus * self.settings.stages

    @property
    def lacks(self) -> bool:
        """True if there are fewer replicas than the minimum, because they gave their cores to another model."""
        return not self._closed and len(self._replicas) < self.settings.least

    @property
    def waits(self) -> bool:
        """True if a replica waits for a machine, and requests need it: no other replica is placed, or all are busy."""
        placed = all(replica.placed for replica in self._replicas.values())
        return not self._closed and not placed and (self.starves or self._busy > BUSY)

    @property
    def starves(self) -> bool:
        """True if no replica is placed on a machine."""
        return not any(replica.placed for replica in self._replicas.values())

    @property
    def idle(self) -> list[str]:
        """Names of the replicas that run no request."""
        idle = {link.address for link in self.fleet.links if link.up and not link.load.running}
        return [name for name, replica in self._replicas.items() if replica.address in idle]

    @property
    def _busy(self) -> float:
        """The load (``BUSY``)."""
        slots = sum(link.slots for link in self.fleet.links if link.up)
        return (self.fleet.running + self.fleet.waiting) / max(slots, 1)

    async def give_back(self) -> bool:
        """End an idle replica, so that another model gets its cores. Returns False if only one is up, or none is idle.

        Replicas that wait for a machine end too, because Ray would give them the cores.
        """
        idle = self.idle
        if self.fleet.waiting or not idle or sum(link.up for link in self.fleet.links) < 2:
            return False
        for name in [name for name, replica in self._replicas.items() if not replica.placed]:
            await self._remove(name)
        await self._remove(idle[-1])
        return True

    def restore(self) -> None:
        """Start a replica again after ``give_back``."""
        self._add()

    async def ready(self, seconds: float = math.inf) -> None:
        """Wait until a replica is up.

        Raises:
            QueueFull: no replica is up after ``seconds``.
            PellucidError: the error of the first replica that failed.
        """
        up = asyncio.ensure_future(self.fleet.ready(seconds))
        try:
            first: list[asyncio.Future[Any]] = [up, self._failure]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not up.done():
                raise self._failure.result()
            await up
        except asyncio.TimeoutError:
            raise QueueFull("no machine of the cluster has room for this model: retry later") from None
        finally:
            up.cancel()

    async def _report_placed(self) -> None:
        """Log how many replicas Ray has placed on machines, while other replicas wait for a machine."""
        reported = 0, 0
        while True:
            await asyncio.sleep(REPORTS)
            placed, total = sum(replica.placed for replica in self._replicas.values()), len(self._replicas)
            if (placed, total) != reported and (placed < total or reported[0] < reported[1]):
                cores = f"{self.settings.cpus} free core{'s' if self.settings.cpus > 1 else ''}"
                remedy = f": each of the others needs a machine with {cores}" if placed < total else ""
                say(f"{self._prefix[:-1]}: {placed} of {total} placed{remedy}")
            reported = placed, total

    async def replace(self) -> None:
        """Replace all replicas, one after the other. Requests move to other replicas and lose no tokens.

        If the cluster has enough free cores, the new replica starts before the old replica ends.
        """
        if self._replacing.locked():
            return
        async with self._replacing:
            for name in list(self._replicas):
                if self._closed:
                    return
                before = {link.address for link in self.fleet.links if link.up}
                free = (await ask_head(ray.available_resources)).get("CPU", 0)
                has_room = free >= self.settings.cpus * self.settings.stages
                if not has_room:
                    await self._remove(name)
                self._add()
                while not any(link.up and link.address not in before for link in self.fleet.links):
                    await asyncio.sleep(TURN)
                if has_room:
                    await self._remove(name)

    async def close(self) -> None:
        """Tell all replicas that this server leaves. A replica ends if no other server uses it.

        Replicas that are not up are killed.
        """
        self._closed = True
        up = {link.address: link for link in self.fleet.links if link.up}
        for link in up.values():
            link.send("leave")
        await asyncio.sleep(LEAVES)
        tasks = [*self._tasks, *(replica.task for replica in self._replicas.values() if replica.task)]
        for task in tasks:
            task.cancel()
        for replica in self._replicas.values():
            if replica.address not in up:
                await _kill(replica.actor)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._replicas.clear()

    def _add(self, name: str | None = None) -> None:
        """Supervise the replica ``name``, or a new replica if no name is given."""
        if name is None:
            name = next(new for n in count(1) if (new := f"{self._prefix}{n}") not in self._names)
        self._names.add(name)
        replica = self._replicas[name] = _Supervised(name)
        replica.task = asyncio.ensure_future(self._supervise(replica))

    def _created(self, name: str) -> Any:
        """Return the actor with this name. If it does not exist, create it."""
        return (
            ray.remote(ReplicaActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=self.settings.cpus,
                max_restarts=-1,
                scheduling_strategy="SPREAD",
            )
            .remote(self.settings, self._secret.text, name)
        )

    async def _supervise(self, replica: _Supervised) -> None:
        """Start a replica, and give the fleet its address after each restart. If the replica ends, replace it."""
        while True:
            try:
                if replica.actor is None:
                    replica.actor = await ask_head(lambda: self._created(replica.name))
                await replica.actor.waited_for.remote()
                replica.placed = True
                replica.address, secret, where = await _listens(replica.actor)
                self.fleet.add(replica.address, ClusterSecret(secret))
                say(f"{replica.name} is at {replica.address} on {where}")
                await replica.actor.served.remote()
            except RayError as error:
                cause = getattr(error, "cause", None)
                # A new attempt would fail with the same error.
                if isinstance(cause, PellucidError) and not isinstance(cause, StageLost):
                    if not self._failure.done():
                        self._failure.set_result(cause)
                    self._replicas.pop(replica.name, None)
                    await _kill(replica.actor)
                    if any(link.up for link in self.fleet.links):  # otherwise ``ready`` raises the error
                        say(f"{replica.name} cannot be started: {cause}")
                    return
                has_ended = replica.actor is not None and await ask_head(lambda: _has_ended(replica.name))
                if has_ended and replica.name in self._replicas:
                    del self._replicas[replica.name]
                    self._add()
                    return
            finally:
                replica.placed = False
                if replica.address:
                    await self.fleet.remove(replica.address)
                    replica.address = ""
            await asyncio.sleep(RESTARTS)

    async def _remove(self, name: str) -> None:
        """End a replica once its requests have ended. After ``DRAINS`` seconds its remaining requests move."""
        replica = self._replicas.pop(name, None)
        if replica is None:
            return
        for link in self.fleet.links:
            if link.address == replica.address:
                link.draining = True
                end = time.monotonic() + DRAINS
                while link.load.running and time.monotonic() < end:
                    await asyncio.sleep(TURN)
        await self.fleet.remove(replica.address, planned=True)
        if replica.task:
            replica.task.cancel()
            await asyncio.gather(replica.task, return_exceptions=True)
        await _kill(replica.actor)

    async def _dismiss(self, name: str) -> None:
        """Leave a replica of an earlier server that this server does not need. It ends, unless a server uses it.

        The earlier server counts as alive for some seconds after its last message.
        """
        replica, end = self._replicas.pop(name), time.monotonic() + DISMISSES
        try:
            while time.monotonic() < end:
                for link in self.fleet.links:
                    if link.address == replica.address:
                        link.draining = True
                        if link.up and not link.load.running:
                            link.send("leave")
                await asyncio.sleep(LEAVES)
            await self.fleet.remove(replica.address, planned=True)
        finally:
            if replica.task:
                replica.task.cancel()

    async def _scale(self) -> None:
        """Add a replica when the load is high. Remove a replica when the load has been low for ``QUIET`` seconds."""
        while True:
            await asyncio.sleep(SCALES)
            busy = self._busy
            total = len(self._replicas)
            self._quiet = self._quiet + SCALES if busy < IDLE else 0.0
            starting = any(not replica.address for replica in self._replicas.values())
            if busy > BUSY and total < self.settings.most and not starting:
                self._add()
            elif self._quiet >= QUIET and total > self.settings.least:
                self._quiet = 0.0
                await self._remove(list(self._replicas)[-1])


async def _listens(actor: Any) -> tuple[str, str, str]:
    """Call a replica's ``listen`` and return the result. Meanwhile tell the replica regularly that a server waits."""
    listening: asyncio.Future[tuple[str, str, str]] = asyncio.ensure_future(actor.listen.remote())
    try:
        while not (await asyncio.wait([listening], timeout=WAITS))[0]:
            actor.waited_for.remote()
        return listening.result()
    finally:
        listening.cancel()


def _has_ended(name: str) -> bool:
    """True if a replica has ended for good, so that Ray does not restart it."""
    try:
        ray.get_actor(name, NAMESPACE)
    except ValueError:
        return True
    except RayError:
        pass
    return False


async def _kill(actor: Any) -> None:
    if actor is not None:
        # If Ray's head is down, the actor later ends by itself, because no server talks to it.
        with contextlib.suppress(RayError, asyncio.TimeoutError):
            await asyncio.wait_for(ask_head(lambda: ray.kill(actor)), REACHES)


@dataclass(eq=False)
class _Supervised:
    """A supervised replica. ``placed`` is True once Ray has placed it on a machine. ``task`` supervises the replica.

    ``actor`` is None until the actor is created. ``address`` is empty while the replica starts.
    """

    name: str
    actor: Any = None
    placed: bool = False
    address: str = ""
    task: asyncio.Task[None] | None = None
