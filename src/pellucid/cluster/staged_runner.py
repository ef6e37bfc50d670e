"""The last stage of a model that is divided over several machines. It is the lead (``cluster/stage_server.py``).

Long steps are cut into parts. A stage works on one part while the next stage works on the previous part.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import PATIENCE, StageConnection, StageLost, receive, stage_of, vectors_of
from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest
from pellucid.plan.pipeline_stages import PART
from pellucid.plan.plan import Plan
from pellucid.runtime.batch import Chunk, check_step
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.prefix_cache import PrefixCache

# Cache calls. A log of this length is sent immediately; a shorter log is sent with the next step.
BACKLOG = 512


class ReplicatedCache(CacheManager):
    """The lead's cache. It passes each call that changes pages to ``tell``, in order, under the cache's lock.

    The runner sets ``tell`` to send the calls to the other stages.
    """

    def __init__(self, kv: KVCache, prefix_bytes: int) -> None:
        super().__init__(kv, prefix_bytes)
        self.tell: Callable[..., object] = lambda *call: None
        self._tables = 0

    def number_of(self, table: BlockTable) -> int:
        """Return the number that stands for a block table in messages to the other stages."""
        if not table.number:
            self._tables += 1
            table.number = self._tables
        return table.number

    def start_again(self) -> None:
        """Replace the prefix cache by an empty prefix cache. The caller holds the lock.

        Like the prefix caches of the other stages, the new cache has no record of the order in which pages were used.
        """
        self.drain()
        self.prefixes.clear()
        before = self.prefixes
        self.prefixes = PrefixCache(self.kv, before.limit)
        self.prefixes.listener = before.listener

    def allocate(self, table: BlockTable, tokens: int, *, in_place: bool = True) -> None:
        self.tell("allocate", self.number_of(table), tokens)
        super().allocate(table, tokens, in_place=in_place)

    def _truncate(self, table: BlockTable, length: int) -> int:
        remaining = super()._truncate(table, length)
        if table.number:  # otherwise the other stages do not know the table
            self.tell("truncate", table.number, length, remaining)
            if not remaining:
                table.number = 0
        return remaining

    def _fork(self, table: BlockTable) -> BlockTable:
        number, forked = self.number_of(table), super()._fork(table)
        self.tell("fork", number, self.number_of(forked), forked.length)
        return forked

    def _find(self, ids: Sequence[int], most: int) -> BlockTable:
        table = super()._find(ids, most)
        self.tell("find", self.number_of(table), list(ids), most, table.length)
        return table

    def _insert(self, table: BlockTable, tokens: Sequence[int], *, grows: bool = False) -> None:
        self.tell("insert", self.number_of(table), list(tokens), grows)
        super()._insert(table, tokens, grows=grows)

    def _clear(self) -> None:
        self.tell("clear")
        super()._clear()


class StagedRunner(ModelRunner):
    """Model runner of the last stage, in place of a `ModelRunner`. ``stages`` are the addresses of the earlier stages.

    After a `StageLost`, ``begin_all`` starts a new session with empty caches.

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
        self._secret = secret
        self._context: zmq.Context[Any] = zmq.Context()
        self._connections: list[StageConnection] = []
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
        self._connections = [StageConnection(self._context, self._secret, stage) for stage in self.stages]
        for connection, following in zip(self._connections, [*self.stages[1:], ""]):
            connection.send(["hello", wire.VERSION, limit, following])
        # The first step gets a random number. Step numbers then differ from the numbers of an earlier session, so no
        # stage uses vectors of the earlier session.
        self._steps = secrets.randbits(48)
        counts = [pool.count for pool in self.cache.kv.pools]
        for connection in self._connections:
            _, theirs = receive([connection], end)
            counts = [min(pair) for pair in zip(counts, theirs, strict=True)]
        return counts

    def _disconnect(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections = []

    def tell(self, *call: Any) -> None:
        """Log a cache call for the other stages."""
        if not self._telling:
            return
        self._log.append(list(call))
        if len(self._log) >= BACKLOG:
            self._send([])

    def _send(self, messages: Sequence[Sequence[Any]]) -> None:
        try:
            for connection in self._connections:
                connection.send(*self._log, *messages)
        except StageLost:  # the current step or the next step raises this error
            self.lost = True
        self._log = []

    def forward(self, chunks: Sequence[Chunk], *, reserved: bool = False) -> NDArray[np.float32]:
        """Run one step, as `ModelRunner.forward`. A long step is cut into parts.

        Raises:
            StageLost: a stage is gone.
        """
        check_step(chunks, self.limits)
        if any(chunk.recorder for chunk in chunks):
            raise InvalidRequest("the model runs on several machines, so its values cannot be watched")
        with self.cache.lock:
            self._refuse_if_closed()
            if self.lost:
                raise StageLost("a stage of the model is gone: retry later")
            self.cache.drain()
            parts, steps = _parts(chunks), []
            if not reserved:
                self._allocate(chunks)  # allocate all pages before anything is sent
            for part in parts:
                self._steps += 1
                steps.append(self._steps)
                plain = [
                    [self.cache.number_of(chunk.table), list(chunk.tokens), chunk.outputs, chunk.table.scaled]
                    for chunk in part
                ]
                self._send([["step", self._steps, plain]])
            self._telling = False
            try:
                outputs = [self._run_part(part, step) for part, step in zip(parts, steps)]
            except BaseException as error:
                # All stages run out of pages together. After any other error their caches may differ.
                self.lost = self.lost or not isinstance(error, CacheFull)
                raise
            finally:
                self._telling = True
        return outputs[0] if len(outputs) == 1 else _joined(chunks, parts, outputs)

    def profile(self, chunks: Sequence[Chunk]) -> NDArray[np.float64]:
        """Raise InvalidRequest, because most operations run on other machines."""
        raise InvalidRequest("the model runs on several machines: measure it on one machine")

    def _run_part(self, part: Sequence[Chunk], step: int) -> NDArray[np.float32]:
        """Run a part of a step as soon as its vectors arrive."""
        self._allocate(part)  # its pages are there; a recurrent state needs a place for each part
        output = self._run_alone(part, self._incoming(step, part))
        self.stage_seconds[-1] += time.perf_counter() - self._arrived
        return output

    def _incoming(self, step: int, chunks: Sequence[Chunk]) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of a step once the previous stage has sent them. Drop vectors of steps that failed."""
        end, number = time.monotonic() + PATIENCE, None
        while number != step:
            _, number, seconds, fields = receive(self._connections, end)
        self._arrived = time.perf_counter()
        yield from vectors_of(fields, self._borders, sum(len(chunk.tokens) for chunk in chunks))
        for stage, taken in enumerate(seconds):
            self.stage_seconds[stage] += taken

    def close(self) -> None:
        """Stop the threads and close the connections. The earlier stages continue to run, and wait for another lead."""
        super().close()
        self._disconnect()
        self._context.destroy(linger=0)


def _parts(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Cut a step into parts of at most ``PART`` tokens, in order. A part computes the outputs of its own tokens."""
    parts: list[list[Chunk]] = [[]]
    room = PART
    for chunk in chunks:
        first, size = 0, len(chunk.tokens)
        while first < size:
            if not room:
                parts.append([])
                room = PART
            last = min(first + room, size)
            outputs = max(0, last - max(first, size - chunk.outputs))
            parts[-1].append(Chunk(chunk.table, chunk.tokens[first:last], outputs))
            room -= last - first
            first = last
    return parts


def _joined(
    chunks: Sequence[Chunk], parts: Sequence[Sequence[Chunk]], outputs: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Join the output rows of the parts of a step. The result has the order of the step's chunks."""
    by_table: dict[int, list[NDArray[np.float32]]] = {id(chunk.table): [] for chunk in chunks}
    for part, rows in zip(parts, outputs):
        at = 0
        for chunk in part:
            by_table[id(chunk.table)].append(rows[at : at + chunk.outputs])
            at += chunk.outputs
    return np.concatenate([row for chunk in chunks for row in by_table[id(chunk.table)]])
