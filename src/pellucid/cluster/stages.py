"""A model over several machines: each runs some of its blocks, and keeps what these have in the cache.

The last stage leads: it has the engine, samples, and tells all others of each step which tokens of which sequences run.
Vectors (T, width) go from stage to stage. Caches are not copied: a cache does the same with the same calls, so the lead
sends each stage the calls that its own cache has had, in their order, and all of them have the same pages for the same
sequences, each with its own layers in them.

Long steps are cut into parts, so that a stage works on one while the next works on the one before.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest, PellucidError
from pellucid.plan.plan import Plan
from pellucid.plan.stages import Stage, cut
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.prefix_cache import PrefixCache

PART = 128  # tokens of a part of a long step
PATIENCE = 60.0  # seconds that a step may take in the stages before
BACKLOG = 512  # calls of the cache that are sent at the latest
HEARTBEAT, DEAD = 1000, 3000  # milliseconds


class StageLost(PellucidError):
    """A stage of the model is gone, and with it what the cache had of all sequences: they must be read again."""


def _socket(context: zmq.Context[Any], kind: int, secret: ClusterSecret, *, listens: bool) -> Any:
    """A socket with the cluster's keys."""
    made = context.socket(kind)
    own, other = (secret.replica, None) if listens else (secret.ingress, secret.replica)
    made.curve_secretkey, made.curve_publickey = own.secret, own.public
    if other is None:
        made.curve_server = True
    else:
        made.curve_serverkey = other.public
    made.sndhwm = made.rcvhwm = 0
    made.maxmsgsize, made.linger = -1, 0
    made.heartbeat_ivl, made.heartbeat_timeout = HEARTBEAT, DEAD
    return made


def _authenticated(context: zmq.Context[Any], secret: ClusterSecret) -> Any:
    """Lets in whoever has the secret, to all sockets of a context that listen."""
    from zmq.auth.thread import ThreadAuthenticator

    from pellucid.cluster.replica import OnlyIngress

    made = ThreadAuthenticator(context)
    made.start()
    made.configure_curve_callback("*", OnlyIngress(secret.ingress.public))
    return made


def stage_of(plan: Plan, number: int, count: int) -> Stage:
    """One of the stages of a plan.

    Raises:
        InvalidRequest: there is none of this number, or the plan cannot be cut so often.
    """
    if not 0 <= number < count:
        raise InvalidRequest(f"stage={number}: there are {count}, numbered from 0")
    return cut(plan, count)[number]


