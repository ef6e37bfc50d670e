"""A replica: a model with its engine. It runs the requests of ingresses, and sends each token as soon as it exists."""

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
from pellucid.cluster.remote_trace import RequestWatch
from pellucid.cluster.replica_tasks import TASKS, ReplicaRequest, RequestLog
from pellucid.cluster.secret import ClusterSecret, OnlyIngress, RefusalLog, say
from pellucid.cluster.stage_server import StageLost
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.llm import LLM

REPORTS = 0.1  # seconds between two reports of state to ingresses
FORGETS = 60.0  # seconds until the replica forgets a silent ingress, or a request that has ended
ALIVE = 5.0  # seconds that an ingress counts as alive after its last message
MAX_NAME = 256  # characters


class Replica:
    """Runs the requests of ingresses on a model. Call ``listen``, then ``serve``, later ``close`` in one event loop.

    ``lost`` recovers the stages of a divided model after the loss of a stage.
    """

    def __init__(
        self,
        llm: LLM,
        secret: ClusterSecret,
        name: str,
        lost: Callable[[Replica], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.llm, self.secret, self.name = llm, secret, name
        self._lost, self._recovering = lost, False
        # Two logs, so that refused connections of strangers do not hide refused messages of ingresses.
        self._strangers, self._refusals = RefusalLog(f"replica {name}"), RefusalLog(f"replica {name}")
        self._requests: dict[tuple[bytes, int], ReplicaRequest] = {}
        self._log = RequestLog()
        self._outbox: list[tuple[bytes, list[Any]]] = []
        self._lock = threading.Lock()
        """Guards ``_log`` and ``_outbox``."""
        self._pages: dict[int, bool] = {}
        """Changes of the prefix cache since the last report: page name → True if added, False if evicted."""
        self._heard: dict[bytes, float] = {}
        self._sessions: dict[bytes, str] = {}
        self._closing = asyncio.Event()
        self.last_heard = time.monotonic()
        """Time of the last message from an ingress."""
        self._drains = False

    async def listen(self, host: str = "127.0.0.1") -> str:
        """Listen at a free port. Return the address, such as "tcp://127.0.0.1:40123"."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._auth = AsyncioAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback("*", OnlyIngress(self.secret.ingress.public))
        socket = self._socket = self._context.socket(zmq.ROUTER)
        self.secret.secure(socket, listens=True)
        socket.linger = 500
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        return f"tcp://{host}:{socket.bind_to_random_port(f'tcp://{host}')}"

    async def serve(self) -> None:
        """Serve ingresses until ``close``."""
        loops = self._receive(), self._report(), self._report_strangers(), self._closing.wait()
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            tasks += [request.task for request in self._requests.values() if request.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.llm.runner.cache.watch_prefixes(None)
            self._socket.disable_monitor()
            self._auth.stop()
            self._context.destroy(linger=500)

    def close(self) -> None:
        """End ``serve``. Call this in the event loop of ``serve``."""
        self._closing.set()

    def drain(self) -> None:
        """Refuse new requests until ``resume``, and cancel the running requests.

        Ingresses send the refused and cancelled requests to other replicas.
        """
        self._drains = True
        for request in list(self._requests.values()):
            request.cancel()

    def resume(self) -> None:
        """Accept requests again."""
        self._drains = False
        for sender in self._sessions:
            self._welcome(sender)

    @property
    def busy(self) -> bool:
        """True if a request is still running."""
        return bool(self._requests) or self.llm.engine.running > 0

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

    async def _report_strangers(self) -> None:
        """Log connections that fail authentication."""
        while True:
            event = (await self._monitor.recv_multipart())[0]
            kind = int.from_bytes(event[:2], "little")
            peer = "" if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH else "is not an ingress of this cluster, or "
            self._strangers.add(f"a connection was refused: the peer {peer}has another secret")

    def _act(self, sender: bytes, message: Sequence[Any]) -> None:
        kind, *fields = message
        self._heard[sender] = self.last_heard = time.monotonic()
        if kind == "hello":
            version, session = fields
            if version != wire.VERSION:
                raise wire.WireError(
                    f"the ingress has version {version!r} of the protocol; this replica has {wire.VERSION}"
                )
            # The ingress has reconnected. When its earlier connection was lost, it sent the requests of this connection
            # to other replicas, so this replica cancels these requests.
            for other, its_session in list(self._sessions.items()):
                if its_session == session and other != sender:
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
            if request := self._requests.get((sender, fields[0])):
                if request.watch:
                    request.watch.end()
                request.cancel()
                self._forget_name(request)
        elif kind == "run":
            self._run(sender, *fields)
        elif kind in ("watch", "more", "unwatch"):
            request = self._requests.get((sender, fields[0]))
            if request and request.watch:
                request.watch.hear(kind, *fields[1:])
        elif kind == "resume":
            number, name = fields
            self._resume(sender, int(number), name)
        else:
            raise wire.WireError(f"a message of kind {kind!r}")

    def _run(self, sender: bytes, number: int, kind: str, name: str, body: dict[str, Any]) -> None:
        """Start a request. Raises WireError if the message is invalid."""
        if (sender, int(number)) in self._requests:
            raise wire.WireError(f"request {number} runs already")
        run = TASKS.get(kind) if isinstance(kind, str) else None
        if run is None or not isinstance(body, dict) or not isinstance(name, str):
            raise wire.WireError(f"a request of kind {kind!r}")
        if len(name) > MAX_NAME:
            raise wire.WireError(f"a name of {len(name):,} characters; the limit is {MAX_NAME}")
        request = ReplicaRequest(sender, int(number), name, complete=not any(body.get("begun", {}).values()))
        self._requests[sender, request.number] = request
        with self._lock:
            self._log.add(request)
        request.watch = RequestWatch(self.llm, partial(self._tell_now, request))
        work = run(self.llm, body, partial(self._tell, request), request.watch)
        request.task = asyncio.ensure_future(self._guarded(request, work))
        request.task.add_done_callback(partial(self._over, request, work))

    def _welcome(self, sender: bytes) -> None:
        """Tell an ingress that this replica accepts requests."""
        pages = self.llm.runner.cache.watch_prefixes(self._page)
        self._send(sender, ["welcome", self.name, self.llm.runner.limits.sequences, pages])

    def _forget_name(self, request: ReplicaRequest) -> None:
        with self._lock:
            self._log.forget(request)

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

    def _resume(self, sender: bytes, number: int, name: str) -> None:
        """Give a named request to the connection ``sender``, and send all messages of the request so far to ``sender``.

        ``sender`` is the connection of another ingress or of a restarted ingress.
        """
        with self._lock:  # the lock keeps the order: the messages so far, then new messages
            request = self._log.get(name)
            if request is None:
                self._put(sender, ["unknown", number])
                return
            if request.ended is None:
                error = InvalidRequest("another connection of this client has taken over the request")
                self._put(request.sender, ["error", request.number, *wire.error_fields(error)])
            self._requests.pop((request.sender, request.number), None)
            request.sender, request.number = sender, number
            if request.ended is None:
                self._requests[sender, number] = request
            for kind, _, *fields in request.messages:
                self._put(sender, [kind, number, *fields])
        if request.watch:  # the new connection sends its own ``watch`` message
            request.watch.end()

    async def _guarded(self, request: ReplicaRequest, work: Any) -> None:
        """Run a request. If it fails, report the error to the ingress."""
        try:
            if self._drains:
                self._tell(request, "moved")
                return
            await work
        except asyncio.CancelledError:
            raise  # ``_over`` reports the cancellation
        except StageLost as error:
            self._forget_name(request)
            self._stage_lost(error)
            self._tell(request, "lost")
        except BaseException as error:
            if not isinstance(error, PellucidError):
                say(f"replica {self.name}: request {request.number}: {type(error).__name__}: {error}")
            self._tell(request, "error", *wire.error_fields(error))

    def _over(self, request: ReplicaRequest, work: Any, task: asyncio.Task[None]) -> None:
        """Clean up after a request that has ended or was cancelled."""
        if task.cancelled():
            work.close()
            self._forget_name(request)
            if self._drains:
                self._tell(request, "moved")
        request.ended = time.monotonic()
        self._requests.pop((request.sender, request.number), None)

    def _tell(self, request: ReplicaRequest, kind: str, *fields: Any) -> None:
        """Send a message about a request, and keep the message for a later ``resume``. Any thread may call this."""
        with self._lock:
            message = [kind, request.number, *fields]
            self._log.keep(request, message)
            self._put(request.sender, message)

    def _tell_now(self, request: ReplicaRequest, kind: str, *fields: Any) -> None:
        """Send a message about a request to its current ingress, but do not keep the message."""
        self._send(request.sender, [kind, request.number, *fields])

    def _send(self, to: bytes, message: list[Any]) -> None:
        """Queue a message for the next flush. Any thread may call this. Messages of one step share a frame."""
        with self._lock:
            self._put(to, message)

    def _put(self, to: bytes, message: list[Any]) -> None:
        """Put a message in the outbox. If the outbox was empty, wake the event loop. The caller holds the lock."""
        self._outbox.append((to, message))
        if len(self._outbox) == 1:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            outbox, self._outbox = self._outbox, []
        by_ingress: dict[bytes, list[list[Any]]] = {}
        for to, message in outbox:
            by_ingress.setdefault(to, []).append(message)
        for to, messages in by_ingress.items():
            for frame in wire.frames(messages):
                with suppress(zmq.ZMQError):  # the ingress is gone
                    self._socket.send_multipart([to, frame])

    def _forget(self, sender: bytes) -> None:
        """Forget an ingress, and cancel its requests."""
        self._heard.pop(sender, None)
        self._sessions.pop(sender, None)
        for request in list(self._requests.values()):
            if request.sender == sender:
                request.cancel()

    def _leave(self, sender: bytes) -> None:
        """Handle the planned end of an ingress. Close the replica if no other ingress is alive."""
        self._forget(sender)
        if all(heard < time.monotonic() - ALIVE for heard in self._heard.values()):
            self.close()

    def _page(self, name: int, comes: bool) -> None:
        self._pages[name] = comes

    async def _report(self) -> None:
        """Report the state and the changes of the prefix cache to all ingresses. Forget silent ingresses."""
        engine = self.llm.engine
        before = (0, 0.0)
        while True:
            await asyncio.sleep(REPORTS)
            self._strangers.tell()
            self._refusals.tell()
            pages, self._pages = self._pages, {}
            now = engine.steps, engine.step_seconds
            steps, seconds = now[0] - before[0], now[1] - before[1]
            before = now
            state = asdict(self.llm.state())
            added = [name for name, comes in pages.items() if comes]
            evicted = [name for name, comes in pages.items() if not comes]
            late = time.monotonic() - FORGETS
            with self._lock:
                self._log.forget_ended(late)
            for sender, heard in list(self._heard.items()):
                if heard < late:
                    self._forget(sender)
                else:
                    self._send(sender, ["state", state, seconds / steps if steps else 0.0, added, evicted])
