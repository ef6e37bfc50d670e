"""Replicas as Ray actors. Ray places them, restarts them after a crash, and finds them by name.

Ray's head may be down; calls to it then block until it is back. So each call has its own thread. Requests do not pass
through Ray and continue.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from pellucid.cluster.actors import ReplicaActor, ReplicaSettings, answer
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.refusals import say
from pellucid.cluster.secret import ClusterSecret
from pellucid.errors import InvalidRequest, PellucidError, QueueFull

T = TypeVar("T")
NAMESPACE = "pellucid"
SCALES = 2.0  # seconds between two checks of the number of replicas
BUSY, IDLE = 0.75, 0.25
"""Requests per sequence that the replicas can run: a replica is added above BUSY, and removed below IDLE."""
QUIET = 60.0  # seconds of low load before a replica is removed
DRAINS = 30.0  # seconds that running requests have before they move to another replica
MOST_FAILURES = 60  # failed starts before another replica takes its place
SAYS = 5.0  # seconds between two checks for replicas without a machine
LEAVES = 0.3  # seconds to deliver the message that a server leaves
REACHES = 5.0  # timeout in seconds: reaching a cluster's address, and its head at the end
TURN = 0.05  # seconds between two polls
RESTARTS = 1.0  # seconds before an unreachable replica is retried
WAITS = 60.0  # seconds between two messages to a loading replica that a server waits


class Supervisor:
    """Keeps the replicas of a model running, and tells a fleet their addresses. Use it in the fleet's event loop."""

    def __init__(self, fleet: Fleet, settings: ReplicaSettings, secret: ClusterSecret) -> None:
        self.fleet, self.settings, self._secret = fleet, settings, secret
        self._kept: dict[str, _Kept] = {}
        # The same settings give the same names, so a restarted ingress finds its replicas.
        self._prefix = f"replica-{_digest(settings)}-"
        self._names = set[str]()
        """All names used so far. Ray frees a name only some time after its actor has ended."""
        self._quiet = 0.0
        self._tasks = list[asyncio.Task[None]]()
        self._closed = self._replacing = False
        self.failure: PellucidError | None = None
        """Error that prevents any replica from starting."""

    async def start(self) -> None:
        """Start the minimum number of replicas. Replicas of an earlier ingress are reused."""
        known = [one for one in await asked(ray.util.list_named_actors) if one.startswith(self._prefix)]
        for name in sorted(known)[: self.settings.most]:
            self._add(name)
        for _ in range(self.settings.least - len(self._kept)):
            self._add()
        self._tasks.append(asyncio.ensure_future(self._tell_placed()))
        if self.settings.most > self.settings.least:
            self._tasks.append(asyncio.ensure_future(self._scale()))

    async def ready(self, seconds: float = math.inf) -> None:
        """Wait until a replica is up.

        Raises:
            QueueFull: no replica is up after ``seconds``.
            PellucidError: the error of the first replica that failed.
        """
        up, end = asyncio.ensure_future(self.fleet.ready(math.inf)), time.monotonic() + seconds
        try:
            while not up.done():
                await asyncio.wait([up], timeout=0.2)
                if self.failure:
                    raise self.failure
                if time.monotonic() > end:
                    raise QueueFull("no machine of the cluster has room for this model: retry later")
        finally:
            up.cancel()

    async def _tell_placed(self) -> None:
        """Log the number of placed replicas while others wait for a machine."""
        told = 0, 0
        while True:
            await asyncio.sleep(SAYS)
            now = sum(one.placed for one in self._kept.values()), len(self._kept)
            if now != told and (now[0] < now[1] or told[0] < told[1]):
                placed = f"{self._prefix[:-1]}: {now[0]} of {now[1]} placed"
                cores = f"{self.settings.cpus} free core{'s' if self.settings.cpus > 1 else ''}"
                say(
                    placed
                    if now[0] == now[1]
                    else f"{placed}: each of the others needs a machine with {cores}"
                )
            told = now

    async def replace(self) -> None:
        """Replace all replicas, one after the other. Requests move to other replicas and lose nothing.

        The new replica starts first if a machine has room for it.
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
            free = (await asked(ray.available_resources)).get("CPU", 0)
            has_room = free >= self.settings.cpus * self.settings.stages
            if not has_room:
                await self._remove(name, DRAINS)
            self._add()
            while not any(one.up and one.address not in before for one in self.fleet.links):
                await asyncio.sleep(TURN)
            if has_room:
                await self._remove(name, DRAINS)

    async def close(self) -> None:
        """Leave all replicas. Replicas that no other server uses end; replicas that are not up are killed."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        up = {link.address: link for link in self.fleet.links if link.up}
        for link in up.values():
            link.send("leave")
        await asyncio.sleep(LEAVES)
        for one in list(self._kept.values()):
            if one.task:
                one.task.cancel()
            if one.address not in up:
                await _kill(one.actor)
        await asyncio.gather(*(one.task for one in self._kept.values() if one.task), return_exceptions=True)
        self._kept.clear()

    def _add(self, name: str | None = None) -> None:
        """Add a replica: a new one, or the replica with a given name."""
        if name is None:
            name = next(one for n in count(1) if (one := f"{self._prefix}{n}") not in self._names)
        self._names.add(name)
        self._kept[name] = _Kept(name)
        self._kept[name].task = asyncio.ensure_future(self._keep(self._kept[name]))

    def _made(self, name: str) -> Any:
        """Return the actor of a name. It is started if it does not exist."""
        made = ray.remote(ReplicaActor).options(
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
        return made.remote(self.settings, self._secret.text, name)

    async def _keep(self, one: _Kept) -> None:
        """Start a replica, and keep its address up to date after restarts."""
        failures = 0
        while True:
            try:
                if one.actor is None:
                    one.actor = await asked(lambda: self._made(one.name))
                await answer(one.actor.waited_for.remote())
                one.placed = True
                one.address, secret, where = await _listens(one.actor)
                self.fleet.add(one.address, ClusterSecret(secret))
                say(f"{one.name} is at {one.address} on {where}")
                await answer(one.actor.served.remote())
                failures = 0
            except RayError as error:
                failures += 1
                cause = getattr(error, "cause", None)
                if isinstance(cause, PellucidError):  # a restart would fail again
                    self.failure = cause
                    self._kept.pop(one.name, None)
                    await _kill(one.actor)
                    if any(link.up for link in self.fleet.links):  # else ``ready`` raises the error
                        say(f"{one.name} cannot be started: {cause}")
                    return
                has_ended = one.actor is not None and await asked(lambda: _has_ended(one.name))
                if (failures >= MOST_FAILURES or has_ended) and one.name in self._kept:
                    del self._kept[one.name]
                    await _kill(one.actor)
                    self._add()
                    return
            finally:
                one.placed = False
                if one.address:
                    await self.fleet.remove(one.address)
                    one.address = ""
            await asyncio.sleep(RESTARTS)

    async def _remove(self, name: str, seconds: float) -> None:
        """End a replica once its requests have ended. Requests left after ``seconds`` move to other replicas."""
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
        await _kill(one.actor)

    async def _scale(self) -> None:
        """Add a replica under high load, and remove a replica after a time of low load."""
        while True:
            await asyncio.sleep(SCALES)
            slots = sum(link.slots for link in self.fleet.links if link.up)
            busy = (self.fleet.running + self.fleet.waiting) / max(slots, 1)
            now = len(self._kept)
            self._quiet = self._quiet + SCALES if busy < IDLE else 0.0
            if busy > BUSY and now < self.settings.most and all(one.address for one in self._kept.values()):
                self._add()
            elif self._quiet >= QUIET and now > self.settings.least:
                self._quiet = 0.0
                await self._remove(list(self._kept)[-1], DRAINS)


async def _listens(actor: Any) -> tuple[str, str, str]:
    """Return the reply of a replica's ``listen``. Until it arrives, tell the replica regularly that a server waits."""
    asked = asyncio.ensure_future(answer(actor.listen.remote()))
    try:
        while not (await asyncio.wait([asked], timeout=WAITS))[0]:
            actor.waited_for.remote()
        found: tuple[str, str, str] = asked.result()
        return found
    finally:
        asked.cancel()


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
        with contextlib.suppress(RayError, asyncio.TimeoutError):  # without Ray's head it ends as an orphan
            await asyncio.wait_for(asked(lambda: ray.kill(actor)), REACHES)


async def asked(question: Callable[[], T]) -> T:
    """Call Ray's head in a new thread, and return the result. While the head is down, only this thread blocks.

    A thread pool would fill with blocked threads and delay the server's end.

    Raises: any error of ``question``.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def tell(set_what: Callable[[Any], None], value: Any) -> None:
        if not found.done():
            set_what(value)

    def run() -> None:
        try:
            what = found.set_result, question()
        except Exception as error:
            what = found.set_exception, error  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *what)

    threading.Thread(target=run, name="pellucid-ray", daemon=True).start()
    return await found


def _digest(settings: ReplicaSettings) -> str:
    """Return a digest of the settings without the number of replicas."""
    what = repr((settings.source, settings.load, settings.cpus, settings.stages))
    return hashlib.blake2b(what.encode(), digest_size=6).hexdigest()


@dataclass(eq=False)
class _Kept:
    """A supervised replica. ``placed`` is True once it has a machine, and ``task`` supervises it.

    ``actor`` is None until it is created. ``address`` is empty while the replica starts.
    """

    name: str
    actor: Any = None
    placed: bool = False
    address: str = ""
    task: asyncio.Task[None] | None = None


def connect(address: str) -> None:
    """Join the Ray cluster at an address. "auto" is the cluster of this machine, or a new local cluster.

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
            socket.create_connection((host, int(port)), REACHES).close()  # Ray itself retries for a minute
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise InvalidRequest(f"cluster={address!r}: no cluster of Ray can be joined there: {first}") from None