class StageServer:
    """A stage before the last one: does what the lead says until ``close``. For one thread."""

    def __init__(self, runner: ModelRunner, secret: ClusterSecret, host: str = "127.0.0.1") -> None:
        if runner.stage is None or not runner.stage.sends:
            raise InvalidRequest(
                "the runner has all of the model, or its last stage: give one of a stage before"
            )
        self.runner, self._secret = runner, secret
        self._context: zmq.Context[Any] = zmq.Context()
        self._auth = _authenticated(self._context, secret)
        self._commands = _socket(self._context, zmq.ROUTER, secret, listens=True)
        self._vectors = _socket(self._context, zmq.PULL, secret, listens=True)
        ports = [one.bind_to_random_port(f"tcp://{host}") for one in (self._commands, self._vectors)]
        self.address, self.vectors_address = (f"tcp://{host}:{port}" for port in ports)
        self._next: Any = None
        self._lead = b""
        self._session = 0
        self._tables: dict[int, BlockTable] = {}
        self._closed = False

    def close(self) -> None:
        """End ``serve``, soon; from any thread."""
        self._closed = True

    def serve(self) -> None:
        """Answer the lead."""
        try:
            while not self._closed:
                if self._commands.poll(200):
                    sender, frame = self._commands.recv_multipart()
                    try:
                        for message in wire.unpack(frame):
                            self._act(sender, message)
                    except Exception as error:
                        print(f"a stage: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                        self._commands.send_multipart(
                            [sender, wire.pack([["failed", *wire.error_fields(error)]])]
                        )
        finally:
            self._auth.stop()
            self._context.destroy(linger=0)

    def _act(self, sender: bytes, message: Sequence[Any]) -> None:
        kind, *fields = message
        if kind == "hello":
            self._hello(sender, *fields)
        elif sender != self._lead:
            raise wire.WireError("another lead has taken over")
        elif kind == "step":
            self._step(*fields)
        else:
            self._call(kind, fields)

    def _hello(self, sender: bytes, version: int, session: int, limit: int, following: str) -> None:
        """A lead begins, with an empty cache."""
        if version != wire.VERSION:
            raise wire.WireError(f"a lead speaks version {version!r}; this stage {wire.VERSION}")
        self._lead, self._session = sender, session
        for table in self._tables.values():
            self.runner.cache.truncate(table, 0)
        self._tables.clear()
        self.runner.begin_again(limit)
        if self._next is not None:
            self._next.close(linger=0)
        self._next = _socket(self._context, zmq.PUSH, self._secret, listens=False)
        self._next.connect(following)
        self._commands.send_multipart([sender, wire.pack([["ready", session]])])

    def _table(self, number: int) -> BlockTable:
        return self._tables.setdefault(number, BlockTable())

    def _call(self, kind: str, fields: list[Any]) -> None:
        """Do what the lead's cache has done. What failed there fails here."""
        cache, prefixes = self.runner.cache, self.runner.prefixes
        if kind == "allocate":
            number, tokens = fields
            with contextlib.suppress(CacheFull, InvalidRequest):
                cache.allocate(self._table(number), tokens)
        elif kind == "truncate":
            number, length = fields
            if not cache.truncate(self._table(number), length):
                del self._tables[number]
        elif kind == "fork":
            number, made = fields
            self._tables[made] = cache.fork(self._table(number))
        elif kind == "find":
            made, ids, most = fields
            self._tables[made] = prefixes.find(ids, most)
        elif kind == "insert":
            number, ids, grows = fields
            prefixes.insert(self._table(number), ids, grows=grows)
        elif kind == "clear":
            prefixes.clear()
        else:
            raise wire.WireError(f"a call of {kind!r}")

    def _step(self, number: int, parts: Sequence[Sequence[Any]]) -> None:
        """Run a part of a step, and send what it makes to the next stage."""
        chunks = [Chunk(self._table(table), tokens, outputs) for table, tokens, outputs in parts]
        assert self.runner.stage is not None
        received: list[NDArray[np.float32]] = []
        if self.runner.stage.receives:
            found = _received(self._vectors, self._session, number, PATIENCE, lambda: self._closed)
            rows = sum(len(chunk.tokens) for chunk in chunks)
            received = _shaped(found, rows, [border.width for border in self.runner.stage.receives])
        try:
            made = self.runner.forward_stage(chunks, received)
        except CacheFull:
            return  # so it was at the lead, which does not wait
        head = wire.pack([["vectors", self._session, number]])
        self._next.send_multipart([head, *(np.ascontiguousarray(one) for one in made)], copy=False)


