"""The last stage of a model over several machines. It leads the earlier stages (``cluster/stages.py``).

Long steps are cut into parts, so that a stage works on one part while the next stage works on the previous part.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.channel import Listener, Receiver, Sender, drawn_key
from pellucid.cluster.lost import StageLost
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stages import (
    PATIENCE,
    SECONDS,
    authenticator,
    await_vectors,
    keyed_socket,
    received_of,
    stage_of,
)
from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest
from pellucid.plan.plan import Plan
from pellucid.plan.stages import PART
from pellucid.runtime.batch import Chunk, check_step
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.prefix_cache import PrefixCache

BACKLOG = 512  # logged cache calls that are sent without waiting for a step


class ReplicatedCache(CacheManager):
    """Tells the other stages of each change of pages, in order. ``tell`` is called under the lock."""

    def __init__(self, kv: KVCache, prefix_bytes: int) -> None:
        super().__init__(kv, prefix_bytes)
        self.tell: Callable[..., object] = lambda *call: None
        self._tables = 0

    def number_of(self, table: BlockTable) -> int:
        """Return the number of a block table in messages to the other stages."""
        if not table.number:
            self._tables += 1
            table.number = self._tables
        return table.number

    def start_again(self) -> None:
        """Empty the prefix cache, and forget the order of use of its pages. The caller holds the lock."""
        self.drain()
        self.prefixes.clear()
        before = self.prefixes
        self.prefixes = PrefixCache(self.kv, before.limit)
        self.prefixes.listener = before.listener

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        """As `CacheManager.allocate`."""
        self.tell("allocate", self.number_of(table), tokens)
        super().allocate(table, tokens, in_place=in_place)

    def _truncate(self, table: BlockTable, length: int) -> int:
        left = super()._truncate(table, length)
        if table.number:  # else the others have never heard of it
            self.tell("truncate", table.number, length, left)
            if not left:
                table.number = 0
        return left

    def _fork(self, table: BlockTable) -> BlockTable:
        number, made = self.number_of(table), super()._fork(table)
        self.tell("fork", number, self.number_of(made), made.length)
        return made

    def _find(self, ids: Sequence[int], most: int) -> BlockTable:
        made = super()._find(ids, most)
        self.tell("find", self.number_of(made), list(ids), most, made.length)
        return made

    def _insert(self, table: BlockTable, tokens: Sequence[int], *, grows: bool = False) -> None:
        self.tell("insert", self.number_of(table), list(tokens), grows)
        super()._insert(table, tokens, grows=grows)

    def _clear(self) -> None:
        self.tell("clear")
        super()._clear()


class StagedRunner(ModelRunner):
    """Model runner of the last stage. It leads the earlier stages, at the addresses ``stages``.

    Use it in place of a `ModelRunner`. After a `StageLost`, ``begin_all`` starts again with empty caches.

    Raises:
        StageLost: a stage does not answer.
        InvalidRequest: the plan cannot be cut into that many stages.
    """

    cache: ReplicatedCache

    def __init__(
        self,
        checkpoint: Any,
        model: Any,
        plan: Plan,
        *more: Any,
        stages: Sequence[str],
        secret: ClusterSecret,
        host: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        count = len(stages) + 1
        limits, threads, progress, executor = more
        stage = stage_of(plan, count - 1, count)
        options["cache_of"] = ReplicatedCache
        super().__init__(checkpoint, model, plan, limits, threads, progress, executor, stage, **options)
        self._borders = stage.receives
        self._log: list[list[Any]] = []
        self._telling = True
        self._steps = 0
        self._secret, self._host = secret, host
        self._context: zmq.Context[Any] = zmq.Context()
        self._auth = authenticator(self._context, secret)
        self._controls: list[Any] = []
        self._monitors: list[Any] = []
        self._commands: list[Sender] = []
        self._vectors: Receiver | None = None
        self.stage_seconds, self._arrived = [0.0] * count, 0.0
        self.stages = list(stages)
        self.lost = False
        self.cache.tell = self.tell
        self.begin_all(self.stages)

    def begin_all(self, stages: Sequence[str], seconds: float = PATIENCE) -> None:
        """Start a session with the stages at these addresses, with empty caches. No sequence may have pages.

        Raises:
            StageLost: a stage does not answer within ``seconds``.
        """
        with self.cache.lock:
            self._telling, self.lost = False, True
            self.cache.start_again()
            self._disconnect()
            self.stages, self._log = list(stages), []
            counts = self._connect(self.cache.prefixes.limit, time.monotonic() + seconds)
            # All stages use the page counts of the smallest stage, so that they run out of pages at the same time.
            for pool, count in zip(self.cache.kv.pools, counts):
                pool.reserve(count)
            self._telling, self.lost = True, False
            self.tell("pages", counts)

    def _connect(self, limit: int, end: float) -> list[int]:
        """Connect to all stages. Return the number of pages that every stage has, for each pool."""
        session, keys = time.monotonic_ns(), [drawn_key() for _ in range(2 * len(self.stages))]
        commands, vectors = keys[: len(self.stages)], keys[len(self.stages) :]
        for n, address in enumerate(self.stages):
            socket = keyed_socket(self._context, zmq.DEALER, self._secret, listens=False)
            self._controls.append(socket)
            self._monitors.append(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
            socket.connect(address)
            hello = ["hello", wire.VERSION, session, limit, [commands[n], *vectors[n - 1 : n]]]
            socket.send(wire.pack([hello]))
        counts, addresses = [pool.count for pool in self.cache.kv.pools], []
        for socket, stage in zip(self._controls, self.stages):
            theirs, address = _ready(socket, stage, session, end)
            counts = [min(pair) for pair in zip(counts, theirs, strict=True)]
            addresses.append(address)
        listener = Listener(self._host)
        try:
            for n, socket in enumerate(self._controls):
                following = [*addresses, listener.address][n + 1]
                socket.send(wire.pack([["connect", following, vectors[n]]]))
                left = max(end - time.monotonic(), 0.1)
                self._commands.append(Sender(addresses[n], commands[n], left))
            left = max(end - time.monotonic(), 0.1)
            (self._vectors,) = listener.accept(vectors[-1:], left, self._is_lost)
            self._vectors.rehearse = self._rehearse
        finally:
            listener.close()
        return counts

    def _disconnect(self) -> None:
        for control in (*self._controls, *self._monitors):
            control.close(linger=0)
        for sender in self._commands:
            sender.close()
        if self._vectors:
            self._vectors.close()
        self._controls, self._monitors, self._commands, self._vectors = [], [], [], None

    def tell(self, *call: Any) -> None:
        """Log a cache call for the other stages."""
        if not self._telling:
            return
        self._log.append(list(call))
        if len(self._log) >= BACKLOG:
            self._send([])

    def _send(self, messages: Sequence[Sequence[Any]]) -> None:
        frame = wire.pack([*self._log, *messages])
        self._log = []
        try:
            for one in self._commands:
                one.send(frame)
        except StageLost as error:  # the current or the next step raises the error
            print(str(error), file=sys.stderr, flush=True)
            self.lost = True

    def forward(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step as `ModelRunner.forward`; a long step is cut into parts.

        Raises:
            StageLost: a stage is gone.
        """
        check_step(chunks, self.limits)
        if any(chunk.probe for chunk in chunks):
            raise InvalidRequest(
                "the model runs on several machines, whose values cannot be watched from here"
            )
        with self.cache.lock:
            self._refuse_if_closed()
            if self.lost:
                raise StageLost("a stage of the model is gone: retry later")
            self.cache.drain()
            parts, steps = _parts(chunks), []
            if len(parts) > 1:
                self._allocate(chunks)  # allocate all pages before anything is sent
            for part in parts:
                self._steps += 1
                steps.append(self._steps)
                told = [[self.cache.number_of(one.table), list(one.tokens), one.outputs] for one in part]
                self._send([["step", self._steps, told]])
            self._telling = False
            try:
                made = [self._run_part(part, step) for part, step in zip(parts, steps)]
            except BaseException as error:
                # All stages run out of pages together. After any other error their caches may differ.
                self.lost = self.lost or not isinstance(error, CacheFull)
                raise
            finally:
                self._telling = True
        if len(made) == 1:
            return made[0]
        return _joined(chunks, parts, made)

    def profile(self, chunks: Sequence[Chunk]) -> NDArray[np.float64]:
        """Refused: most operations run on other machines."""
        raise InvalidRequest("the model runs on several machines: measure it on one")

    def _run_part(self, part: Sequence[Chunk], step: int) -> NDArray[np.float32]:
        """Run a part of a step once its vectors arrive."""
        made = self._run_alone(part, self._incoming(step, part))
        self.stage_seconds[-1] += time.perf_counter() - self._arrived
        return made

    def _incoming(self, step: int, chunks: Sequence[Chunk]) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of a step once the previous stage has computed them."""
        try:
            if self.lost or self._vectors is None:
                raise StageLost("a stage of the model is gone: retry later")
            before = len(self.stages)
            found = await_vectors(self._vectors, step, chunks, self._borders, self._is_lost, before)
            self._arrived = time.perf_counter()
            yield from found.vectors
            for number, (taken,) in enumerate(SECONDS.iter_unpack(found.seconds)):
                self.stage_seconds[number] += taken
        except StageLost:
            self.lost = True
            raise

    def _rehearse(self, message: bytes) -> None:
        """Parse the last vectors again and wake the threads, shortly before new vectors are expected."""
        received_of(message, self._borders, len(self.stages))
        self.wake()

    def _is_lost(self) -> bool:
        """True if a stage is gone or has failed."""
        for socket, monitor in zip(self._controls, self._monitors):
            if monitor.poll(0):
                return True
            if socket.poll(0):
                for message in wire.unpack(socket.recv()):
                    if message[0] == "failed":
                        print(f"a stage has failed: {message[1:]}", file=sys.stderr, flush=True)
                        return True
        return False

    def close(self) -> None:
        """Stop the threads and close the connections. The earlier stages keep running and wait for another lead."""
        super().close()
        self._disconnect()
        if not self._context.closed:
            self._auth.stop()
            self._context.destroy(linger=0)


def _ready(socket: Any, stage: str, session: int, end: float) -> tuple[list[int], str]:
    """Wait until a stage is ready for a new session. Return its page counts and the address where it listens.

    Raises:
        StageLost: the stage does not answer before ``end``.
    """
    while socket.poll(max(0, int(1000 * (end - time.monotonic())))):
        for kind, *fields in wire.unpack(socket.recv()):
            if kind == "ready" and fields[0] == session:
                return fields[1], fields[2]
            if kind == "failed":
                raise StageLost(f"the stage at {stage} does not begin: {fields[-1]}")
    raise StageLost(f"the stage at {stage} does not answer")


def _parts(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Cut a step into parts of at most ``PART`` tokens, in order. Each part has the outputs of its own tokens."""
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
    """Return the output rows of a step in the order of its chunks, from the rows of its parts."""
    by: dict[int, list[NDArray[np.float32]]] = {id(chunk.table): [] for chunk in chunks}
    for part, rows in zip(parts, made):
        at = 0
        for chunk in part:
            by[id(chunk.table)].append(rows[at : at + chunk.outputs])
            at += chunk.outputs
    return np.concatenate([row for chunk in chunks for row in by[id(chunk.table)]])
