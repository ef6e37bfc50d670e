"""Encrypted one-way TCP connections between stages. The thread that waits for a message reads it from the socket.

ZeroMQ passes each message through its own threads on both sides, which is most of the cost of a hop. Here no other
thread is involved. Each channel has a random key; both sides receive it over CurveZMQ (``cluster/stages.py``).

A frame is the length of its ciphertext (4 bytes, little-endian) and the ciphertext: a message encrypted with AES-GCM
(NIST SP 800-38D). The nonce is the number of the frame, and the bytes of the length are the associated data. The first
frame is empty: it proves that the sender has the key.
"""

from __future__ import annotations

import os
import secrets
import select
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pellucid.cluster.lost import StageLost
from pellucid.cluster.refusals import RefusalLog

HEAD, TAG = 4, 16  # bytes of the length field, and of the AES-GCM tag
GREETING = HEAD + TAG
MOST = 1 << 29  # maximum bytes of a frame
TURN = 0.1  # seconds that a read blocks before the caller checks for other events
EARLY, LOOKS = 2e-4, 5e-4  # seconds: the sleep ends this early; then the socket is polled this long
YIELD = getattr(os, "sched_yield", lambda: None)
SMALL = 1 << 14  # bytes: a larger message is not kept for ``rehearse``
MOST_SELECTED = 1024  # file descriptors for ``select`` are below this limit
STRANGERS, GREETS = 64, 2.0  # unauthenticated connections at a time, and seconds for each


def drawn_key() -> bytes:
    """Return a new random key for a channel."""
    return secrets.token_bytes(32)


