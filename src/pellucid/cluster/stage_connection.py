"""Connections to the stages of a divided model: CurveZMQ with the cluster's secret.

CurveZMQ (RFC 26 of ZeroMQ) authenticates both sides and encrypts. It ends a connection after a changed, repeated,
reordered or oversized frame. ZeroMQ would then reconnect, but messages would be lost. A ``StageConnection`` therefore
treats the loss of its connection as final.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret
from pellucid.errors import PellucidError
from pellucid.plan.pipeline_stages import Border

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
