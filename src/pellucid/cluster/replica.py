"""A replica: one model with its engine, which runs what ingresses ask for and sends back each token when it is made."""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret
from pellucid.engine.request import RequestGroup
from pellucid.engine.run import Admission
from pellucid.engine.text_group import MadeToken
from pellucid.errors import PellucidError
from pellucid.llm import LLM
from pellucid.sample.options import Options

TELLS = 0.1  # seconds between two reports of what it has and does
FORGETS = (
    60.0  # seconds after which what nobody asks about any more is ended, and what has ended is forgotten
)
MOST_KNOWN = 512  # parts that are known by name
HEARTBEAT, DEAD = 1000, 3000  # milliseconds
DOMAIN = b"pellucid"
RUNS = ("generate", "embed", "beams")
"""What an ingress may ask for."""


@dataclass(eq=False)
class _AskedPart:
    """What an ingress asked for: whom it is sent to, what was sent, by what ``name`` another may ask for it."""

    sender: bytes
    number: int
    name: str
    messages: list[list[Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    ended: float | None = None

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()


class Replica:
    """Runs requests of ingresses on a model. Use it in one event loop: ``listen``, then ``serve`` until ``close``."""

    def __init__(self, llm: LLM, secret: ClusterSecret, name: str) -> None:
        self.llm, self.secret, self.name = llm, secret, name
        self._parts: dict[tuple[bytes, int], _AskedPart] = {}
        self._known: OrderedDict[str, _AskedPart] = OrderedDict()
        self._outbox: list[tuple[bytes, list[Any]]] = []
        self._outbox_lock = threading.Lock()
        self._pages: list[tuple[int, bool]] = []
        self._heard: dict[bytes, float] = {}
        self._sessions: dict[bytes, str] = {}
        self._closing = asyncio.Event()
        self.last_heard = time.monotonic()
        """When an ingress has last been heard."""
        self._drains = False

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Begin to listen; returns the address: "tcp://127.0.0.1:40123"."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._auth = AsyncioAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback(DOMAIN.decode(), OnlyIngress(self.secret.ingress.public))
        socket = self._socket = self._context.socket(zmq.ROUTER)
        keys = self.secret.replica
        socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, keys.secret, keys.public
        socket.zap_domain = DOMAIN
        socket.sndhwm = socket.rcvhwm = 0  # a request is bounded, and so is what is sent for it
        socket.maxmsgsize, socket.linger = wire.MOST_FRAME, 500
        socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT, DEAD
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
        """Answer until ``close``."""
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
            self.llm.runner.watch_prefixes(None)
            self._socket.disable_monitor()
            self._auth.stop()
            self._context.destroy(linger=500)

    def close(self) -> None:
        """End ``serve``, from its event loop."""
        self._closing.set()

    def drain(self) -> None:
        """Take no new requests, and hand over those that run: ingresses send them elsewhere."""
        self._drains = True
        for one in list(self._parts.values()):
            one.cancel()

    async def _receive(self) -> None:
        while True:
            sender, *frames = await self._socket.recv_multipart()
            try:
                if len(frames) != 1:
                    raise wire.WireError(f"a message of {len(frames)} frames")
                for message in wire.unpack(frames[0]):
                    self._act(sender, message)
            except Exception as error:
                _log(f"replica {self.name}: a message was refused: {type(error).__name__}: {error}")

    async def _refused(self) -> None:
        """Say who was refused before they were heard."""
        while True:
            event = (await self._monitor.recv_multipart())[0]
            kind = int.from_bytes(event[:2], "little")
            why = (
                "its secret is another one"
                if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                else ("it is no ingress of this cluster, or its secret is another one")
            )
            _log(f"replica {self.name}: a connection was refused: {why}")

    def _act(self, sender: bytes, message: Sequence[Any]) -> None:
        kind, *fields = message
        self._heard[sender] = self.last_heard = time.monotonic()
        if kind == "hello":
            version, session = fields
            if version != wire.VERSION:
                raise wire.WireError(f"an ingress speaks version {version!r}; this replica {wire.VERSION}")
            # What the same ingress asked for on a connection that it has lost runs elsewhere by now.
            for other in [one for one, whose in self._sessions.items() if whose == session and one != sender]:
                self._forget(other)
            self._sessions[sender] = session
            pages = self.llm.runner.watch_prefixes(self._page)
            self._send(sender, ["welcome", self.name, self.llm.runner.limits.sequences, pages])
        elif kind == "ping":
            return
        elif kind == "drain":
            self.drain()
        elif kind == "cancel":
            if part := self._parts.get((sender, fields[0])):
                part.cancel()
                self._known.pop(part.name, None)
        elif kind == "run":
            number, what, name, body = fields
            if (sender, int(number)) in self._parts:
                raise wire.WireError(f"part {number} runs already")
            run = getattr(self, f"_run_{what}", None) if what in RUNS else None
            if run is None or not isinstance(body, dict) or not isinstance(name, str):
                raise wire.WireError(f"it asks for {what!r}")
            made = _AskedPart(sender, int(number), name)
            self._remember(made)
            made.task = asyncio.ensure_future(self._guarded(made, run(made, body)))
        elif kind == "join":
            number, name = fields
            self._join(sender, int(number), name)
        else:
            raise wire.WireError(f"a message of kind {kind!r}")

    def _remember(self, part: _AskedPart) -> None:
        """A part begins: it is known by its number, and by its name for some time."""
        self._parts[part.sender, part.number] = part
        if part.name:
            self._known[part.name] = part
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _join(self, sender: bytes, number: int, name: str) -> None:
        """Another ingress, or the same after it was started again, asks for a part by its name: it gets all of it."""
        part = self._known.get(name)
        if part is None:
            self._send(sender, ["unknown", number])
            return
        with self._outbox_lock:  # what is made meanwhile comes after it
            self._parts.pop((part.sender, part.number), None)
            part.sender, part.number = sender, number
            if part.ended is None:
                self._parts[sender, number] = part
            self._outbox += [(sender, [kind, number, *fields]) for kind, _, *fields in part.messages]
        self._wake()

    async def _guarded(self, part: _AskedPart, work: Any) -> None:
        """Run one part; its end is told whatever it is."""
        try:
            if self._drains:
                work.close()
                self._tell(part, "moved")
                return
            await work
        except asyncio.CancelledError:
            self._known.pop(part.name, None)
            if self._drains:
                self._tell(part, "moved")
            raise
        except BaseException as error:
            if not isinstance(error, PellucidError):
                _log(f"replica {self.name}: part {part.number}: {type(error).__name__}: {error}")
            self._tell(part, "error", *wire.error_fields(error))
        finally:
            part.ended = time.monotonic()
            self._parts.pop((part.sender, part.number), None)

    def _tell(self, part: _AskedPart, kind: str, *fields: Any) -> None:
        """Send a message about a part, from any thread, and keep it for those who may ask for it by name."""
        with self._outbox_lock:
            message = [kind, part.number, *fields]
            if part.name:
                part.messages.append(message)
            self._outbox.append((part.sender, message))
            first = len(self._outbox) == 1
        if first:
            self._wake()

    async def _run_generate(self, part: _AskedPart, body: Mapping[str, Any]) -> None:
        """Texts after a prompt: of the chains ``numbers``, each after the tokens that it has ``begun``."""
        groups = await asyncio.to_thread(self._groups, body)
        if any(begun for _, begun, _ in groups):  # who asks by name would not get the tokens before
            self._known.pop(part.name, None)
        try:
            for numbers, begun, group in groups:
                group.start(partial(self._made, part, numbers, begun, group))
            for _, _, group in groups:
                await group.finished()
        finally:
            for _, _, group in groups:
                group.close()
        counts = {
            number: list(pair)
            for numbers, _, group in groups
            for number, pair in zip(numbers, group.speculation)
        }
        self._tell(part, "end", counts)

    def _groups(self, body: Mapping[str, Any]) -> list[tuple[list[int], int, RequestGroup]]:
        """The requests of a body: one for all chains that begin, one for each that goes on."""
        llm, begun = self.llm, {int(number): pairs for number, pairs in body["begun"].items()}
        options = Options.of(**body["options"])
        numbers = [int(one) for one in body["numbers"]]
        chains = dict(zip(numbers, _chains(options, numbers)))
        how = Admission(body["priority"], body["deadline"])
        found = list[tuple[list[int], int, RequestGroup]]()
        fresh = [number for number in numbers if not begun.get(number)]
        if fresh:
            own = [chains[number] for number in fresh]
            found.append((fresh, 0, RequestGroup(llm.engine, llm.inputs, body["prompt"], options, own, how)))
        for number in numbers:
            if pairs := begun.get(number):
                given = dict(body["options"])
                if given.get("max_new_tokens") is not None:
                    given["max_new_tokens"] -= len(pairs)
                left = Options.of(**given)
                before = [(int(token), float(p)) for token, p in pairs]
                group = RequestGroup(
                    llm.engine, llm.inputs, body["prompt"], left, [chains[number]], how, begun=before
                )
                found.append(([number], len(pairs), group))
        return found

    def _made(
        self,
        part: _AskedPart,
        numbers: Sequence[int],
        begun: int,
        group: RequestGroup,
        at: int,
        token: MadeToken,
    ) -> None:
        """A token was made: called in the engine's thread."""
        index = begun + len(group.builders[at].ids) - 1
        if index == begun and at == 0:
            self._tell(part, "facts", *wire.facts_fields(group.facts))
        self._tell(part, "token", numbers[at], index, *wire.token_fields(token))

    async def _run_embed(self, part: _AskedPart, body: Mapping[str, Any]) -> None:
        vectors = await asyncio.to_thread(self.llm.embed_tokens, body["encoded"])
        self._tell(part, "done", wire.array_fields(vectors))

    async def _run_beams(self, part: _AskedPart, body: Mapping[str, Any]) -> None:
        found = await asyncio.to_thread(partial(self.llm.beam_search, body["prompt"], **body["options"]))
        self._tell(part, "done", wire.beams_fields(found))

    def _send(self, to: bytes, message: list[Any]) -> None:
        """Send a message with those of the same step, from any thread."""
        with self._outbox_lock:
            self._outbox.append((to, message))
            first = len(self._outbox) == 1
        if first:
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._outbox_lock:
            waiting, self._outbox = self._outbox, []
        by: dict[bytes, list[list[Any]]] = {}
        for to, message in waiting:
            by.setdefault(to, []).append(message)
        for to, messages in by.items():
            with suppress(zmq.ZMQError):  # the ingress is gone
                self._socket.send_multipart([to, wire.pack(messages)])

    def _forget(self, sender: bytes) -> None:
        """End what an ingress has asked for."""
        self._heard.pop(sender, None)
        self._sessions.pop(sender, None)
        for (whose, _), part in list(self._parts.items()):
            if whose == sender:
                part.cancel()

    def _page(self, name: int, comes: bool) -> None:
        self._pages.append((name, comes))

    async def _report(self) -> None:
        """Tell all ingresses what is here, and end what nobody asks about."""
        engine = self.llm.engine
        before = (0, 0.0)
        while True:
            await asyncio.sleep(TELLS)
            changes, self._pages = self._pages, []
            now = engine.steps, engine.step_seconds
            steps, seconds = now[0] - before[0], now[1] - before[1]
            before = now
            final = dict(changes)
            facts = asdict(self.llm.state())
            came = [name for name, comes in final.items() if comes]
            went = [name for name, comes in final.items() if not comes]
            late = time.monotonic() - FORGETS
            for known in [
                one for one, part in self._known.items() if part.ended is not None and part.ended < late
            ]:
                del self._known[known]
            for sender, heard in list(self._heard.items()):
                if heard < late:
                    self._forget(sender)
                else:
                    self._send(sender, ["state", facts, seconds / steps if steps else 0.0, came, went])


class OnlyIngress:
    """Lets in whoever has the ingress's key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return secrets.compare_digest(key, self._public)


def _chains(options: Options, numbers: Sequence[int]) -> list[Any]:
    chains = options.chain().with_seeds(max(numbers, default=0) + 1)
    return [chains[number] for number in numbers]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
