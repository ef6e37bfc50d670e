"""A model over several machines: each stage runs some of its blocks and caches their keys, values and states.

The last stage leads (``cluster/staged_runner.py``). It has the engine, samples, and tells the other stages the tokens
and sequences of each step. Vectors (T, width) go from stage to stage. Caches are not copied: equal calls have equal
effects on a cache, so the lead sends the calls of its own cache to each stage, in order. All stages then have the same
pages for the same sequences, and each stores the layers of its own blocks there.

The lead reaches the stages over CurveZMQ with the cluster's secret. On this connection it sends the keys of the
channels for commands and vectors (``cluster/channel.py``), and a stage reports a failure.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.channel import TURN, Listener, Receiver, Sender
from pellucid.cluster.lost import StageLost
from pellucid.cluster.secret import ClusterSecret, OnlyIngress
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest
from pellucid.plan.plan import Plan
from pellucid.plan.stages import Border, Stage, cut
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

SECONDS = struct.Struct("<d")
PATIENCE = 60.0  # seconds that the earlier stages may take for a step
NUMBER = 8  # bytes of a step's number, and of each stage's seconds; both precede the vectors


def keyed_socket(context: zmq.Context[Any], kind: int, secret: ClusterSecret, *, listens: bool) -> Any:
    """Return a new socket with the cluster's keys."""
    made = context.socket(kind)
    secret.secure(made, listens=listens)
    made.linger, made.rcvtimeo = 0, int(1000 * TURN)
    return made


def authenticator(context: zmq.Context[Any], secret: ClusterSecret) -> Any:
    """Start and return an authenticator for all listening sockets of a context. It refuses peers without the secret."""
    from zmq.auth.thread import ThreadAuthenticator

    made = ThreadAuthenticator(context)
    made.start()
    made.configure_curve_callback("*", OnlyIngress(secret.ingress.public))
    return made


def stage_of(plan: Plan, number: int, count: int) -> Stage:
    """Return stage ``number`` of a plan that is cut into ``count`` stages.

    Raises:
        InvalidRequest: the number is out of range, or the plan cannot be cut into that many stages.
    """
    if not 0 <= number < count:
        raise InvalidRequest(f"stage={number}: there are {count}, numbered from 0")
    return cut(plan, count)[number]


def runner_of(number: int, count: int) -> Callable[..., ModelRunner]:
    """Return the ``make`` option of ``load`` for a stage before the last one: a function that makes its runner."""

    def make(checkpoint: Any, model: Any, plan: Plan, *more: Any, **options: Any) -> ModelRunner:
        limits, threads, progress, executor = more
        stage = stage_of(plan, number, count)
        return ModelRunner(checkpoint, model, plan, limits, threads, progress, executor, stage, **options)

    return make


