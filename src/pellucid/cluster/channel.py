"""One-way connections between stages: TCP that is read by the thread that waits, encrypted.

ZeroMQ passes each message through threads of its own on both sides, which is most of what a hop costs. Here the thread
that needs a message reads it from the socket. The key of a channel is drawn for it, and both sides are told it over
CurveZMQ (``cluster/stages.py``).

A frame is the length of what follows (4 bytes, little-endian), then AES-GCM (NIST SP 800-38D) of the message with the
number of the frame as nonce and its length as associated data. The first frame is empty: it shows that the sender has
the key.
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

HEAD, TAG = 4, 16  # bytes of the length, and those that AES-GCM adds
GREETING = HEAD + TAG
MOST = 1 << 29  # bytes of a frame
TURN = 0.1  # seconds after which who waits looks at what else there is
EARLY, LOOKS = (
    2e-4,
    5e-4,
)  # seconds: before a message is expected, and how long one is looked for without a wait
YIELD = getattr(os, "sched_yield", lambda: None)
SMALL = 1 << 14  # bytes of a message that is kept to rehearse
MOST_SELECTED = 1024  # the numbers of files that ``select`` takes are below
STRANGERS, GREETS = 64, 2.0  # connections that may wait to be known, and seconds of each


def drawn_key() -> bytes:
    """A new key of a channel."""
    return secrets.token_bytes(32)


class _Counter:
    """The numbers of frames, each a nonce of 12 bytes."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> bytes:
        self._next += 1
        return self._next.to_bytes(12, "little")


class Sender:
    """The end of a channel that sends, connected to ``address`` ("127.0.0.1:40123").

    Raises:
        StageLost: nobody listens there; ``send``: the other end is gone, or has taken nothing for ``seconds``.
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
        """Close it; the other end hears of it."""
        self._socket.close()


class Receiver:
    """The end of a channel that receives, of a connection whose first frame has been read."""

    def __init__(self, connection: socket.socket, cipher: AESGCM, nonce: _Counter) -> None:
        self._socket, self._cipher, self._nonce = connection, cipher, nonce
        _prepare(connection, socket.SO_RCVTIMEO, TURN)
        self._buffer, self._filled = bytearray(1 << 16), 0
        self._waits = deque([0.0], maxlen=8)
        self._last: tuple[bytes, bytes, bytes] | None = None
        self.rehearse: Callable[[bytes], object] = lambda message: None
        """Is called with the last message shortly before one is expected, to do what will be done with that.

        A step reads all weights, and leaves nothing else in the processor's caches: what has just been done takes a
        third of the time when it is done again.
        """

    def receive(self) -> bytes | None:
        """The next message; None if none has come within ``TURN``.

        Raises:
            StageLost: the other end is gone, or what has come is no message of it.
        """
        while True:
            if self._filled >= HEAD:
                size = int.from_bytes(self._buffer[:HEAD], "little")
                end = HEAD + size
                if not TAG <= size <= MOST:
                    raise StageLost(f"a stage sent {size:,} bytes at once; the limits are {TAG} and {MOST:,}")
                if self._filled >= end:
                    break
            if self._filled == len(self._buffer):  # grows with what comes, not with what a length claims
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
            raise StageLost("what has come from a stage was changed on its way") from None
        rest = self._filled - end
        self._buffer[:rest] = self._buffer[end : self._filled]
        self._filled = rest
        self._last = (nonce, sealed, head) if size <= SMALL else None
        return message

    def _read(self) -> int:
        """Read what is there into the buffer, or wait for it. Returns how many bytes came; 0: the other end is closed.

        A thread that the system wakes goes on late. So it waits for the system until shortly before the time that the
        shortest of the last waits took, then it looks again and again for a short time, and only then it waits again.
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
                        YIELD()  # another stage may have less cores than it needs
                return self._socket.recv_into(room)
        finally:
            self._waits.append(time.perf_counter() - start)

    def close(self) -> None:
        """Close it; the other end hears of it."""
        self._socket.close()


class Listener:
    """Listens at a port of ``host`` until those who have one of the keys are connected."""

    def __init__(self, host: str) -> None:
        self._refusals = RefusalLog("a stage")
        self._socket = socket.create_server((host, 0), backlog=STRANGERS)
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def accept(
        self, keys: Sequence[bytes], seconds: float, is_over: Callable[[], bool] = lambda: False
    ) -> list[Receiver]:
        """A channel for each of the keys, in their order. Whoever else connects is refused. Listens no more then.

        Raises:
            StageLost: they have not all come within ``seconds``, or ``is_over``.
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
        """A connection comes."""
        try:
            connection, _ = self._socket.accept()
        except OSError:  # it has gone
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
        """More of the first frame of a connection comes."""
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
        self._refusals.add("a connection was refused: it is of none of the other stages")
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
        """Listen no more."""
        self._socket.close()


def _prepare(connection: socket.socket, option: int, seconds: float) -> None:
    """Small frames are sent at once; a call waits for ``seconds`` in the system, which costs no call to poll."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    whole = int(seconds)
    connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int(1e6 * (seconds - whole))))
