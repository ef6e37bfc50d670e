"""Who may ask: keys, and the hosts and origins from which a browser may come.

A page that a user visits can make their browser send requests to a server on the same machine, under a name of its own
that leads there (DNS rebinding). So a server on the loopback address answers only to the machine's own names, and a
request with another origin is refused unless that origin was allowed.

A body must come in time, too: whoever sends one slowly holds what waits for it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from anyio import current_time, fail_after
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.errors import DeadlinePassed
from pellucid.errors.messages import brief
from pellucid.serve.api import answer, error_form
from pellucid.serve.live import Viewer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(\[[0-9a-f:.]{2,64}\]|[a-z0-9._-]{1,255})(:[0-9]{1,5})?", re.IGNORECASE)
"""The header Host: a name or an address, and a port (RFC 9112, section 3.2; without what no server's name has)."""
SLOWEST = 16 << 10  # bytes of a body in a second
OPEN = ("/", "/health", "/ready")
OPEN_FOLDER = "/web/"  # the page's files, which have nothing of a model
"""Paths that need no key."""


@dataclass(frozen=True)
class AccessRules:
    """Requests must have one of the ``keys`` (none: all may ask), and name one of the ``hosts`` (none: any).

    ``origins`` are those of web pages of other servers that may ask. Who has one of the ``admins``, which are keys too,
    may look at all requests.
    """

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    admins: Sequence[str] = ()

    def key(self, headers: Headers) -> str | None:
        """Which of the keys a request has; None if it has none of them."""
        given = given_key(headers)
        # Every key is compared, in a time that does not depend on where it differs.
        found = [key for key in [*self.keys, *self.admins] if _is_same(given, key)]
        return found[0] if found else None

    def viewer(self, headers: Headers) -> Viewer:
        """Whose requests the sender of this one may look at."""
        key = self.key(headers)
        if key is not None:
            client = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
            return Viewer(key, key in self.admins, client)
        # No key is needed here. If some may look at all requests, others see none but their own, which nobody can tell.
        return Viewer(secrets.token_hex(8) if self.admins else "")


def given_key(headers: Headers) -> bytes:
    """The key of a request as bytes, b"" if none: HTTP leaves the encoding of headers open."""
    given = headers.get("authorization", "").strip()
    scheme, _, rest = given.partition(" ")
    if scheme.lower() == "bearer":  # the names of schemes are case-insensitive (RFC 9110, section 11.1)
        given = rest.strip()
    return (given or headers.get("x-api-key", "").strip()).encode("latin-1")


def _is_same(given: bytes, key: str) -> bool:
    """Compare a given key with a known one in UTF-8 and in Latin-1: clients write headers in either."""
    forms = [key.encode(errors="surrogateescape")]
    with suppress(UnicodeEncodeError):
        forms.append(key.encode("latin-1"))
    found = [hmac.compare_digest(given, form) for form in forms]
    return any(found)


def _is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


class Guard:
    """Refuses requests that break the rules, before anything of them is read.

    ``seconds``: how long a body may take to come, beside a second for each ``SLOWEST`` bytes.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, seconds: float) -> None:
        self._app, self._rules, self._seconds = app, rules, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI asks."""
        if scope["type"] == "http":
            refused = _malformed(scope) or self._refused(scope["path"], Headers(scope=scope))
            if refused is not None:
                status, message = refused
                await answer(error_form(scope["path"])(status, message), status)(scope, receive, send)
                return
            receive = _Body(receive, self._seconds).receive
        await self._app(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> tuple[int, str] | None:
        rules, host, origin = self._rules, headers.get("host", ""), headers.get("origin")
        name = "" if not host else HOST.fullmatch(host)[1].strip("[]").lower()  # type: ignore[index]
        try:
            origin_host = urlsplit(origin or "").netloc
        except ValueError:
            return 403, f"origin {brief(origin)} is no address"
        if rules.hosts and name not in rules.hosts:
            return (
                403,
                f"host {brief(host)} is not one of this server: start it with --allow-host {name[:100]}",
            )
        if origin is not None and origin_host != host and origin not in rules.origins:
            return 403, f"origin {brief(origin)} may not ask: start the server with --allow-origin"
        if (
            headers.get("sec-fetch-site") == "cross-site"
            and origin not in rules.origins
            and not _is_open(path)
        ):
            # A picture or a link of another page: its requests have no origin.
            return 403, "another site may not ask: start the server with --allow-origin"
        if rules.keys and not _is_open(path) and rules.key(headers) is None:
            return 401, "a key is needed: send it as Authorization: Bearer KEY"
        return None


def _malformed(scope: Scope) -> tuple[int, str] | None:
    """Status and message for a request without a valid version, target or host; None for others."""
    path, version, hosts = scope["path"], scope["http_version"], Headers(scope=scope).getlist("host")
    if not version.startswith("1."):
        return 400, f"HTTP/{version} is not spoken here: ask in HTTP/1.1"
    if not path.startswith("/"):
        return 400, f"{scope['method']} {brief(path)}: the target must be a path that begins with /"
    if len(hosts) > 1 or any(host and not HOST.fullmatch(host) for host in hosts):
        return 400, f"host {brief(', '.join(hosts))} is no name or address with a port: send the server's"
    return None


class _Body:
    """Receives a request's body, and then whether the client goes."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._left, self._more = receive, seconds, True

    async def receive(self) -> Message:
        """As ASGI asks.

        Raises:
            DeadlinePassed: the body has not come in time.
        """
        if not self._more:
            return await self._receive()
        try:
            with fail_after(self._left) as scope:
                message = await self._receive()
        except TimeoutError:
            raise DeadlinePassed(
                "the body has not come in time: send it faster, or start the server with a longer --receive"
            ) from None
        self._left = scope.deadline - current_time() + len(message.get("body", b"")) / SLOWEST
        self._more = message.get("more_body", False)
        return message
