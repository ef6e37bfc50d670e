"""A model over several machines: each runs some of its blocks, and keeps what these have in the cache.

The last stage leads (``cluster/staged_runner.py``): it has the engine, samples, and tells all others of each step which
tokens of which sequences run.
Vectors (T, width) go from stage to stage. Caches are not copied: a cache does the same with the same calls, so the lead
sends each stage the calls that its own cache has had, in their order, and all of them have the same pages for the same
sequences, each with its own layers in them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.lost import StageLost
from pellucid.cluster.secret import ClusterSecret, OnlyIngress
from pellucid.engine.model_runner import ModelRunner
from pellucid.errors import CacheFull, InvalidRequest
from pellucid.plan.plan import Plan
from pellucid.plan.stages import Stage, cut
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

COPIED = 1 << 16  # bytes up to which copying vectors takes less time than to share them
PATIENCE = 60.0  # seconds that a step may take in the stages before
GIVES_UP = 15.0  # seconds after which a stage that waits for vectors looks what else there is to do
TURN = 100  # milliseconds after which who waits looks at what else there is


def keyed_socket(context: zmq.Context[Any], kind: int, secret: ClusterSecret, *, listens: bool) -> Any:
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
    made.rcvtimeo = TURN
    made.heartbeat_ivl, made.heartbeat_timeout = wire.HEARTBEAT, wire.DEAD
    return made


def authenticator(context: zmq.Context[Any], secret: ClusterSecret) -> Any:
    """Lets in whoever has the secret, to all sockets of a context that listen."""
    from zmq.auth.thread import ThreadAuthenticator

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
        self._auth = authenticator(self._context, secret)
        self._commands = keyed_socket(self._context, zmq.ROUTER, secret, listens=True)
        self._vectors = keyed_socket(self._context, zmq.PULL, secret, listens=True)
        ports = [one.bind_to_random_port(f"tcp://{host}") for one in (self._commands, self._vectors)]
        self.address, self.vectors_address = (f"tcp://{host}:{port}" for port in ports)
        self._next: Any = None
        self._lead = b""
        self._session = 0
        self._tables: dict[int, BlockTable] = {}
        self._closed = self._broken = False
        self._heard = time.monotonic()

    def close(self) -> None:
        """End ``serve``, soon; from any thread."""
        self._closed = True

    def serve(self) -> None:
        """Answer the lead."""
        try:
            while not self._closed:
                try:
                    sender, frame = self._commands.recv_multipart()
                except zmq.Again:
                    continue
                try:
                    for message in wire.unpack(frame):
                        self._act(sender, message)
                except Exception as error:
                    print(f"a stage: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    failed = wire.pack([["failed", *wire.error_fields(error)]])
                    self._commands.send_multipart([sender, failed])
        finally:
            self._auth.stop()
            self._context.destroy(linger=0)

    def _act(self, sender: bytes, message: Sequence[Any]) -> None:
        kind, *fields = message
        self._heard = time.monotonic()
        if kind == "hello":
            self._hello(sender, *fields)
        elif sender != self._lead or self._broken:
            return  # of a lead that has begun again, or will
        else:
            try:
                if kind == "step":
                    self._step(*fields)
                else:
                    self._call(kind, fields)
            except Exception:
                self._broken = True  # its cache is not the lead's any more
                raise

    def _hello(self, sender: bytes, version: int, session: int, limit: int, following: str) -> None:
        """A lead begins, with an empty cache."""
        if version != wire.VERSION:
            raise wire.WireError(f"a lead speaks version {version!r}; this stage {wire.VERSION}")
        self._lead, self._session, self._broken = sender, session, False
        for table in self._tables.values():
            self.runner.cache.truncate(table, 0)
        self._tables.clear()
        self.runner.begin_again(limit)
        if self._next is not None:
            self._next.close(linger=0)
        self._next = keyed_socket(self._context, zmq.PUSH, self._secret, listens=False)
        self._next.connect(following)
        counts = [pool.count for pool in self.runner.cache.pools]
        self._commands.send_multipart([sender, wire.pack([["ready", session, counts]])])

    def _is_over(self) -> bool:
        """Whether waiting is of no use: the lead has more to say only when it does not wait for this stage any more."""
        return self._closed or (time.monotonic() - self._heard > GIVES_UP and bool(self._commands.poll(0)))

    def _table(self, number: int) -> BlockTable:
        return self._tables.setdefault(number, BlockTable())

    def _call(self, kind: str, fields: list[Any]) -> None:
        """Do what the lead's cache has done. What failed there fails here."""
        cache, prefixes = self.runner.cache, self.runner.prefixes
        if kind == "allocate":
            number, tokens = fields
            with contextlib.suppress(CacheFull, InvalidRequest):
                cache.allocate(self._table(number), tokens)
        elif kind == "pages":
            for pool, count in zip(cache.pools, fields[0], strict=True):
                pool.hold_back(count)
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

    def _step(self, number: int, parts: Sequence[Sequence[Any]]) -> None:
        """Run a part of a step, and send what it makes to the next stage."""
        chunks = [Chunk(self._table(table), tokens, outputs) for table, tokens, outputs in parts]
        assert self.runner.stage is not None
        received: list[NDArray[np.float32]] = []
        if self.runner.stage.receives:
            found = await_vectors(self._vectors, self._session, number, PATIENCE, self._is_over)
            rows = sum(len(chunk.tokens) for chunk in chunks)
            received = as_rows(found, rows, [border.width for border in self.runner.stage.receives])
        try:
            made = self.runner.forward_stage(chunks, received)
        except CacheFull:
            return  # so it was at the lead, which does not wait
        head = wire.pack([["vectors", self._session, number]])
        large = sum(one.nbytes for one in made) > COPIED
        self._next.send_multipart([head, *(np.ascontiguousarray(one) for one in made)], copy=not large)


def _agree(ours: int, theirs: int) -> None:
    """Refuse to go on with a cache that is not the lead's."""
    if ours != theirs:
        raise wire.WireError(f"the cache has {ours} tokens of a sequence, that of the lead {theirs}")


def await_vectors(socket: Any, session: int, number: int, seconds: float, over: Any) -> list[bytes]:
    """The vectors of a step; those of steps before, which failed, are left."""
    end = time.monotonic() + seconds
    while True:
        try:
            head, *frames = list[bytes](socket.recv_multipart())
        except zmq.Again:
            if over() or time.monotonic() > end:
                break
            continue
        ((kind, *fields),) = wire.unpack(head)
        if kind == "vectors" and fields == [session, number]:
            return frames
    raise StageLost(f"the vectors of step {number} have not come from the stage before")


def as_rows(frames: Sequence[bytes], rows: int, widths: Sequence[int]) -> list[NDArray[np.float32]]:
    """Vectors of frames. Raises WireError if they have other sizes."""
    if [len(frame) for frame in frames] != [4 * rows * width for width in widths]:
        raise wire.WireError(
            f"vectors of {[len(frame) for frame in frames]} bytes for {rows} tokens of {widths}"
        )
    return [np.frombuffer(frame, np.float32).reshape(rows, width) for frame, width in zip(frames, widths)]
