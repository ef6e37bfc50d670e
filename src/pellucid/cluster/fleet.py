"""The replicas of a model, as an ingress sees them: what runs where, and where it goes when a replica is gone."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import zmq.asyncio

from pellucid.cluster import routing, wire
from pellucid.cluster.link import ReplicaLink
from pellucid.cluster.secret import ClusterSecret
from pellucid.errors import KernelError, PellucidError, QueueFull

MOST_LOSSES = 3
"""How many replicas may be lost under a request before it is given up, all of which had begun with it and none of which
has made a token for it: it may be what ends them.
"""
PATIENCE = 120.0
"""Seconds that a request waits where no replica is up."""


class RemoteTask(ABC):
    """Something that runs on a replica, and on another one if that is lost. It belongs to the fleet's event loop.

    ``prompt`` is what it begins with, by which a replica is chosen.
    """

    what: str

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.losses = self._progress = 0
        self.began = True
        """Whether the replica that it was sent to has begun with it."""
        self.name, self.joins = "", False
        """By what name replicas know it, and whether one may have it already."""
        self.elsewhere: list[ReplicaLink] = []

    @property
    def progress(self) -> int:
        """How much has been made."""
        return 0

    @property
    def complete(self) -> bool:
        """Whether all of it has come, and only the word that it has ended is missing."""
        return False

    def lost(self) -> int:
        """Its replica was lost. Returns how many have been since it has last got on."""
        if self.progress > self._progress:
            self.losses = 0
        self.losses += self.began
        self._progress = self.progress
        return self.losses

    def joined(self) -> None:  # noqa: B027 - most have nothing more to tell
        """A replica was asked for it by its name: what ``body`` would say beside that can be told."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """What the replica is asked for: all that is left to do."""

    @abstractmethod
    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        """Take a message about it. Returns whether it has ended."""

    @abstractmethod
    def fail(self, error: PellucidError) -> None:
        """It has ended with an error."""


class Fleet:
    """The replicas at some addresses. Make it, and use it, in one event loop.

    ``queue`` is how many requests may be there at a time, beyond those that the replicas can run together.
    """

    def __init__(self, secret: ClusterSecret, queue: int = 1024) -> None:
        self.loop, self.session = asyncio.get_running_loop(), secrets.token_hex(8)
        self._secret, self._queue = secret, queue
        self._context = zmq.asyncio.Context()
        self._links: dict[str, ReplicaLink] = {}
        self._running: dict[int, tuple[ReplicaLink, RemoteTask]] = {}
        self._parts: dict[RemoteTask, int] = {}
        self._waiting: dict[RemoteTask, asyncio.TimerHandle] = {}
        self._count = 0
        self._up = asyncio.Event()
        self.moved = 0
        """How many requests have gone from one replica to another."""
        self.prefix_hits = self.prefix_queries = 0
        """Pages of prompts that their replica had, of all whole pages of prompts."""

    @property
    def links(self) -> list[ReplicaLink]:
        """The connections to all replicas."""
        return list(self._links.values())

    @property
    def running(self) -> int:
        """Requests that are with a replica."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a replica."""
        return len(self._waiting)

    def add(self, address: str, secret: ClusterSecret | None = None) -> None:
        """A replica more, or one at another address; it may have a secret of its own."""
        if address not in self._links and not self._context.closed:
            self._links[address] = ReplicaLink(
                self._context, secret or self._secret, self.session, address, self._hear, self._changed
            )

    async def remove(self, address: str, *, planned: bool = False) -> None:
        """A replica less: what runs there goes elsewhere. If that is ``planned``, it is no loss."""
        if link := self._links.pop(address, None):
            link.draining = True
            await link.close()
            self._leave(link, planned=planned)

    async def ready(self, seconds: float) -> None:
        """Wait until a replica is up. Raises TimeoutError."""
        await asyncio.wait_for(self._up.wait(), seconds)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the event loop, and wait for it: for those who may be in another thread.

        Raises: what the function raises.
        """

        async def run() -> None:
            function()

        try:
            is_here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_here = False
        if is_here:
            function()
        else:
            asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    def submit(self, task: RemoteTask) -> None:
        """Run a task.

        Raises:
            QueueFull: too many are here.
        """
        slots = sum(link.slots for link in self._links.values() if link.up)
        if len(self._running) + len(self._waiting) >= slots + self._queue:
            raise QueueFull(
                f"{len(self._running) + len(self._waiting):,} requests are here, as many as may: ask again later"
            )
        links = [link for link in self._links.values() if link.up]
        if task.joins and links:
            self._join(task, links)
        else:
            self._send(task)

    def _join(self, task: RemoteTask, links: list[ReplicaLink]) -> None:
        """Ask a replica, and then the others, whether it has a task already; if none has, it is sent to one."""
        link = links.pop()
        task.elsewhere = links
        self._put(task, link)
        link.send("join", self._count, task.name)
        task.joined()

    def _put(self, task: RemoteTask, link: ReplicaLink) -> None:
        self._count += 1
        link.load.running += 1
        self._running[self._count], self._parts[task] = (link, task), self._count

    def tell(self, task: RemoteTask, kind: str, *fields: Any) -> None:
        """Send a message about a task to the replica that it is with; without one nobody hears it."""
        part = self._parts.get(task)
        if part is not None:
            self._running[part][0].send(kind, part, *fields)

    def cancel(self, task: RemoteTask) -> None:
        """End a task, wherever it is."""
        if timer := self._waiting.pop(task, None):
            timer.cancel()
        part = self._parts.get(task)
        if part is not None:
            link, _ = self._running[part]
            link.send("cancel", part)
            self._end(part)

    async def close(self) -> None:
        """End everything."""
        for task in [*self._waiting, *self._parts]:
            self.cancel(task)
            task.fail(QueueFull("the server ends: ask again later"))
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._links.clear()
        self._context.destroy(linger=0)

    def _send(self, task: RemoteTask) -> None:
        """Send a task to the replica that fits best; without one it waits. A complete task needs none."""
        if task.complete:
            task.take("end", ({},))
            return
        links = {link.load: link for link in self._links.values() if link.up and not link.draining}
        if not links:
            self._waiting[task] = self.loop.call_later(PATIENCE, self._late, task)
            return
        route = routing.choose(task.prompt, list(links))
        self.prefix_hits += route.pages
        self.prefix_queries += len(route.names)
        route.replica.expect(route.names)
        link = links[route.replica]
        self._put(task, link)
        link.send("run", self._count, task.what, task.name, task.body())

    def _late(self, task: RemoteTask) -> None:
        del self._waiting[task]
        task.fail(QueueFull(f"no replica was up for {PATIENCE:g} s: ask again later"))

    def _hear(self, link: ReplicaLink, message: Sequence[Any]) -> None:
        """A message about a part. Those of parts that were given up, or are elsewhere by now, are ignored."""
        kind, part, *fields = message
        own = self._running.get(part)
        if own is None or own[0] is not link:
            return
        task = own[1]
        if kind == "unknown":  # it does not have what was asked for by name
            self._end(part)
            links = [one for one in task.elsewhere if one.up]
            if links:
                self._join(task, links)
            else:
                self._send(task)
        elif kind == "moved":  # the replica drains
            link.draining = True
            self._again(part)
        elif kind == "error":
            self._end(part)
            task.fail(wire.error_of(fields))
        elif kind == "lost":  # a part of the replica itself is gone
            self._lose(part)
        else:
            try:
                ended = task.take(kind, fields)
            except Exception as error:  # the replica is another one than it says
                self._end(part)
                task.fail(KernelError(f"a replica has sent what fits nothing: {error}"))
            else:
                if ended:
                    self._end(part)

    def _end(self, part: int) -> RemoteTask:
        link, task = self._running.pop(part)
        del self._parts[task]
        link.load.running -= 1
        return task

    def _again(self, part: int) -> None:
        """A part goes on elsewhere."""
        task = self._end(part)
        self.moved += 1
        self._send(task)

    def _changed(self, link: ReplicaLink) -> None:
        if any(one.up for one in self._links.values()):
            self._up.set()
        else:
            self._up.clear()
        if not link.up:
            if link.address in self._links:  # else it was given up, and what ran there is sent on
                self._leave(link)
            return
        waiting, self._waiting = self._waiting, {}
        for task, timer in waiting.items():
            timer.cancel()
            self._send(task)

    def _leave(self, link: ReplicaLink, *, planned: bool = False) -> None:
        """A replica is gone: what ran there goes on elsewhere. If that was ``planned``, it is no loss."""
        for part, (whose, _) in list(self._running.items()):
            if whose is link and planned:
                self._again(part)
            elif whose is link:
                self._lose(part)

    def _lose(self, part: int) -> None:
        """A part has lost its replica. It goes on elsewhere, but not forever: it may be what ends them."""
        task = self._running[part][1]
        if task.complete or task.lost() < MOST_LOSSES:
            self._again(part)
        else:
            self._end(part)
            task.fail(KernelError(f"{task.losses} replicas were lost under this request: it is given up"))
