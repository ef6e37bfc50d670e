"""The replicas of a model, as an ingress sees them.

The fleet sends each request to a replica. If the replica is lost, the fleet sends the request to another replica.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import zmq.asyncio

from pellucid.cluster import routing, wire
from pellucid.cluster.replica_link import ReplicaLink
from pellucid.cluster.secret import ClusterSecret
from pellucid.errors import KernelError, PellucidError, QueueFull

MAX_LOSSES = 3
"""A request fails after this number of lost replicas, because the request itself may crash the replicas.

A loss counts only if the lost replica had begun the request. A new token resets the count.
"""
PATIENCE = 120.0
"""Seconds that a request waits for a replica while no replica is up. Then the request fails."""


class RemoteTask(ABC):
    """Work for a replica. If the replica is lost, the fleet sends the task to another replica.

    The router chooses the replica by the token ids of ``prompt``. Use a task in the fleet's event loop.
    """

    kind: str
    """Key of ``replica_tasks.TASKS``."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.losses = self._progress = 0
        self.began = True
        """True if the current replica has begun the task."""
        self.name, self.resumes = "", False
        """The task's name on replicas. ``resumes`` is True if a replica may already run a task of this name.

        The new task then continues the task that the replica runs.
        """
        self.other_links: list[ReplicaLink] = []
        """Links to the replicas that have not been asked for a task of this name yet."""

    @property
    def progress(self) -> int:
        """Amount of output so far, in tokens. 0 for a task without tokens."""
        return 0

    @property
    def complete(self) -> bool:
        """True if the whole output has arrived, and only the ``end`` message is missing."""
        return False

    def lost(self) -> int:
        """Count the loss of the current replica. Return the number of losses since the task last made progress."""
        if self.progress > self._progress:
            self.losses = 0
        self.losses += self.began
        self._progress = self.progress
        return self.losses

    def resumed(self) -> None:  # noqa: B027 - most tasks have nothing more to send
        """Send the rest of the task's state. Called after the ``resume`` message, which holds only the name."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """Return the body of the ``run`` message: all work that is left to do."""

    @abstractmethod
    def take(self, kind: str, fields: Sequence[Any]) -> bool:
        """Handle a replica's message about the task. Return True if the task has ended."""

    @abstractmethod
    def fail(self, error: PellucidError) -> None:
        """End the task with an error."""


