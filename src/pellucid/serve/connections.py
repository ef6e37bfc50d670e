"""HTTP connections on top of uvicorn's: a limit on their number, a time limit for headers, and strict parsing.

A connection without a complete request is idle, and takes a file descriptor even then. At the limit, a new connection
replaces the longest idle connection. If no connection is idle, the new connection gets status 503. Clients that connect
and send little therefore cannot block the server or exhaust its descriptors.

A proxy and a server that disagree about the end of a request let a client hide a second request inside the first
(request smuggling). The parser here refuses the forms that programs read differently.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pellucid.serve.api import error_form, json_response

USUAL = 1024  # connections
SPARE = 64  # file descriptors for models, replicas and threads
TOGETHER = 1024  # maximum length of the queue of connections that wait to be accepted
LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")
"""Ends of lines that are not CRLF, and folded lines (RFC 9112, sections 2.2 and 5.2)."""
LOG = logging.getLogger("pellucid.connections")
LOG.setLevel(logging.ERROR)  # malformed requests are answered, not logged


class Connections:
    """The connections of a server: at most ``most`` are open, and at most ``backlog`` wait to be accepted.

    ``seconds`` is the time limit for receiving a request's headers.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.backlog, self.seconds = most, _backlog(most), seconds
        self._open: dict[Connection, None] = {}  # by waiting time, the longest first

    def come(self, connection: Connection) -> None:
        """Add a new connection. At the limit it replaces the longest idle connection, or is refused."""
        idle = next((one for one in self._open if one.is_idle), None)
        self._open[connection] = None
        if len(self._open) <= self.most:
            return
        if idle is not None:
            del self._open[idle]
            idle.refuse(503, self.full)
        elif len(self._open) <= self.most + self.backlog:
            connection.app = self._busy
        else:
            connection.transport.abort()

    def waits(self, connection: Connection) -> None:
        """Move a connection that waits for its next request to the end of the order."""
        if self._open.pop(connection, connection) is None:
            self._open[connection] = None

    def gone(self, connection: Connection) -> None:
        """Remove a lost connection."""
        self._open.pop(connection, None)

    @property
    def full(self) -> str:
        """Error message for a refused connection."""
        return f"the limit of {self.most:,} connections is reached: retry later, or start the server with --connections"

    async def _busy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI application of refused connections: status 503."""
        if scope["type"] == "http":
            body = error_form(scope["path"])(503, self.full)
            await json_response(body, 503, {"Retry-After": "1", "Connection": "close"})(scope, receive, send)


class StrictBuffer(ReceiveBuffer):
    """Received bytes. h11 also accepts lines of a head or a trailer that end with LF, and folded lines."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Extract the lines before an empty line. Called by h11."""
        before = bytes(self)
        lines = super().maybe_extract_lines()
        if lines is not None and LINES.search(before[: len(before) - len(self)]):
            raise h11.LocalProtocolError("a line does not end with CRLF, or is folded")
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """Extract the line with the size of a chunk. Called by h11."""
        line = super().maybe_extract_next_line()
        if line is not None and LINES.search(line):
            raise h11.LocalProtocolError("a line has CR inside")
        return line


class StrictParser(h11.Connection):
    """The server's side of an HTTP connection.

    h11 prefers Transfer-Encoding to Content-Length, and accepts Transfer-Encoding in HTTP/1.0, where proxies ignore it.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._receive_buffer = StrictBuffer()

    def next_event(self) -> Any:
        """Return the next event. Called by uvicorn."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is ambiguous")
        return event


class Connection(H11Protocol):
    """An HTTP connection. Status 408 ends it if a request's headers take longer than ``Connections.seconds``."""

    def __init__(self, connections: Connections, **more: Any) -> None:
        super().__init__(**more)
        self.conn = StrictParser()
        self.logger = LOG
        self._connections = connections
        self._late: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """True if the connection has no request, or the last request is answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit and add the connection. Called by asyncio."""
        super().connection_made(transport)
        self._limit()
        self._connections.come(self)

    def data_received(self, data: bytes) -> None:
        """Parse data; a complete header ends the time limit. Called by asyncio."""
        self._limit()
        super().data_received(data)
        if not self.is_idle:
            self._unlimit()

    def on_response_complete(self) -> None:
        """Wait for the next request. Called by uvicorn."""
        self._connections.waits(self)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the time limit and remove the connection. Called by asyncio."""
        self._unlimit()
        self._connections.gone(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse data that is not HTTP. Called by uvicorn."""
        self.refuse(
            400, "the request is not valid HTTP/1.1, its length is ambiguous, or its headers are too long: correct it"
        )

    def refuse(self, status: int, message: str) -> None:
        """Send an error, unless a response has begun, and close the connection."""
        self._unlimit()
        if self.transport.is_closing():
            return
        # A client of a connection that is merely idle expects no response.
        if self.conn.our_state is h11.SEND_RESPONSE or (
            self.conn.our_state is h11.IDLE and (self.cycle is None or self.conn.their_state is h11.ERROR)
        ):
            self._answer(status, message)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _answer(self, status: int, message: str) -> None:
        body = json.dumps(error_form("/")(status, message)).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            if data := self.conn.send(event):
                self.transport.write(data)

    def _limit(self) -> None:
        """Start the timer for the next request, unless the timer already runs or a request is in progress."""
        if self.is_idle and self._late is None:
            self._late = self.loop.call_later(self._connections.seconds, self._is_late)

    def _unlimit(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        self._late = None
        if self.is_idle:
            seconds = self._connections.seconds
            self.refuse(408, f"no request arrived within {seconds:g} s: send it sooner, or raise --read-timeout")


def _backlog(most: int) -> int:
    """Length of the queue of new connections. They may all be accepted at once, and then each takes a descriptor."""
    return max(1, min(TOGETHER, most // 2))


def possible_connections(asked: int) -> int:
    """Limit of connections: ``asked``, or fewer if the process may not open enough files.

    If necessary, increases the process's limit of open files as far as the system allows.
    """
    if sys.platform == "win32":  # it has no limit of open files
        return asked
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _open_files() + SPARE
    needed = others + asked + _backlog(asked)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return asked
    if hard == resource.RLIM_INFINITY or hard > soft:
        with suppress(ValueError, OSError):
            more = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    if soft >= needed:
        return asked
    most = max(1, (soft - others) * 2 // 3)
    print(
        f"--connections {asked:,}: this process may open {soft:,} files, enough for {most:,} connections: "
        "raise the limit (ulimit -n)",
        file=sys.stderr,
        flush=True,
    )
    return most


def _open_files() -> int:
    """Number of open file descriptors; an estimate where the system does not report it."""
    try:
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    except OSError:
        return SPARE
