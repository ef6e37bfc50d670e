"""Replicas as actors of Ray: it places them, starts them again when they end, and says where they are."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import socket
import sys
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray
from ray.exceptions import RayError

from pellucid.cluster.actors import ReplicaActor, ReplicaSettings, answer
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.secret import ClusterSecret
from pellucid.errors import InvalidRequest, PellucidError, QueueFull

NAMESPACE = "pellucid"
SCALES = 2.0  # seconds between two looks at how many replicas are needed
BUSY, IDLE = 0.75, 0.25
"""Requests for each sequence that the replicas can run: above BUSY one more is started, below IDLE one ends."""
QUIET = 60.0  # seconds that a replica must have been too many
DRAINS = 30.0  # seconds that requests have to end before they are handed over
MOST_FAILURES = 60  # times that a replica cannot be started before another takes its place
SAYS = 10.0  # seconds after which it is said that there is no room
LEAVES = 0.3  # seconds that replicas have to hear that a server leaves
REACHES = 5.0  # seconds to reach a cluster's address
TURN = 0.05  # seconds between two looks at what is waited for
RESTARTS = 1.0  # seconds until a replica that could not be reached is asked again
WAITS = 60.0  # seconds after which a replica that loads hears again that it is waited for


class Supervisor:
    """Keeps the replicas of a model running, and tells a fleet where they are. Use it in the fleet's event loop."""

    def __init__(self, fleet: Fleet, settings: ReplicaSettings, secret: ClusterSecret) -> None:
        self.fleet, self.settings, self._secret = fleet, settings, secret
        self._kept: dict[str, _Kept] = {}
        # An ingress that is started again finds the replicas that it had.
        self._prefix = f"replica-{_digest(settings)}-"
        self._names = set[str]()
        """All that there have been: a name is free again only some time after its actor has ended."""
        self._quiet = 0.0
        self._scaling: asyncio.Task[None] | None = None
        self._closed = self._replacing = False
        self.failure: PellucidError | None = None
        """Why no replica can be started."""

    def start(self) -> None:
        """Start as many replicas as there are at least; those of an ingress that has ended are found again."""
        known = [one for one in ray.util.list_named_actors() if one.startswith(self._prefix)]
        for name in sorted(known)[: self.settings.most]:
            self._add(name)
        for _ in range(self.settings.least - len(self._kept)):
            self._add()
        if self.settings.most > self.settings.least:
            self._scaling = asyncio.ensure_future(self._scale())

    async def ready(self, seconds: float = math.inf) -> None:
        """Wait until a replica is up.

        Raises:
            QueueFull: none is after so many ``seconds``.
            PellucidError: what the first one has failed with.
        """
        up, began, needed = (
            asyncio.ensure_future(self.fleet.ready(math.inf)),
            time.monotonic(),
            self.settings.cpus,
        )
        end = began + seconds
        try:
            while not up.done():
                await asyncio.wait([up], timeout=0.2)
                if self.failure:
                    raise self.failure
                if time.monotonic() > end:
                    raise QueueFull("no machine of the cluster has room for this model: ask again later")
                free = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
                if time.monotonic() - began > SAYS and free < needed and not any(self._kept_addresses()):
                    began = math.inf
                    print(
                        f"no machine of the cluster has {needed} free cores: waiting",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            up.cancel()

    def _kept_addresses(self) -> list[str]:
        return [one.address for one in self._kept.values()]

    async def replace(self) -> None:
        """Replace all replicas by new ones, one after the other; requests go on elsewhere and lose nothing.

        The new one comes first if a machine has room for it.
        """
        if self._replacing:
            return
        self._replacing = True
        try:
            await self._replace_all()
        finally:
            self._replacing = False

    async def _replace_all(self) -> None:
        for name in list(self._kept):
            if self._closed:
                return
            before = {link.address for link in self.fleet.links if link.up}
            free = ray.available_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
            has_room = free >= self.settings.cpus * self.settings.stages
            if not has_room:
                await self._remove(name, DRAINS)
            self._add()
            while not any(one.up and one.address not in before for one in self.fleet.links):
                await asyncio.sleep(TURN)
            if has_room:
                await self._remove(name, DRAINS)

    async def close(self) -> None:
        """Leave all replicas, which end if no other server uses them; those that have not begun are ended."""
        self._closed = True
        if self._scaling:
            self._scaling.cancel()
        up = {link.address: link for link in self.fleet.links if link.up}
        for link in up.values():
            link.send("leave")
        await asyncio.sleep(LEAVES)
        for one in list(self._kept.values()):
            if one.task:
                one.task.cancel()
            if one.address not in up:
                _kill(one.actor)
        await asyncio.gather(*(one.task for one in self._kept.values() if one.task), return_exceptions=True)
        self._kept.clear()

    def _add(self, name: str | None = None) -> None:
        """One replica more: a new one, or the one of a name."""
        if name is None:
            name = next(one for n in count(1) if (one := f"{self._prefix}{n}") not in self._names)
        self._names.add(name)
        actor = (
            ray.remote(ReplicaActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=self.settings.cpus,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=64,
                scheduling_strategy="SPREAD",
            )
            .remote(self.settings, self._secret.text, name)
        )
        self._kept[name] = _Kept(name, actor)
        self._kept[name].task = asyncio.ensure_future(self._keep(self._kept[name]))

    async def _keep(self, one: _Kept) -> None:
        """Know where a replica is, also after it was started again."""
        failures = 0
        while True:
            try:
                one.address, secret, where = await _listens(one.actor)
                self.fleet.add(one.address, ClusterSecret(secret))
                print(f"{one.name} is at {one.address} on {where}", file=sys.stderr, flush=True)
                await answer(one.actor.served.remote())
                failures = 0
            except RayError as error:
                failures += 1
                cause = getattr(error, "cause", None)
                if isinstance(cause, PellucidError):  # what a new start would not change
                    self.failure = cause
                    self._kept.pop(one.name, None)
                    _kill(one.actor)
                    if any(link.up for link in self.fleet.links):  # else whoever waits for the first is told
                        print(f"{one.name} cannot be started: {cause}", file=sys.stderr, flush=True)
                    return
                if (failures >= MOST_FAILURES or _has_ended(one.name)) and one.name in self._kept:
                    del self._kept[one.name]
                    _kill(one.actor)
                    self._add()
                    return
            finally:
                if one.address:
                    await self.fleet.remove(one.address)
                    one.address = ""
            await asyncio.sleep(RESTARTS)

    async def _remove(self, name: str, seconds: float) -> None:
        """End a replica: at once, or when what runs there has ended; after ``seconds`` it is handed over."""
        one = self._kept.pop(name, None)
        if one is None:
            return
        link = next((link for link in self.fleet.links if link.address == one.address), None)
        if link is not None and seconds:
            link.draining = True
            end = asyncio.get_running_loop().time() + seconds
            while link.load.running and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(TURN)
        await self.fleet.remove(one.address, planned=True)
        if one.task:
            one.task.cancel()
            await asyncio.gather(one.task, return_exceptions=True)
        _kill(one.actor)

    async def _scale(self) -> None:
        """One replica more while there is too much to do, one less after a quiet time."""
        while True:
            await asyncio.sleep(SCALES)
            slots = sum(link.slots for link in self.fleet.links if link.up)
            busy = (self.fleet.running + self.fleet.waiting) / max(slots, 1)
            now = len(self._kept)
            self._quiet = self._quiet + SCALES if busy < IDLE else 0.0
            if busy > BUSY and now < self.settings.most and all(self._kept_addresses()):
                self._add()
            elif self._quiet >= QUIET and now > self.settings.least:
                self._quiet = 0.0
                await self._remove(list(self._kept)[-1], DRAINS)


async def _listens(actor: Any) -> tuple[str, str, str]:
    """What a replica says when it listens; until then it hears that it is waited for."""
    asked = asyncio.ensure_future(answer(actor.listen.remote()))
    try:
        while not (await asyncio.wait([asked], timeout=WAITS))[0]:
            actor.waited_for.remote()
        found: tuple[str, str, str] = asked.result()
        return found
    finally:
        asked.cancel()


def _has_ended(name: str) -> bool:
    """Whether a replica has ended for good: Ray does not start it again."""
    try:
        ray.get_actor(name, NAMESPACE)
    except ValueError:
        return True
    except RayError:
        pass
    return False


def _kill(actor: Any) -> None:
    with contextlib.suppress(RayError):
        ray.kill(actor)


def _digest(settings: ReplicaSettings) -> str:
    """Of what a replica runs, however many there are."""
    what = repr((settings.source, sorted(settings.load.items()), settings.cpus, settings.stages))
    return hashlib.blake2b(what.encode(), digest_size=6).hexdigest()


@dataclass(eq=False)
class _Kept:
    """A replica that is kept running: where it listens (empty while it starts), and what looks after it."""

    name: str
    actor: Any
    address: str = ""
    task: asyncio.Task[None] | None = None


def connect(address: str) -> None:
    """Join the Ray cluster at an address; "auto" is the one of this machine, or a new one of this machine alone.

    Raises:
        InvalidRequest: there is no cluster at the address.
    """
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "auto":
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                ray.init(include_dashboard=False, **options)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), REACHES).close()  # Ray itself tries for a minute
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"cluster={address!r}: no cluster of Ray can be joined there: {first}") from None