class Fleet:
    """The replicas of one model. Create and use a fleet in one event loop.

    ``queue`` is the maximum number of requests beyond the requests that the replicas can run at a time.
    """

    def __init__(self, secret: ClusterSecret, queue: int = 1024) -> None:
        self.loop, self.session = asyncio.get_running_loop(), secrets.token_hex(8)
        self._secret, self._queue = secret, queue
        self._context = zmq.asyncio.Context()
        self._links: dict[str, ReplicaLink] = {}
        self._running: dict[int, tuple[ReplicaLink, RemoteTask]] = {}
        self._numbers: dict[RemoteTask, int] = {}
        self._waiting: dict[RemoteTask, asyncio.TimerHandle] = {}
        self._count = 0
        self._up = asyncio.Event()
        self.moved = 0
        """Number of times that a request moved from one replica to another."""
        self.prefix_hits = self.prefix_queries = 0
        """``prefix_queries`` counts all full pages of prompts.

        ``prefix_hits`` counts the full pages that the chosen replica already had in its prefix cache.
        """

    @property
    def links(self) -> list[ReplicaLink]:
        """Connections to all replicas."""
        return list(self._links.values())

    @property
    def running(self) -> int:
        """Number of requests that were sent to a replica and have not ended."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a replica."""
        return len(self._waiting)

    def add(self, address: str, secret: ClusterSecret | None = None) -> None:
        """Add the replica at an address. ``secret`` is the replica's secret if it differs from the fleet's secret."""
        if address not in self._links and not self._context.closed:
            self._links[address] = ReplicaLink(
                self._context, secret or self._secret, self.session, address, self._hear, self._changed
            )

    async def remove(self, address: str, *, planned: bool = False) -> None:
        """Remove a replica, and move its requests to other replicas. A ``planned`` removal does not count as a loss."""
        if link := self._links.pop(address, None):
            link.draining = True
            await link.close()
            self._leave(link, planned=planned)

    async def ready(self, seconds: float) -> None:
        """Wait until a replica is up. Raises TimeoutError after ``seconds``."""
        await asyncio.wait_for(self._up.wait(), seconds)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the event loop and wait until it returns. Any thread may use this method.

        Raises: any error of the function.
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
        """Send a task to a replica, or queue the task until a replica is up.

        Raises:
            QueueFull: the queue is full.
        """
        slots = sum(link.slots for link in self._links.values() if link.up)
        if len(self._running) + len(self._waiting) >= slots + self._queue:
            raise QueueFull(
                f"the queue is full ({len(self._running) + len(self._waiting):,}): retry later, or raise --queue"
            )
        links = [link for link in self._links.values() if link.up]
        if task.resumes and links:
            self._resume(task, links)
        else:
            self._send(task)

    def _resume(self, task: RemoteTask, links: list[ReplicaLink]) -> None:
        """Ask one replica after the other for a task of this name. If no replica has the task, start the task again."""
        link = links.pop()
        task.other_links = links
        self._put(task, link)
        link.send("resume", self._count, task.name)
        task.resumed()

    def _put(self, task: RemoteTask, link: ReplicaLink) -> None:
        self._count += 1
        link.load.running += 1
        self._running[self._count], self._numbers[task] = (link, task), self._count

    def tell(self, task: RemoteTask, kind: str, *fields: Any) -> None:
        """Send a message about a task to the task's replica. The message is dropped if the task waits for a replica."""
        number = self._numbers.get(task)
        if number is not None:
            self._running[number][0].send(kind, number, *fields)

    def cancel(self, task: RemoteTask) -> None:
        """Cancel a task, whether a replica runs the task or the task waits for a replica."""
        if timer := self._waiting.pop(task, None):
            timer.cancel()
        number = self._numbers.get(task)
        if number is not None:
            link, _ = self._running[number]
            link.send("cancel", number)
            self._end(number)

    async def close(self) -> None:
        """Fail all tasks and close all connections."""
        for task in [*self._waiting, *self._numbers]:
            self.cancel(task)
            task.fail(QueueFull("the server is shutting down: retry later"))
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._links.clear()
        self._context.destroy(linger=0)

    def _send(self, task: RemoteTask) -> None:
        """Send a task to the replica that the router chooses. If no replica accepts tasks, the task waits.

        A task with complete output ends and is not sent.
        """
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
        link.send("run", self._count, task.kind, task.name, task.body())

    def _late(self, task: RemoteTask) -> None:
        del self._waiting[task]
        task.fail(QueueFull(f"no replica was up for {PATIENCE:g} s: retry later"))

    def _hear(self, link: ReplicaLink, message: Sequence[Any]) -> None:
        """Handle a replica's message about a task. Messages about tasks that have ended or moved are ignored."""
        kind, number, *fields = message
        running_link, task = self._running.get(number, (None, None))
        if task is None or running_link is not link:
            return
        if kind == "unknown":  # the replica has no task of this name
            self._end(number)
            links = [other for other in task.other_links if other.up]
            if links:
                self._resume(task, links)
            else:
                self._send(task)
        elif kind == "moved":  # the replica drains
            link.draining = True
            self._again(number)
        elif kind == "error":
            self._end(number)
            task.fail(wire.error_of(fields))
        elif kind == "lost":  # a stage of the replica is gone
            self._lose(number)
        else:
            try:
                ended = task.take(kind, fields)
            except Exception as error:  # the replica breaks the protocol
                self._end(number)
                task.fail(KernelError(f"a replica sent an invalid message: {error}"))
            else:
                if ended:
                    self._end(number)

    def _end(self, number: int) -> RemoteTask:
        link, task = self._running.pop(number)
        del self._numbers[task]
        link.load.running -= 1
        return task

    def _again(self, number: int) -> None:
        """Send a task to another replica, under a new number."""
        task = self._end(number)
        self.moved += 1
        self._send(task)

    def _changed(self, link: ReplicaLink) -> None:
        if any(known.up for known in self._links.values()):
            self._up.set()
        else:
            self._up.clear()
        if not link.up:
            if link.address in self._links:  # otherwise ``remove`` moves the tasks of this replica
                self._leave(link)
            return
        waiting, self._waiting = self._waiting, {}
        for task, timer in waiting.items():
            timer.cancel()
            self._send(task)

    def _leave(self, link: ReplicaLink, *, planned: bool = False) -> None:
        """Move all tasks of a replica that is gone. With ``planned``, the tasks do not count this as a loss."""
        for number in [number for number, (running, _) in self._running.items() if running is link]:
            if planned:
                self._again(number)
            else:
                self._lose(number)

    def _lose(self, number: int) -> None:
        """Retry a task whose replica is lost. Fail the task after ``MAX_LOSSES`` losses."""
        task = self._running[number][1]
        if task.complete or task.lost() < MAX_LOSSES:
            self._again(number)
        else:
            self._end(number)
            task.fail(KernelError(f"{task.losses} replicas were lost while they ran this request: it is not retried"))