class _Counter:
    """Counts frames; each number is a nonce of 12 bytes."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> bytes:
        self._next += 1
        return self._next.to_bytes(12, "little")


class Sender:
    """Sending end of a channel, connected to ``address`` ("127.0.0.1:40123").

    Raises:
        StageLost: nobody listens there. In ``send``: the other end is gone, or has read nothing for ``seconds``.
    """

    def __init__(self, address: str, key: bytes, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), seconds)
        except OSError as error:
            raise StageLost(f"the stage at {address} does not answer: {error}") from None
        _prepare(self._socket, socket.SO_SNDTIMEO, seconds)
        self._cipher, self._nonce = AESGCM(key), _Counter()
        try:
            self.send(b"")
        except StageLost:
            self.close()
            raise

    def send(self, message: bytes) -> None:
        """Send a message."""
        head = (len(message) + TAG).to_bytes(HEAD, "little")
        sealed = self._cipher.encrypt(self._nonce(), message, head)
        try:
            self._socket.sendall(head + sealed)
        except OSError as error:
            raise StageLost(f"a stage is gone: {error}") from None

    def close(self) -> None:
        """Close the connection. The other end notices it."""
        self._socket.close()


class Receiver:
    """Receiving end of a channel. The first frame of its connection has been read."""

    def __init__(self, connection: socket.socket, cipher: AESGCM, nonce: _Counter) -> None:
        self._socket, self._cipher, self._nonce = connection, cipher, nonce
        _prepare(connection, socket.SO_RCVTIMEO, TURN)
        self._buffer, self._filled = bytearray(1 << 16), 0
        self._waits = deque([0.0], maxlen=8)
        self._last: tuple[bytes, bytes, bytes] | None = None
        self.rehearse: Callable[[bytes], object] = lambda message: None
        """Called with the last message shortly before the next one is expected, to run the same code on it in advance.

        A step reads all weights, which displaces everything else from the processor's caches. Work that was just done
        takes a third of the time when it is repeated.
        """

    def receive(self) -> bytes | None:
        """Return the next message, or None if none arrives within ``TURN`` seconds.

        Raises:
            StageLost: the other end is gone, or the received frame is invalid.
        """
        while True:
            if self._filled >= HEAD:
                size = int.from_bytes(self._buffer[:HEAD], "little")
                end = HEAD + size
                if not TAG <= size <= MOST:
                    raise StageLost(f"a stage sent {size:,} bytes at once; the limits are {TAG} and {MOST:,}")
                if self._filled >= end:
                    break
            if self._filled == len(self._buffer):  # grows with received bytes, not with a claimed length
                self._buffer += bytes(len(self._buffer))
            try:
                count = self._read()
            except BlockingIOError:
                return None
            except OSError as error:
                raise StageLost(f"a stage is gone: {error}") from None
            if not count:
                raise StageLost("a stage is gone: it has closed its connection")
            self._filled += count
        try:
            nonce, sealed, head = self._nonce(), bytes(self._buffer[HEAD:end]), bytes(self._buffer[:HEAD])
            message = self._cipher.decrypt(nonce, sealed, head)
        except InvalidTag:
            raise StageLost("a frame from a stage failed authentication") from None
        rest = self._filled - end
        self._buffer[:rest] = self._buffer[end : self._filled]
        self._filled = rest
        self._last = (nonce, sealed, head) if size <= SMALL else None
        return message

    def _read(self) -> int:
        """Read available bytes into the buffer, or wait for some. Return their number; 0 if the other end is closed.

        The system wakes a sleeping thread late. So the thread sleeps until shortly before the shortest of the last 8
        waits would end. Then it polls the socket for ``LOOKS`` seconds, and only after that it sleeps again.
        """
        start, until = time.perf_counter(), min(self._waits) - EARLY
        try:
            if 0 < until < TURN and self._socket.fileno() < MOST_SELECTED:
                ready, _, _ = select.select([self._socket], [], [], until)
                if not ready and self._last:
                    self.rehearse(self._cipher.decrypt(*self._last))
            with memoryview(self._buffer) as view, view[self._filled :] as room:
                looking = time.perf_counter()
                while time.perf_counter() - looking < LOOKS:
                    try:
                        return self._socket.recv_into(room, 0, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        YIELD()  # another stage may need this core
                return self._socket.recv_into(room)
        finally:
            self._waits.append(time.perf_counter() - start)

    def close(self) -> None:
        """Close the connection. The other end notices it."""
        self._socket.close()


class Listener:
    """Listens at a free port of ``host`` until a sender has connected with each key."""

    def __init__(self, host: str) -> None:
        self._refusals = RefusalLog("a stage")
        self._socket = socket.create_server((host, 0), backlog=STRANGERS)
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def accept(
        self, keys: Sequence[bytes], seconds: float, is_over: Callable[[], bool] = lambda: False
    ) -> list[Receiver]:
        """Accept one channel for each key, in the order of ``keys``, then stop listening.

        Connections without one of the keys are refused.

        Raises:
            StageLost: not all senders connect within ``seconds``, or ``is_over`` returns True.
        """
        ciphers, found = {key: AESGCM(key) for key in keys}, dict[bytes, Receiver]()
        waiting, end = dict[socket.socket, tuple[bytes, float]](), time.monotonic() + seconds
        with selectors.DefaultSelector() as selector, self._socket:
            self._socket.setblocking(False)
            selector.register(self._socket, selectors.EVENT_READ)
            try:
                while len(found) < len(keys):
                    if is_over() or time.monotonic() > end:
                        raise StageLost(f"{len(keys) - len(found)} of the stages before do not connect")
                    self._refusals.tell()
                    late = time.monotonic() - GREETS
                    for connection in [one for one, (_, came) in waiting.items() if came < late]:
                        self._refuse(connection, selector, waiting)
                    for ready, _ in selector.select(TURN):
                        if ready.fileobj is self._socket:
                            self._meet(selector, waiting)
                        else:
                            self._progress(ready.fileobj, selector, waiting, ciphers, found)  # type: ignore[arg-type]
            except BaseException:
                for one in found.values():
                    one.close()
                raise
            finally:
                for connection in waiting:
                    connection.close()
        return [found[key] for key in keys]

    def _meet(
        self, selector: selectors.BaseSelector, waiting: dict[socket.socket, tuple[bytes, float]]
    ) -> None:
        """Accept a connection, which has not authenticated yet."""
        try:
            connection, _ = self._socket.accept()
        except OSError:  # the peer has closed it
            return
        if len(waiting) == STRANGERS:
            connection.close()
            return
        connection.setblocking(False)
        waiting[connection] = b"", time.monotonic()
        selector.register(connection, selectors.EVENT_READ)

    def _progress(
        self,
        ready: socket.socket,
        selector: selectors.BaseSelector,
        waiting: dict[socket.socket, tuple[bytes, float]],
        ciphers: Mapping[bytes, AESGCM],
        found: dict[bytes, Receiver],
    ) -> None:
        """Read more of a connection's first frame. A whole frame shows which key the sender has, if any."""
        before, came = waiting[ready]
        try:
            more = ready.recv(GREETING - len(before))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        greeting = before + more
        waiting[ready] = greeting, came
        if more and len(greeting) < GREETING:
            return
        for key, cipher in ciphers.items():
            nonce = _Counter()
            if key not in found and greeting[:HEAD] == TAG.to_bytes(HEAD, "little"):
                try:
                    cipher.decrypt(nonce(), greeting[HEAD:], greeting[:HEAD])
                except InvalidTag:
                    continue
                selector.unregister(ready)
                del waiting[ready]
                found[key] = Receiver(ready, cipher, nonce)
                return
        self._refusals.add("a connection was refused: it has none of the stages' keys")
        self._refuse(ready, selector, waiting)

    @staticmethod
    def _refuse(
        connection: socket.socket,
        selector: selectors.BaseSelector,
        waiting: dict[socket.socket, tuple[bytes, float]],
    ) -> None:
        selector.unregister(connection)
        del waiting[connection]
        connection.close()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _prepare(connection: socket.socket, option: int, seconds: float) -> None:
    """Send small frames at once (TCP_NODELAY), and let the kernel time out blocking calls after ``seconds``.

    With a timeout of its own, Python would poll the socket before each call.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    whole = int(seconds)
    connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int(1e6 * (seconds - whole))))
