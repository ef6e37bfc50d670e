"""A replica: one model with its engine. It runs the requests of ingresses and sends back each token at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from pellucid.cluster import wire
from pellucid.cluster.known import AskedPart, KnownParts
from pellucid.cluster.refusals import RefusalLog, say
from pellucid.cluster.secret import ClusterSecret, OnlyIngress
from pellucid.cluster.stage_connection import StageLost
from pellucid.cluster.watching import PartWatch
from pellucid.cluster.work import WORKS
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.llm import LLM

TELLS = 0.1  # seconds between two reports of state to ingresses
FORGETS = 60.0  # seconds after which a silent ingress and an ended request are forgotten
LATELY = 5.0  # seconds: an ingress that was heard within them is alive
DOMAIN = b"pellucid"
MOST_NAME = 256  # characters


class Replica:
    """Runs requests of ingresses on a model. Use it in one event loop: ``listen``, then ``serve`` until ``close``."""

    def __init__(
        self,
        llm: LLM,
        secret: ClusterSecret,
        name: str,
        lost: Callable[[Replica], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.llm, self.secret, self.name = llm, secret, name
        self._lost, self._recovering = lost, False
        # Two logs, so that refused strangers do not hide errors of ingresses.
        self._strangers, self._refusals = RefusalLog(f"replica {name}"), RefusalLog(f"replica {name}")
        self._parts: dict[tuple[bytes, int], AskedPart] = {}
        self._known = KnownParts()
        self._outbox: list[tuple[bytes, list[Any]]] = []
        self._lock = threading.Lock()
        """Guards ``_known`` and ``_outbox``."""
        self._pages: list[tuple[int, bool]] = []
        self._heard: dict[bytes, float] = {}
        self._sessions: dict[bytes, str] = {}
        self._closing = asyncio.Event()
        self.last_heard = time.monotonic()
        """Time of the last message from an ingress."""
        self._drains = False

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Start to listen. Return the address: "tcp://127.0.0.1:40123"."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._auth = AsyncioAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback(DOMAIN.decode(), OnlyIngress(self.secret.ingress.public))
        socket = self._socket = self._context.socket(zmq.ROUTER)
        self.secret.secure(socket, listens=True)
        socket.zap_domain, socket.linger = DOMAIN, 500
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        if port:
            socket.bind(f"tcp://{host}:{port}")
        number = port or socket.bind_to_random_port(f"tcp://{host}")
        return f"tcp://{host}:{number}"

    async def serve(self) -> None:
        """Serve ingresses until ``close``."""
        tasks = [asyncio.ensure_future(one) for one in (self._receive(), self._report(), self._refused())]
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            done, _ = await asyncio.wait([closing, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            for one in (closing, *tasks):
                one.cancel()
            for part in self._parts.values():
                part.cancel()
            running = [one.task for one in self._parts.values() if one.task]
            await asyncio.gather(closing, *tasks, *running, return_exceptions=True)
            self.llm.runner.cache.watch_prefixes(None)
            self._socket.disable_monitor()
            self._auth.stop()
            self._context.destroy(linger=500)

    def close(self) -> None:
        """End ``serve``, from its event loop."""
        self._closing.set()

    def drain(self) -> None:
        """Refuse new requests until ``resume``, and hand over the running requests: ingresses send them elsewhere."""
        self._drains = True
        for one in list(self._parts.values()):
            one.cancel()

    def resume(self) -> None:
        """Accept requests again."""
        self._drains = False
        for sender in self._sessions:
            self._welcome(sender)

    @property
    def busy(self) -> bool:
        """True if a request is still running."""
        return bool(self._parts) or self.llm.engine.running > 0

    async def _receive(self) -> None:
        while True:
            sender, *frames = await self._socket.recv_multipart()
            try:
                if len(frames) != 1:
                    raise wire.WireError(f"a message of {len(frames)} frames")
                for message in wire.unpack(frames[0]):
                    self._act(sender, message)
            except Exception as error:
                self._refusals.add(f"a message was refused: {type(error).__name__}: {error}")

    async def _refused(self) -> None:
        """Log connections that fail authentication."""
        while True:
            event = (await self._monitor.recv_multipart())[0]
            kind = int.from_bytes(event[:2], "little")
            why = (
                "its secret is another one"
                if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                else ("it is no ingress of this cluster, or its secret is another one")
            )
            self._strangers.add(f"a connection was refused: {why}")

    def _act(self, sender: bytes, message: Sequence[Any]) -> None:
        kind, *fields = message
        self._heard[sender] = self.last_heard = time.monotonic()
        if kind == "hello":
            version, session = fields
            if version != wire.VERSION:
                raise wire.WireError(f"an ingress speaks version {version!r}; this replica {wire.VERSION}")
            # The same ingress has sent the requests of its lost connection elsewhere by now.
            for other in [one for one, whose in self._sessions.items() if whose == session and one != sender]:
                self._forget(other)
            self._sessions[sender] = session
            if not self._drains:
                self._welcome(sender)
        elif kind == "ping":
            return
        elif kind == "drain":
            self.drain()
        elif kind == "leave":
            self._leave(sender)
        elif kind == "cancel":
            if part := self._parts.get((sender, fields[0])):
                if part.watch:
                    part.watch.end()
                part.cancel()
                self._forget_name(part)
        elif kind == "run":
            number, what, name, body = fields
            if (sender, int(number)) in self._parts:
                raise wire.WireError(f"part {number} runs already")
            run = WORKS.get(what) if isinstance(what, str) else None
            if run is None or not isinstance(body, dict) or not isinstance(name, str):
                raise wire.WireError(f"it asks for {what!r}")
            if len(name) > MOST_NAME:
                raise wire.WireError(f"a name of {len(name):,} characters; the limit is {MOST_NAME}")
            made = AskedPart(sender, int(number), name)
            made.whole = not any(body.get("begun", {}).values())
            self._remember(made)
            made.watch = PartWatch(self.llm, partial(self._tell_now, made))
            work = run(self.llm, body, partial(self._tell, made), made.watch)
            made.task = asyncio.ensure_future(self._guarded(made, work))
            made.task.add_done_callback(partial(self._over, made, work))
        elif kind in ("watch", "more", "unwatch"):
            part = self._parts.get((sender, fields[0]))
            if part and part.watch:
                part.watch.hear(kind, *fields[1:])
        elif kind == "join":
            number, name = fields
            self._join(sender, int(number), name)
        else:
            raise wire.WireError(f"a message of kind {kind!r}")

    def _welcome(self, sender: bytes) -> None:
        """Tell an ingress that it may send requests."""
        pages = self.llm.runner.cache.watch_prefixes(self._page)
        self._send(sender, ["welcome", self.name, self.llm.runner.limits.sequences, pages])

    def _forget_name(self, part: AskedPart) -> None:
        with self._lock:
            self._known.forget(part)

    def _stage_lost(self, error: StageLost) -> None:
        """Refuse new requests, and start the recovery of the stages."""
        if self._lost is not None and not self._recovering:
            say(f"replica {self.name}: {error}")
            self._recovering = True
            self._drains = True
            task = asyncio.ensure_future(self._lost(self))
            task.add_done_callback(self._recovered)

    def _recovered(self, task: asyncio.Future[None]) -> None:
        self._recovering = False
        if not task.cancelled() and (error := task.exception()):
            say(f"replica {self.name}: {type(error).__name__}: {error}")

    def _remember(self, part: AskedPart) -> None:
        """Register a new part by its number, and by its name for some time."""
        self._parts[part.sender, part.number] = part
        with self._lock:
            self._known.add(part)

    def _join(self, sender: bytes, number: int, name: str) -> None:
        """Hand a named part and all its messages to another connection: of another ingress, or of a restarted one."""
        with self._lock:  # new messages follow the messages so far
            part = self._known.get(name)
            if part is None:
                self._put(sender, ["unknown", number])
                return
            if part.ended is None:
                taken = wire.error_fields(InvalidRequest("another connection of this client has taken over"))
                self._put(part.sender, ["error", part.number, *taken])
            self._parts.pop((part.sender, part.number), None)
            part.sender, part.number = sender, number
            if part.ended is None:
                self._parts[sender, number] = part
            for kind, _, *fields in part.messages:
                self._put(sender, [kind, number, *fields])
        if part.watch:  # the new connection starts its own watch
            part.watch.end()

    async def _guarded(self, part: AskedPart, work: Any) -> None:
        """Run one part, and report its end or its error."""
        try:
            if self._drains:
                self._tell(part, "moved")
                return
            await work
        except asyncio.CancelledError:
            raise  # ``_over`` reports it
        except StageLost as error:
            self._forget_name(part)
            self._stage_lost(error)
            self._tell(part, "lost")
        except BaseException as error:
            if not isinstance(error, PellucidError):
                say(f"replica {self.name}: part {part.number}: {type(error).__name__}: {error}")
            self._tell(part, "error", *wire.error_fields(error))

    def _over(self, part: AskedPart, work: Any, task: asyncio.Task[None]) -> None:
        """Clean up after a part that has ended, or was cancelled before it began."""
        if task.cancelled():
            work.close()
            self._forget_name(part)
            if self._drains:
                self._tell(part, "moved")
        part.ended = time.monotonic()
        self._parts.pop((part.sender, part.number), None)

    def _tell(self, part: AskedPart, kind: str, *fields: Any) -> None:
        """Send a message about a part, from any thread, and keep it for a later request by name."""
        with self._lock:
            message = [kind, part.number, *fields]
            self._known.keep(part, message)
            self._put(part.sender, message)

    def _tell_now(self, part: AskedPart, kind: str, *fields: Any) -> None:
        """Send a message about a part to its current ingress, without keeping it."""
        self._send(part.sender, [kind, part.number, *fields])

    def _send(self, to: bytes, message: list[Any]) -> None:
        """Queue a message for the next flush, from any thread. Messages of one step travel together."""
        with self._lock:
            self._put(to, message)

    def _put(self, to: bytes, message: list[Any]) -> None:
        """Put a message in the outbox. The first message there wakes the event loop. Call it under the lock."""
        self._outbox.append((to, message))
        if len(self._outbox) == 1:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            waiting, self._outbox = self._outbox, []
        by: dict[bytes, list[list[Any]]] = {}
        for to, message in waiting:
            by.setdefault(to, []).append(message)
        for to, messages in by.items():
            for frame in wire.frames(messages):
                with suppress(zmq.ZMQError):  # the ingress is gone
                    self._socket.send_multipart([to, frame])

    def _forget(self, sender: bytes) -> None:
        """Cancel the requests of an ingress, and forget it."""
        self._heard.pop(sender, None)
        self._sessions.pop(sender, None)
        for (whose, _), part in list(self._parts.items()):
            if whose == sender:
                part.cancel()

    def _leave(self, sender: bytes) -> None:
        """Handle the planned end of an ingress. The replica closes if no other ingress is alive."""
        self._forget(sender)
        if all(heard < time.monotonic() - LATELY for heard in self._heard.values()):
            self.close()

    def _page(self, name: int, comes: bool) -> None:
        self._pages.append((name, comes))

    async def _report(self) -> None:
        """Report state and prefix-cache changes to all ingresses, and forget silent ingresses."""
        engine = self.llm.engine
        before = (0, 0.0)
        while True:
            await asyncio.sleep(TELLS)
            self._strangers.tell()
            self._refusals.tell()
            changes, self._pages = self._pages, []
            now = engine.steps, engine.step_seconds
            steps, seconds = now[0] - before[0], now[1] - before[1]
            before = now
            final = dict(changes)
            facts = asdict(self.llm.state())
            came = [name for name, comes in final.items() if comes]
            went = [name for name, comes in final.items() if not comes]
            late = time.monotonic() - FORGETS
            with self._lock:
                self._known.forget_ended(late)
            for sender, heard in list(self._heard.items()):
                if heard < late:
                    self._forget(sender)
                else:
                    self._send(sender, ["state", facts, seconds / steps if steps else 0.0, came, went])
