"""A stage of a model that is divided over several machines, and connections to stages."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.auth.thread import ThreadAuthenticator

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret, OnlyIngress
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest, PellucidError
from pellucid.plan.pipeline_stages import Border, Stage, cut
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

# Connections to the stages of a divided model: CurveZMQ with the cluster's secret.
#
# CurveZMQ (RFC 26 of ZeroMQ) authenticates both sides and encrypts. It ends a connection after a changed, repeated,
# reordered or oversized frame. ZeroMQ would then reconnect, but messages would be lost. A ``StageConnection`` therefore
# treats the loss of its connection as final.

PATIENCE = 60.0  # seconds within which the earlier stages must finish a step


class StageLost(PellucidError):
    """A stage of the model is gone, with its part of the cache. All sequences must be prefilled again."""


class StageConnection:
    """A connection to the stage at ``address`` ("tcp://127.0.0.1:40123")."""

    def __init__(self, context: zmq.Context[Any], secret: ClusterSecret, address: str) -> None:
        self.address, self.socket = address, context.socket(zmq.DEALER)
        secret.secure(self.socket, listens=False)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(address)

    def check(self) -> None:
        """Raise StageLost if the connection was lost."""
        if self.monitor.poll(0):
            raise StageLost(f"the stage at {self.address} is gone")

    def send(self, *messages: Sequence[Any]) -> None:
        """Send messages. Raises StageLost if ZeroMQ no longer accepts messages for this connection."""
        try:
            for frame in wire.frames(messages):
                self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise StageLost(f"the stage at {self.address} is gone") from None

    def close(self) -> None:
        """Close the connection."""
        self.socket.close(linger=0)
        self.monitor.close(linger=0)


def receive(connections: Sequence[StageConnection], end: float) -> list[Any]:
    """Return the next message from any stage of ``connections``.

    Raises:
        StageLost: a connection is lost, a stage reports a failure, or no message arrives before ``end``, a time of
            ``time.monotonic``.
    """
    sockets = [socket for connection in connections for socket in (connection.monitor, connection.socket)]
    ready, _, _ = zmq.select(sockets, [], [], max(0.0, end - time.monotonic()))
    for connection in connections:
        connection.check()
        if connection.socket in ready:
            message: list[Any] = wire.unpack(connection.socket.recv())[0]
            if message[0] == "failed":
                raise StageLost(f"the stage at {connection.address} has failed: {message[-1]}")
            return message
    raise StageLost(f"a stage does not answer: {', '.join(connection.address for connection in connections)}")


def vectors_of(fields: Sequence[Any], borders: Sequence[Border], tokens: int) -> list[NDArray[np.float32]]:
    """Return the vectors that cross from one stage to the next: float32 (tokens, width) for each border.

    A border is a buffer of the plan that one stage writes and the next stage reads. ``fields`` are the fields of a
    ``vectors`` message. Raises WireError.
    """
    vectors = [wire.array_of(buffer) for buffer in fields]
    kinds = [(rows.shape, rows.dtype) for rows in vectors]
    expected = [((tokens, border.width), np.dtype(np.float32)) for border in borders]
    if kinds != expected:
        raise wire.WireError(f"vectors of {kinds}: this step needs {expected}")
    return vectors


# A stage of a model that is divided over several machines.
#
# Each stage runs some of the model's blocks, and caches their keys, values and states. The last stage is the lead
# (``cluster/staged_runner.py``). The lead has the engine, samples the tokens, and tells the other stages the tokens and
# sequences of each step. Each stage sends its output vectors (T, width) to the next stage.
#
# Caches are not copied. The lead sends every call that changes its own cache to the other stages, which repeat the
# calls in the same order. The same calls have the same effects, so all stages have the same pages for the same
# sequences. In these pages each stage stores the layers of its own blocks.
#
# A stage listens at one address. The lead and the previous stage connect to this address. The stage before the lead
# sends its vectors over the lead's connection.

TURN = 100  # milliseconds that a stage waits for a message before it checks for other events


def stage_of(plan: Plan, number: int, count: int) -> Stage:
    """Return stage ``number`` of a plan that is cut into ``count`` stages.

    Raises:
        InvalidRequest: the number is out of range, or the plan cannot be cut into that many stages.
    """
    if not 0 <= number < count:
        raise InvalidRequest(f"stage={number}: there are {count} stages, numbered from 0")
    return cut(plan, count)[number]


def runner_of(number: int, count: int) -> Callable[..., ModelRunner]:
    """Return a function that creates the runner of stage ``number``, for the argument ``make`` of ``load_model``.

    The last stage has a ``StagedRunner`` instead.
    """

    def make(checkpoint: Any, model: Any, plan: Plan, *more: Any, **options: Any) -> ModelRunner:
        limits, threads, progress, executor = more
        stage = stage_of(plan, number, count)
        return ModelRunner(checkpoint, model, plan, limits, threads, progress, executor, stage, **options)

    return make


class StageServer:
    """Serves a stage other than the last: executes the lead's commands until ``close``. Use a server in one thread."""

    def __init__(self, runner: ModelRunner, secret: ClusterSecret, host: str = "127.0.0.1") -> None:
        if runner.stage is None or not runner.stage.sends:
            raise InvalidRequest(
                "the runner runs the whole model, or its last stage: pass the runner of an earlier stage"
            )
        self.runner, self._stage, self._secret = runner, runner.stage, secret
        self._context: zmq.Context[Any] = zmq.Context()
        self._auth = ThreadAuthenticator(self._context)
        self._auth.start()
        self._auth.configure_curve_callback("*", OnlyIngress(secret.ingress.public))
        self._socket = self._context.socket(zmq.ROUTER)
        secret.secure(self._socket, listens=True)
        self._socket.rcvtimeo = TURN
        self.address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
        self._lead = b""
        self._next: StageConnection | None = None
        """Connection to the next stage; None if the lead is the next stage."""
        self._commands = deque[tuple[bytes, list[Any]]]()
        self._vectors = deque[list[Any]]()
        self._tables: dict[int, BlockTable] = {}
        self._closed = False

    def close(self) -> None:
        """Make ``serve`` return soon. Any thread may call this."""
        self._closed = True

    def serve(self) -> None:
        """Execute the commands of the lead until ``close``. Call this in a separate thread."""
        self.runner.executor.placement.bind(0)
        try:
            while not self._closed:
                try:
                    self._receive()
                    while self._commands:
                        self._execute(*self._commands.popleft())
                    if self._next:
                        self._next.check()
                except Exception as error:
                    self._fail(error)
        finally:
            self._end_session()
            self._auth.stop()
            self._context.destroy(linger=0)

    def _receive(self) -> None:
        """Wait up to ``TURN`` for a frame, and queue its messages: vectors, or commands of a lead."""
        try:
            sender, frame = self._socket.recv_multipart()
        except zmq.Again:
            return
        for message in wire.unpack(frame):
            if message[0] == "vectors":
                self._vectors.append(message[1:])
            elif message[0] == "hello" and message[1] != wire.VERSION:  # keep the current lead
                other = wire.WireError(
                    f"the lead has version {message[1]!r} of the protocol; this stage has {wire.VERSION}"
                )
                self._tell(sender, "failed", *wire.error_fields(other))
            else:
                self._commands.append((sender, message))

    def _execute(self, sender: bytes, message: Sequence[Any]) -> None:
        """Execute a command. Ignore commands of a lead whose session has ended."""
        kind, *fields = message
        if kind == "hello":
            self._hello(sender, *fields)
        elif sender == self._lead and kind == "step":
            self._step(*fields)
        elif sender == self._lead:
            self._call(kind, fields)

    def _hello(self, sender: bytes, version: int, limit: int, following: str) -> None:
        """Start the session of a lead, with an empty cache.

        ``limit`` is the size of the prefix cache in bytes. ``following`` is the address of the next stage; "" if the
        lead is the next stage.
        """
        self._end_session()
        self._lead = sender
        self._vectors.clear()
        for table in self._tables.values():
            self.runner.cache.kv.truncate(table, 0)
        self._tables.clear()
        self.runner.cache.clear_prefixes(limit)
        self._next = StageConnection(self._context, self._secret, following) if following else None
        self._tell(sender, "ready", [pool.count for pool in self.runner.cache.kv.pools])

    def _tell(self, lead: bytes, *message: Any) -> None:
        self._socket.send_multipart([lead, wire.pack([message])])

    def _end_session(self) -> None:
        if self._next:
            self._next.close()
        self._lead, self._next = b"", None

    def _fail(self, error: Exception) -> None:
        """Report a failure to the lead. End its session, because this cache may now differ from the lead's cache."""
        print(f"a stage: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if self._lead:
            self._tell(self._lead, "failed", *wire.error_fields(error))
        self._end_session()

    def _table(self, number: int) -> BlockTable:
        return self._tables.setdefault(number, BlockTable())

    def _call(self, kind: str, fields: list[Any]) -> None:
        """Repeat a cache call of the lead on this cache. Ignore an error, because the call also failed on the lead."""
        cache, prefixes = self.runner.cache.kv, self.runner.cache.prefixes
        if kind == "allocate":
            number, tokens = fields
            with contextlib.suppress(CacheFull, InvalidRequest):
                cache.allocate(self._table(number), tokens)
        elif kind == "pages":
            for pool, count in zip(cache.pools, fields[0], strict=True):
                pool.reserve(count)
        elif kind == "truncate":
            number, length, remaining = fields
            _agree(cache.truncate(self._table(number), length), remaining)
            if not remaining:
                del self._tables[number]
        elif kind == "fork":
            number, forked, length = fields
            self._tables[forked] = cache.fork(self._table(number))
            _agree(self._tables[forked].length, length)
        elif kind == "find":
            number, ids, most, length = fields
            self._tables[number] = prefixes.find(ids, most)
            _agree(self._tables[number].length, length)
        elif kind == "insert":
            number, ids, grows = fields
            prefixes.insert(self._table(number), ids, grows=grows)
        elif kind == "clear":
            prefixes.clear()
        else:
            raise wire.WireError(f"unknown call {kind!r}")

    def _step(self, number: int, parts: Sequence[Sequence[Any]]) -> None:
        """Run this stage's part of a step. Send the next stage the vectors and the seconds that each stage took."""
        chunks = list[Chunk]()
        for sequence, tokens, outputs, scaled in parts:
            table = self._table(sequence)
            table.scaled = bool(scaled)
            chunks.append(Chunk(table, tokens, outputs))
        seconds = list[float]()
        began = time.perf_counter()

        def incoming() -> Iterator[NDArray[np.float32]]:
            nonlocal began
            if self._stage.receives:
                earlier, fields = self._await_vectors(number)
                began = time.perf_counter()
                seconds.extend(earlier)
                yield from vectors_of(fields, self._stage.receives, sum(len(chunk.tokens) for chunk in chunks))

        def send(vectors: Sequence[NDArray[np.float32]]) -> None:
            seconds.append(time.perf_counter() - began)
            message = ["vectors", number, seconds, [wire.array_fields(rows) for rows in vectors]]
            if self._next:
                self._next.send(message)
            else:
                self._tell(self._lead, *message)

        # If pages run out, they also run out on the lead, which then does not wait for the vectors.
        with contextlib.suppress(CacheFull):
            self.runner.forward_stage(chunks, incoming(), send)

    def _await_vectors(self, number: int) -> list[Any]:
        """Wait for the vectors of step ``number``.

        Returns the fields of the message: the seconds of the earlier stages, and the vectors. Drops vectors of earlier
        steps that failed.

        Raises:
            StageLost: no vectors arrive within ``PATIENCE``, a lead starts a session, or this stage is closed.
        """
        end = time.monotonic() + PATIENCE
        while True:
            while self._vectors:
                step, *fields = self._vectors.popleft()
                if step == number:
                    return fields
            is_over = self._closed or any(message[0] == "hello" for _, message in self._commands)
            if is_over or time.monotonic() > end:
                raise StageLost(f"the vectors of step {number} did not arrive from the previous stage")
            self._receive()


def _agree(ours: int, theirs: int) -> None:
    """Raise WireError if a sequence has different lengths in this cache and in the lead's cache."""
    if ours != theirs:
        raise wire.WireError(f"this stage's cache has {ours} tokens of a sequence, the lead's cache has {theirs}")
