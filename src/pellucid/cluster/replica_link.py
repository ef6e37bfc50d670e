"""A connection from an ingress to one replica. It sends and receives messages, and detects the loss of the replica."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret, RefusalLog
from pellucid.engine.state import EngineState
from pellucid.runtime.prefix_cache import page_names

# The router: chooses the replica that has cached the longest prefix of a prompt, unless that replica is overloaded.
#
# A page's name is a hash of the prompt up to the end of this page (``runtime/prefix_cache.py``). Replicas publish the
# names of their cached pages, and the router compares names. Requests without a cached prefix are spread by rendezvous
# hashing of their first page (Thaler and Ravishankar 1998), so requests with equal prefixes go to the same replica.
# Each replica has a share of all requests, and replicas with faster steps have a larger share. The share bounds the
# load of the replica (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018).
#
# The router needs no socket and no model.

SPARE = 0.25
"""Allowed load above a replica's share, as a fraction of the share. Further requests go to other replicas."""
MAX_SENT = 20_000  # page names of sent requests that the router remembers for each replica


@dataclass(eq=False)
class ReplicaLoad:
    """A replica as the router sees it: its cached ``pages``, its number of ``running`` requests, the mean step time."""

    name: str
    pages: set[int] = field(default_factory=set)
    running: int = 0
    step_seconds: float = 0.0
    sent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Page names of the requests that were sent to the replica. The replica will soon have cached these pages."""

    def __post_init__(self) -> None:
        self.rename(self.name)

    def rename(self, name: str) -> None:
        """Change the name. The name seeds the replica's pseudo-random numbers in rendezvous hashing."""
        self.name, self.seed = name, _digest(name)

    def has(self, names: Sequence[int]) -> int:
        """Return the number of leading pages of a prompt that the replica has or will have."""
        count = 0
        for name in names:
            if name not in self.pages and name not in self.sent:
                break
            count += 1
        return count

    def expect(self, names: Iterable[int]) -> None:
        """Record that a prompt with these pages was sent to the replica."""
        for name in names:
            self.sent[name] = None
            self.sent.move_to_end(name)
        while len(self.sent) > MAX_SENT:
            self.sent.popitem(last=False)

    def evict(self, names: Iterable[int]) -> None:
        """Record that the replica has evicted these pages."""
        for name in names:
            self.pages.discard(name)
            self.sent.pop(name, None)


@dataclass(frozen=True)
class ChosenReplica:
    """A routing decision: the replica, and the names of all pages of the prompt.

    ``pages`` is the number of leading pages of the prompt that the replica has cached.
    """

    replica: ReplicaLoad
    pages: int
    names: Sequence[int]


def choose(ids: Sequence[int], replicas: Sequence[ReplicaLoad], spare: float = SPARE) -> ChosenReplica:
    """Choose a replica for a prompt. ``replicas`` are the replicas that accept requests, at least one replica.

    Among the replicas below their load bound, the replica with the most cached pages wins. Ties go to the replica with
    the lowest pseudo-random number. If all replicas are at their bound, the replica with the lowest ratio of load to
    share wins.
    """
    names, count = list(page_names(ids)), len(replicas)
    begins = names[0] if names else _digest(repr(list(ids)))
    known = np.fromiter((replica.has(names) for replica in replicas), np.int64, count)
    running = np.fromiter((replica.running for replica in replicas), np.int64, count)
    shares = _shares(np.fromiter((replica.step_seconds for replica in replicas), np.float64, count))
    bounds = np.ceil((1 + spare) * (running.sum() + 1) * shares)
    work = np.where(running + 1 <= bounds, 0.0, (running + 1) / shares)
    at = int(np.lexsort((_draws(begins, replicas), -known, work))[0])
    return ChosenReplica(replicas[at], int(known[at]), names)


def _digest(text: str) -> int:
    """Return a 64-bit hash of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _draws(begins: int, replicas: Sequence[ReplicaLoad]) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each replica. In a tie the replica with the lowest number wins.

    The prompt's first page and the replica's name are mixed as in SplitMix64 (Steele et al. 2014).
    """
    drawn = np.fromiter((replica.seed for replica in replicas), np.uint64, len(replicas)) ^ np.uint64(begins)
    drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = drawn ^ (drawn >> np.uint64(31))
    return mixed


def _shares(step_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each replica's share of the requests, in proportion to the speed of its steps.

    A replica with an unknown step time counts with the mean step time.
    """
    known = step_seconds[step_seconds > 0]
    usual = known.mean() if len(known) else 1.0
    speeds: NDArray[np.float64] = 1.0 / np.where(step_seconds > 0, step_seconds, usual)
    speeds /= speeds.sum()
    return speeds


PINGS = 1.0  # seconds between two pings
AGAIN = 0.5  # seconds from the loss of a connection to the next attempt to connect


class ReplicaLink:
    """Connection to the replica at ``address``. ``up`` is True from the welcome message until the connection is lost.

    The link passes messages about requests to ``hear``. It calls ``changed`` when it comes up and when it is lost.
    After a loss the link reconnects by itself.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        secret: ClusterSecret,
        session: str,
        address: str,
        hear: Callable[[ReplicaLink, Sequence[Any]], object],
        changed: Callable[[ReplicaLink], object],
    ) -> None:
        self.address, self.load = address, ReplicaLoad(address)
        self.up, self.draining = False, False
        self.slots = 0
        self.state: EngineState | None = None
        self._context, self._secret, self._session = context, secret, session
        self._hear, self._changed = hear, changed
        self._socket: zmq.asyncio.Socket | None = None
        self._failures = RefusalLog(f"the replica at {address}")
        self._task = asyncio.ensure_future(self._live())

    def send(self, *message: Any) -> None:
        """Send a message. If the replica is gone, the message is lost without an error."""
        if self._socket is not None:
            with suppress(zmq.ZMQError):
                self._socket.send(wire.pack([message]))

    async def close(self) -> None:
        """Close the connection for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        """Connect, and reconnect after each loss."""
        while True:
            try:
                await self._connected()
            except Exception as error:  # any error: a new connection may work
                self._failures.add(f"the connection is lost: {type(error).__name__}: {error}")
            finally:
                self._lost()
            await asyncio.sleep(AGAIN)

    async def _connected(self) -> None:
        """Run one connection until it is lost."""
        socket = self._socket = self._context.socket(zmq.DEALER)
        sockets, tasks = [socket], list[asyncio.Future[Any]]()
        try:
            self._secret.secure(socket, listens=False)
            socket.linger = 0
            monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            sockets.append(monitor)
            socket.connect(self.address)
            self.send("hello", wire.VERSION, self._session)
            tasks += map(asyncio.ensure_future, (self._receive(socket), monitor.recv_multipart(), self._ping()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._socket = None
            socket.disable_monitor()
            for opened in sockets:
                opened.close(linger=0)

    def _lost(self) -> None:
        if self.up:
            self.up = False
            self.load.pages.clear()
            self.load.sent.clear()
            self._changed(self)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            for message in wire.unpack(await socket.recv()):
                kind = message[0]
                if kind == "welcome":
                    _, name, self.slots, pages = message
                    self.load.rename(name)
                    self.load.pages = set(pages)
                    self.up, self.draining = True, False
                    self._changed(self)
                elif kind == "state":
                    _, state, step_seconds, added, evicted = message
                    self.state = EngineState(**state)
                    self.load.pages.update(added)
                    self.load.evict(evicted)
                    self.load.step_seconds = step_seconds or self.load.step_seconds
                else:
                    self._hear(self, message)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PINGS)
            self.send("ping")
