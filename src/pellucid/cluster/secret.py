"""Authentication: keys derived from a shared secret (CurveZMQ), and the log of refused connections and messages."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import zmq
from zmq.utils import z85

from pellucid.cluster import wire
from pellucid.errors import InvalidRequest

# Authentication: replicas and ingresses derive their CURVE keys from a shared secret (CurveZMQ, RFC 26 of ZeroMQ).

LEAST = 16  # minimum characters of a secret


@dataclass(frozen=True)
class Keys:
    """A pair of CURVE keys, in Z85."""

    public: bytes
    secret: bytes


@dataclass(frozen=True)
class ClusterSecret:
    """A secret that all parts of a cluster share. A peer without the secret is refused before any message is read.

    Raises:
        InvalidRequest: the secret is too short.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) < LEAST:
            raise InvalidRequest(f"the cluster's secret has {len(self.text)} characters: give at least {LEAST}")

    @classmethod
    def drawn(cls) -> ClusterSecret:
        """Return a new random secret."""
        return cls(secrets.token_urlsafe(32))

    def __repr__(self) -> str:
        return "ClusterSecret(…)"

    @property
    def replica(self) -> Keys:
        """Keys of replicas, which listen."""
        return self._keys(b"replica")

    @property
    def ingress(self) -> Keys:
        """Keys of ingresses, which connect."""
        return self._keys(b"ingress")

    def secure(self, socket: Any, *, listens: bool) -> None:
        """Configure the keys, limits and heartbeats of a ZeroMQ socket.

        A socket that ``listens`` gets the keys of a replica. Other sockets get the keys of an ingress.
        """
        own = self.replica if listens else self.ingress
        socket.curve_secretkey, socket.curve_publickey = own.secret, own.public
        if listens:
            socket.curve_server = True
        else:
            socket.curve_serverkey = self.replica.public
        # Message queues need no limit of their own, because the limit on requests also limits the messages.
        socket.sndhwm = socket.rcvhwm = 0
        socket.maxmsgsize = wire.MAX_FRAME
        socket.heartbeat_ivl, socket.heartbeat_timeout = wire.HEARTBEAT, wire.DEAD

    def _keys(self, who: bytes) -> Keys:
        raw = blake2b(self.text.encode(), digest_size=32, person=b"pellucid." + who[:7]).digest()
        secret = z85.encode(raw)
        return Keys(zmq.curve_public(secret), secret)


class OnlyIngress:
    """ZeroMQ's callback that accepts only peers with the key of an ingress."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return secrets.compare_digest(key, self._public)


# The log of refused connections and messages. It has a few lines per interval, then a count of further refusals.

MOST_LINES, SECONDS = 8, 10.0


def say(line: str) -> None:
    """Write a line to the server's log."""
    print(line, file=sys.stderr, flush=True)


class RefusalLog:
    """Writes up to ``MOST_LINES`` lines in each interval of ``SECONDS``, and counts further refusals.

    Each line begins with ``who``. The limit prevents strangers from filling the log with many connections. Use a log in
    one thread.
    """

    def __init__(self, who: str, say: Callable[[str], object] = say, now: Callable[[], float] = time.monotonic) -> None:
        self._who, self._say, self._now = who, say, now
        self._began, self._lines, self._more = now(), 0, 0
        self.count = 0
        """The number of refusals."""

    def add(self, why: str) -> None:
        """Report a refusal."""
        self.tell()
        self.count += 1
        if self._lines < MOST_LINES:
            self._lines += 1
            self._say(f"{self._who}: {why}")
        else:
            self._more += 1

    def tell(self) -> None:
        """At the end of an interval, report how many refusals in the interval got no line."""
        if self._now() - self._began < SECONDS:
            return
        if self._more:
            self._say(f"{self._who}: {self._more:,} more were refused ({self.count:,} in all)")
        self._began, self._lines, self._more = self._now(), 0, 0