class StageServer:
    """Serves a stage before the last one: follows the lead until ``close``. Use it in one thread."""

    def __init__(self, runner: ModelRunner, secret: ClusterSecret, host: str = "127.0.0.1") -> None:
        if runner.stage is None or not runner.stage.sends:
            raise InvalidRequest(
                "the runner has all of the model, or its last stage: give one of a stage before"
            )
        self.runner, self._stage, self._host = runner, runner.stage, host
        self._context: zmq.Context[Any] = zmq.Context()
        self._auth = authenticator(self._context, secret)
        self._control = keyed_socket(self._context, zmq.ROUTER, secret, listens=True)
        self.address = f"tcp://{host}:{self._control.bind_to_random_port(f'tcp://{host}')}"
        self._lead = b""
        self._listener: Listener | None = None
        self._keys: list[bytes] = []
        self._commands: Receiver | None = None
        self._received: Receiver | None = None
        self._next: Sender | None = None
        self._tables: dict[int, BlockTable] = {}
        self._closed = False

    def close(self) -> None:
        """End ``serve`` soon. May be called from any thread."""
        self._closed = True

    def serve(self) -> None:
        """Follow the lead. Call it in a thread of its own."""
        self.runner.executor.placement.bind(0)
        try:
            while not self._closed:
                try:
                    if self._commands is None or self._is_over():
                        self._controlled()
                    else:
                        self._commanded(self._commands)
                except Exception as error:
                    self._fail(error)
        finally:
            self._disconnect()
            self._auth.stop()
            self._context.destroy(linger=0)

    def _commanded(self, commands: Receiver) -> None:
        """Execute commands of the lead until none arrives for a while."""
        while (frame := commands.receive()) is not None:
            for kind, *fields in wire.unpack(frame):
                if kind == "step":
                    self._step(*fields)
                else:
                    self._call(kind, fields)

    def _controlled(self) -> None:
        """Handle a message that starts the session of a lead, if there is one."""
        try:
            sender, frame = self._control.recv_multipart()
        except zmq.Again:
            return
        for kind, *fields in wire.unpack(frame):
            if kind == "hello":
                self._hello(sender, *fields)
            elif kind == "connect" and sender == self._lead:
                self._connect(*fields)

    def _hello(self, sender: bytes, version: int, session: int, limit: int, keys: list[bytes]) -> None:
        """Start the session of a lead, with an empty cache.

        ``keys`` are the keys of the channels for its commands and for vectors that arrive here.
        """
        if version != wire.VERSION:  # the current lead keeps its session
            other = wire.WireError(f"a lead speaks version {version!r}; this stage {wire.VERSION}")
            self._tell(sender, "failed", *wire.error_fields(other))
            return
        self._disconnect()
        self._lead, self._keys = sender, keys[: 2 if self._stage.receives else 1]
        for table in self._tables.values():
            self.runner.cache.kv.truncate(table, 0)
        self._tables.clear()
        self.runner.cache.clear_prefixes(limit)
        self._listener = Listener(self._host)
        counts = [pool.count for pool in self.runner.cache.kv.pools]
        self._tell(sender, "ready", session, counts, self._listener.address)

    def _tell(self, lead: bytes, *message: Any) -> None:
        self._control.send_multipart([lead, wire.pack([message])])

    def _connect(self, following: str, key: bytes) -> None:
        """Connect to the next stage, then accept the lead and the previous stage. All stages are listening."""
        listener, self._listener = self._listener, None
        if listener is None:  # each key is for a single channel
            raise wire.WireError("a lead connects twice")
        try:
            self._next = Sender(following, key, PATIENCE)
            self._commands, *received = listener.accept(self._keys, PATIENCE, self._is_over)
        finally:
            listener.close()
        self._commands.rehearse = self._rehearse
        self._received = received[0] if received else None

    def _disconnect(self) -> None:
        for one in (self._listener, self._commands, self._received, self._next):
            if one is not None:
                one.close()
        self._listener = self._commands = self._received = self._next = None

    def _fail(self, error: Exception) -> None:
        """Report a failure to the lead, and drop its further commands: this cache no longer equals the lead's cache."""
        print(f"a stage: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self._disconnect()
        if self._lead:
            self._tell(self._lead, "failed", *wire.error_fields(error))

    def _is_over(self) -> bool:
        """True if waiting for another stage is pointless: a lead starts a session, or this stage is closed."""
        return self._closed or bool(self._control.poll(0))

    def _table(self, number: int) -> BlockTable:
        return self._tables.setdefault(number, BlockTable())

    def _call(self, kind: str, fields: list[Any]) -> None:
        """Repeat a call of the lead's cache. A call that failed there fails here too."""
        cache, prefixes = self.runner.cache.kv, self.runner.cache.prefixes
        if kind == "allocate":
            number, tokens = fields
            with contextlib.suppress(CacheFull, InvalidRequest):
                cache.allocate(self._table(number), tokens)
        elif kind == "pages":
            for pool, count in zip(cache.pools, fields[0], strict=True):
                pool.reserve(count)
        elif kind == "truncate":
            number, length, left = fields
            _agree(cache.truncate(self._table(number), length), left)
            if not left:
                del self._tables[number]
        elif kind == "fork":
            number, made, length = fields
            self._tables[made] = cache.fork(self._table(number))
            _agree(self._tables[made].length, length)
        elif kind == "find":
            made, ids, most, length = fields
            self._tables[made] = prefixes.find(ids, most)
            _agree(self._tables[made].length, length)
        elif kind == "insert":
            number, ids, grows = fields
            prefixes.insert(self._table(number), ids, grows=grows)
        elif kind == "clear":
            prefixes.clear()
        else:
            raise wire.WireError(f"a call of {kind!r}")

    def _rehearse(self, frame: bytes) -> None:
        """Prepare the last step again, shortly before the next step is expected."""
        for kind, *fields in wire.unpack(frame):
            if kind == "step":
                _, parts = fields
                tables = [self._tables.get(table) for table, _, _ in parts]
                self.runner.rehearse(
                    [Chunk(table, part[1], part[2]) for table, part in zip(tables, parts) if table]
                )

    def _step(self, number: int, parts: Sequence[Sequence[Any]]) -> None:
        """Run a part of a step. Send its vectors and the seconds of each stage so far to the next stage."""
        chunks = [Chunk(self._table(table), tokens, outputs) for table, tokens, outputs in parts]
        before = Received(b"", [])
        began = time.perf_counter()

        def incoming() -> Iterator[NDArray[np.float32]]:
            nonlocal before, began
            if self._received is not None:
                before = await_vectors(
                    self._received, number, chunks, self._stage.receives, self._is_over, self._stage.number
                )
                began = time.perf_counter()
            yield from before.vectors

        def send(vectors: Sequence[NDArray[np.float32]]) -> None:
            assert self._next is not None
            head = number.to_bytes(NUMBER, "little") + before.seconds
            taken = SECONDS.pack(time.perf_counter() - began)
            self._next.send(b"".join([head, taken, *(one.data for one in vectors)]))

        with contextlib.suppress(CacheFull):  # the lead has run out of pages too, and does not wait
            self.runner.forward_stage(chunks, incoming(), send)


@dataclass(frozen=True)
class Received:
    """Data from the previous stage for a step: seconds of each earlier stage, packed, and vectors (rows, width)."""

    seconds: bytes
    vectors: list[NDArray[np.float32]]


def _agree(ours: int, theirs: int) -> None:
    """Raise WireError if the cache differs from the lead's cache."""
    if ours != theirs:
        raise wire.WireError(f"the cache has {ours} tokens of a sequence, that of the lead {theirs}")


def await_vectors(
    channel: Receiver,
    number: int,
    chunks: Sequence[Chunk],
    borders: Sequence[Border],
    is_over: Callable[[], bool],
    before: int,
) -> Received:
    """Wait for the data of step ``number`` over ``borders``; ``before`` is the number of earlier stages.

    Data of earlier steps, which failed, is skipped.

    Raises:
        StageLost: the vectors do not arrive within ``PATIENCE`` seconds, or ``is_over`` returns True.
        WireError: the vectors have another size.
    """
    end = time.monotonic() + PATIENCE
    while True:
        message = channel.receive()
        if message is None:
            if is_over() or time.monotonic() > end:
                raise StageLost(f"the vectors of step {number} have not come from the stage before")
        elif int.from_bytes(message[:NUMBER], "little") == number:
            break
    found, tokens = received_of(message, borders, before), sum(len(chunk.tokens) for chunk in chunks)
    if len(found.vectors[0]) != tokens:
        raise wire.WireError(f"vectors of {len(found.vectors[0])} tokens of {tokens}")
    return found


def received_of(message: bytes, borders: Sequence[Border], before: int) -> Received:
    """Parse a message from the previous stage. Raises WireError if it does not hold whole rows."""
    start = NUMBER * (1 + before)
    rows, rest = divmod(len(message) - start, 4 * sum(border.width for border in borders))
    if rest or rows < 0:
        raise wire.WireError(f"{len(message):,} bytes are no vectors of this model")
    found, at = [], start
    for border in borders:
        count = rows * border.width
        found.append(np.frombuffer(message, np.float32, count, at).reshape(rows, border.width))
        at += 4 * count
    return Received(message[NUMBER:start], found)