def _received(socket: Any, session: int, number: int, seconds: float, over: Any) -> list[bytes]:
    """The vectors of a step; those of steps before, which failed, are left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not over():
        if not socket.poll(100):
            continue
        head, *frames = list[bytes](socket.recv_multipart())
        ((kind, *fields),) = wire.unpack(head)
        if kind == "vectors" and fields == [session, number]:
            return frames
    raise StageLost(f"the vectors of step {number} have not come from the stage before")


def _shaped(frames: Sequence[bytes], rows: int, widths: Sequence[int]) -> list[NDArray[np.float32]]:
    """Vectors of frames. Raises WireError if they have other sizes."""
    if [len(frame) for frame in frames] != [4 * rows * width for width in widths]:
        raise wire.WireError(
            f"vectors of {[len(frame) for frame in frames]} bytes for {rows} tokens of {widths}"
        )
    return [np.frombuffer(frame, np.float32).reshape(rows, width) for frame, width in zip(frames, widths)]


class _Told:
    """A cache whose calls are told to the other stages, in their order."""

    def __init__(self, cache: KVCache, runner: StagedRunner) -> None:
        self._cache, self._runner = cache, runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        self._runner.tell("allocate", self._runner.number_of(table), tokens)
        self._cache.allocate(table, tokens, in_place=in_place)

    def truncate(self, table: BlockTable, length: int) -> int:
        if not table.number:  # the others have never heard of it
            return self._cache.truncate(table, length)
        self._runner.tell("truncate", table.number, length)
        left = self._cache.truncate(table, length)
        if not left:
            table.number = 0
        return left

    def fork(self, table: BlockTable) -> BlockTable:
        number, made = self._runner.number_of(table), self._cache.fork(table)
        self._runner.tell("fork", number, self._runner.number_of(made))
        return made


class _ToldPrefixes:
    """A prefix cache whose calls are told to the other stages."""

    def __init__(self, prefixes: PrefixCache, runner: StagedRunner) -> None:
        self._prefixes, self._runner = prefixes, runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prefixes, name)

    @property
    def listener(self) -> Any:
        return self._prefixes.listener

    @listener.setter
    def listener(self, listener: Any) -> None:
        self._prefixes.listener = listener

    def find(self, ids: Sequence[int], most: int) -> BlockTable:
        made = self._prefixes.find(ids, most)
        self._runner.tell("find", self._runner.number_of(made), list(ids), most)
        return made

    def insert(self, table: BlockTable, tokens: Sequence[int], *, grows: bool = False) -> None:
        self._runner.tell("insert", self._runner.number_of(table), list(tokens), grows)
        self._prefixes.insert(table, tokens, grows=grows)

    def clear(self) -> None:
        self._runner.tell("clear")
        self._prefixes.clear()


class StagedRunner(ModelRunner):
    """The last stage, which leads those before it at ``stages``: (address for commands, address for vectors) of each.

    Use it in place of a `ModelRunner`; after a `StageLost`, ``begin_all`` begins again with empty caches.

    Raises:
        StageLost: a stage does not answer.
        InvalidRequest: the plan cannot be cut so often.
    """

    def __init__(
        self,
        checkpoint: Any,
        model: Any,
        plan: Plan,
        *more: Any,
        stages: Sequence[tuple[str, str]],
        secret: ClusterSecret,
        host: str = "127.0.0.1",
    ) -> None:
        count = len(stages) + 1
        limits, threads, progress, executor = more
        super().__init__(
            checkpoint, model, plan, limits, threads, progress, executor, stage_of(plan, count - 1, count)
        )
        self._log: list[list[Any]] = []
        self._telling = True
        self._tables = self._steps = self._session = 0
        self._secret = secret
        self._context: zmq.Context[Any] = zmq.Context()
        self._auth = _authenticated(self._context, secret)
        self._vectors = _socket(self._context, zmq.PULL, secret, listens=True)
        self._vectors_address = f"tcp://{host}:{self._vectors.bind_to_random_port(f'tcp://{host}')}"
        self._commands: list[Any] = []
        self._monitors: list[Any] = []
        self.stages = list(stages)
        self.lost = False
        self._own_cache = self.cache
        self.cache = _Told(self.cache, self)  # type: ignore[assignment]
        self.begin_all(self.stages)

    def begin_all(self, stages: Sequence[tuple[str, str]], seconds: float = PATIENCE) -> None:
        """Begin with stages at these addresses, and with empty caches. No sequence may have pages.

        Raises:
            StageLost: one does not answer.
        """
        with self._lock:
            self._telling = False
            self.drain()
            self._prefixes.clear()
            listener, limit = self._prefixes.listener, self.prefix_limit
            self._prefixes = _ToldPrefixes(PrefixCache(self._own_cache, limit), self)  # type: ignore[assignment]
            self._prefixes.listener = listener
            for one in (*self._commands, *self._monitors):
                one.close(linger=0)
            self._commands, self._monitors, self._log = [], [], []
            self.stages, self._session = list(stages), time.monotonic_ns()
            following = [*(vectors for _, vectors in stages[1:]), self._vectors_address]
            for (address, _), after in zip(stages, following):
                socket = _socket(self._context, zmq.DEALER, self._secret, listens=False)
                self._monitors.append(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
                socket.connect(address)
                socket.send(wire.pack([["hello", wire.VERSION, self._session, self.prefix_limit, after]]))
                self._commands.append(socket)
            end = time.monotonic() + seconds
            for socket, (address, _) in zip(self._commands, stages):
                while True:
                    if not socket.poll(max(0, int(1000 * (end - time.monotonic())))):
                        self.lost = True
                        raise StageLost(f"the stage at {address} does not answer")
                    if ["ready", self._session] in wire.unpack(socket.recv()):
                        break
            self._telling, self.lost = True, False

    def number_of(self, table: BlockTable) -> int:
        """The number by which the others know a block table."""
        if not table.number:
            self._tables += 1
            table.number = self._tables
        return table.number

    def tell(self, *call: Any) -> None:
        """A call of the cache, for the others."""
        if not self._telling:
            return
        self._log.append(list(call))
        if len(self._log) >= BACKLOG:
            self._send([])

    def _send(self, messages: Sequence[Sequence[Any]]) -> None:
        frame = wire.pack([*self._log, *messages])
        self._log = []
        for socket in self._commands:
            socket.send(frame)

    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step, in parts if it is long. As `ModelRunner.forward`.

        Raises:
            StageLost: a stage is gone.
        """
        self._check(chunks)
        if any(chunk.probe for chunk in chunks):
            raise InvalidRequest(
                "the model runs on several machines, whose values cannot be watched from here"
            )
        with self._lock:
            self._refuse_if_closed()
            if self.lost:
                raise StageLost("a stage of the model is gone: ask again later")
            self.drain()
            self._allocate(chunks)  # all pages, before anything is sent
            parts, steps = _parts(chunks), []
            for part in parts:
                self._steps += 1
                steps.append(self._steps)
                told = [[self.number_of(one.table), list(one.tokens), one.outputs] for one in part]
                self._send([["step", self._steps, told]])
            self._telling = False
            try:
                made = [self._run_alone(part, self._incoming(step, part)) for part, step in zip(parts, steps)]
            finally:
                self._telling = True
        if len(made) == 1:
            return made[0]
        return _joined(chunks, parts, made)

    def profile(self, chunks: Sequence[Chunk]) -> NDArray[np.float64]:
        """Refused: most of the operations are elsewhere."""
        raise InvalidRequest("the model runs on several machines: measure it on one")

    def _incoming(self, step: int, chunks: Sequence[Chunk]) -> Iterator[NDArray[np.float32]]:
        """The vectors of a step, when the stage before has made them."""
        assert self.stage is not None
        try:
            found = _received(self._vectors, self._session, step, PATIENCE, self._is_lost)
        except StageLost:
            self.lost = True
            raise
        rows = sum(len(chunk.tokens) for chunk in chunks)
        yield from _shaped(found, rows, [border.width for border in self.stage.receives])

    def _is_lost(self) -> bool:
        """Whether a stage is gone or has failed."""
        for socket, monitor in zip(self._commands, self._monitors):
            if monitor.poll(0):
                return True
            if socket.poll(0):
                for message in wire.unpack(socket.recv()):
                    if message[0] == "failed":
                        print(f"a stage has failed: {message[1:]}", file=sys.stderr, flush=True)
                        return True
        return False

    def close(self) -> None:
        """Stop the threads and the connections. The stages before go on, and wait for another lead."""
        super().close()
        for one in (*self._commands, *self._monitors):
            one.close(linger=0)
        if not self._context.closed:
            self._auth.stop()
            self._context.destroy(linger=0)


def _parts(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The parts of a step of at most ``PART`` tokens each, in order, with the rows that are wanted of their tokens."""
    parts: list[list[Chunk]] = [[]]
    room = PART
    for chunk in chunks:
        first, size = 0, len(chunk.tokens)
        while first < size:
            if not room:
                parts.append([])
                room = PART
            last = min(first + room, size)
            wanted = max(0, last - max(first, size - chunk.outputs))
            parts[-1].append(Chunk(chunk.table, chunk.tokens[first:last], wanted))
            room -= last - first
            first = last
    return parts


def _joined(
    chunks: Sequence[Chunk], parts: Sequence[Sequence[Chunk]], made: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The rows of a step, of those of its parts: in the order of the chunks."""
    by: dict[int, list[NDArray[np.float32]]] = {id(chunk.table): [] for chunk in chunks}
    for part, rows in zip(parts, made):
        at = 0
        for chunk in part:
            by[id(chunk.table)].append(rows[at : at + chunk.outputs])
            at += chunk.outputs
    return np.concatenate([row for chunk in chunks for row in by[id(chunk.table)]])
