"""A connection from an ingress to one replica. It sends and receives messages, and detects the loss of the replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import zmq
import zmq.asyncio

from pellucid.cluster import wire
from pellucid.cluster.routing import ReplicaLoad
from pellucid.cluster.secret import ClusterSecret, RefusalLog
from pellucid.engine.state import EngineState

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
