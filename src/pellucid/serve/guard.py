"""Access rules: API keys, allowed hosts and allowed origins.

A web page can make its visitor's browser send requests to a server on the visitor's machine. In DNS rebinding, a name
of the page's own domain resolves to the loopback address. A server on the loopback address therefore answers only
requests whose host is one of the machine's own names. A request from a page of another origin is refused unless the
origin is allowed.

A request body has a time limit, because a slow sender holds resources.
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

from pellucid.errors import DeadlinePassed, InvalidRequest, brief
from pellucid.serve.api import MOST_BODY, TOO_LONG, error_form, json_response
from pellucid.serve.live_requests import Viewer
from pellucid.util.checks import secret_value

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(\[[0-9a-f:.]{2,64}\]|[a-z0-9._-]{1,255})(:[0-9]{1,5})?", re.IGNORECASE)
"""The header Host: name or address, and port (RFC 9112, section 3.2, without characters that no server's name has)."""
ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\sA-Z/?#@]+")
"""The header Origin: scheme, host and port, without a path (RFC 6454, section 7)."""
SLOWEST = 16 << 10  # lowest rate of a body, in bytes per second
OPEN = ("/", "/health", "/ready")
OPEN_FOLDER = "/web/"  # the page's files, which hold no data of a model
"""Paths that need no key."""


@dataclass(frozen=True)
class AccessRules:
    """A request needs a key of ``keys`` (empty: no key) and a host of ``hosts`` (empty: any host).

    ``origins`` are the origins of other servers' web pages that may send requests. ``admins`` are keys that may also
    see all requests.

    Raises:
        InvalidRequest: a value that no request can send, or an empty key, which every request without a key would send.
    """

    keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    admins: Sequence[str] = ()

    def __post_init__(self) -> None:
        for key in [*self.keys, *self.admins]:
            if not key or key != key.strip():
                # The message does not show the key, because logs keep messages.
                what = "begins or ends with white space, which requests cannot send" if key.strip() else "is empty"
                raise InvalidRequest(f"a key of the server {what}: give another key")
            secret_value("a key of the server", key)
        for host in self.hosts:
            if not HOST.fullmatch(f"[{host}]" if ":" in host else host):  # an IPv6 address, or a name without a port
                raise InvalidRequest(
                    f"allow_host={brief(host)}: must be a name or an address without a port, such as models.example"
                )
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"allow_origin={brief(origin)}: must be a scheme and a host, without a path, such as "
                    "https://page.example"
                )

    def key(self, headers: Headers) -> str | None:
        """The known key of a request; None if it has no known key."""
        given = given_key(headers)
        # Constant time: every key is compared, and a comparison takes the same time wherever the keys differ.
        known = [key for key in [*self.keys, *self.admins] if _is_same(given, key)]
        return known[0] if known else None

    def viewer(self, headers: Headers) -> Viewer:
        """Sender of a request, with the rights of the sender to see requests."""
        key = self.key(headers)
        if key is not None:
            client = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
            return Viewer(key, key in self.admins, client)
        # Senders without a key cannot be told apart. If the server has admin keys, such senders see no requests.
        return Viewer(secrets.token_hex(8) if self.admins else "")


def given_key(headers: Headers) -> bytes:
    """Key of a request; b"" without a key. The key is bytes, because HTTP does not define the encoding of headers."""
    given = headers.get("authorization", "").strip()
    scheme, _, rest = given.partition(" ")
    if scheme.lower() == "bearer":  # the names of schemes are case-insensitive (RFC 9110, section 11.1)
        given = rest.strip()
    return (given or headers.get("x-api-key", "").strip()).encode("latin-1")


def _is_same(given: bytes, key: str) -> bool:
    """Compare a given key with a known key in UTF-8 and in Latin-1, because clients use both encodings for headers."""
    forms = [key.encode(errors="surrogateescape")]
    with suppress(UnicodeEncodeError):
        forms.append(key.encode("latin-1"))
    equal = [hmac.compare_digest(given, form) for form in forms]
    return any(equal)


def _is_open(path: str) -> bool:
    """True if a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


class Guard:
    """ASGI middleware that refuses requests which break the rules, before their body is read.

    The time limit for a body is ``seconds``, plus one second for each ``SLOWEST`` bytes.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, seconds: float) -> None:
        self._app, self._rules, self._seconds = app, rules, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = (
                _malformed(scope)
                or self._refused(scope["path"], Headers(scope=scope))
                # The body of a request that declares a body above the limit is received and dropped.
                or ((413, TOO_LONG) if int(Headers(scope=scope).get("content-length", "0")) > MOST_BODY else None)
            )
            if refused is not None:
                status, message = refused
                await json_response(error_form(scope["path"])(status, message), status)(scope, receive, send)
                return
            receive = _Body(receive, self._seconds).receive
        await self._app(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> tuple[int, str] | None:
        rules, host, origin = self._rules, headers.get("host", ""), headers.get("origin")
        name = "" if not host else HOST.fullmatch(host)[1].strip("[]").lower()  # type: ignore[index]
        try:
            origin_host = urlsplit(origin or "").netloc
        except ValueError:
            return 403, f"origin {brief(origin)} is not a valid address"
        if rules.hosts and name not in map(str.lower, rules.hosts):
            return (
                403,
                f"host {brief(host)} is not a name of this server: start the server with --allow-host {name[:100]}",
            )
        if origin is not None and origin_host != host and origin not in rules.origins:
            return 403, f"origin {brief(origin)} is not allowed: start the server with --allow-origin"
        if headers.get("sec-fetch-site") == "cross-site" and origin not in rules.origins and not _is_open(path):
            # Requests for images and links on another site's page have no header Origin.
            return 403, "requests from other sites are not allowed: start the server with --allow-origin"
        if rules.keys and not _is_open(path) and rules.key(headers) is None:
            return 401, "a key is needed: send it as Authorization: Bearer KEY"
        return None


def _malformed(scope: Scope) -> tuple[int, str] | None:
    """Status and message for a request without a valid version, target or host; None for a valid request."""
    path, version, hosts = scope["path"], scope["http_version"], Headers(scope=scope).getlist("host")
    if not version.startswith("1."):
        return 400, f"HTTP/{version} is not supported: use HTTP/1.1"
    if not path.startswith("/"):
        return 400, f"{scope['method']} {brief(path)}: the target must be a path that begins with /"
    if len(hosts) > 1 or any(host and not HOST.fullmatch(host) for host in hosts):
        return (400, f"host {brief(', '.join(hosts))} is not valid: send one name or address of the server")
    return None


class _Body:
    """Receives a request's body within the time limit. Afterwards it receives disconnect messages."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._left, self._more = receive, seconds, True

    async def receive(self) -> Message:
        """Receive the next ASGI message.

        Raises:
            DeadlinePassed: the body did not arrive in time.
        """
        if not self._more:
            return await self._receive()
        try:
            with fail_after(self._left) as scope:
                message = await self._receive()
        except TimeoutError:
            raise DeadlinePassed("the body did not arrive in time: send it faster, or raise --read-timeout") from None
        self._left = scope.deadline - current_time() + len(message.get("body", b"")) / SLOWEST
        self._more = message.get("more_body", False)
        return message
