"""Who may ask: keys, and the hosts and origins from which a browser may come.

A page that a user visits can make their browser send requests to a server on the same machine, under a name of its own
that leads there (DNS rebinding). So a server on the loopback address answers only to the machine's own names, and a
request with another origin is refused unless that origin was allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.serve.api import answer, error_form
from pellucid.serve.live import Viewer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/", "/health")
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

    def has_key(self, headers: Headers) -> bool:
        """Whether the request has a key."""
        return _is_one_of(given_key(headers), [*self.keys, *self.admins])

    def viewer(self, headers: Headers) -> Viewer:
        """Whose requests the sender of this one may look at."""
        key = given_key(headers)
        if self.has_key(headers):
            client = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
            return Viewer(key, _is_one_of(key, self.admins), client)
        # No key is needed here. If some may look at all requests, others see none but their own, which nobody can tell.
        return Viewer(secrets.token_hex(8) if self.admins else "")


def given_key(headers: Headers) -> str:
    """The key that a request has, "" if none."""
    given = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return given or headers.get("x-api-key", "")


def _is_one_of(given: str, keys: Sequence[str]) -> bool:
    # Every key is compared, in a time that does not depend on where it differs.
    found = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    return any(found)


def _is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


class Guard:
    """Refuses requests that break the rules, before anything of them is read."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI asks."""
        if scope["type"] == "http":
            refused = self._refused(scope["path"], Headers(scope=scope))
            if refused is not None:
                status, message = refused
                await answer(error_form(scope["path"])(status, message), status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> tuple[int, str] | None:
        rules, host, origin = self._rules, headers.get("host", ""), headers.get("origin")
        try:
            name, origin_host = urlsplit(f"//{host}").hostname or "", urlsplit(origin or "").netloc
        except ValueError:
            return 403, f"host {host[:100]!r} or the origin is no address"
        if rules.hosts and name not in rules.hosts:
            return (
                403,
                f"host {host[:100]!r} is not one of this server: start it with --allow-host {name[:100]}",
            )
        if origin is not None and origin_host != host and origin not in rules.origins:
            return 403, f"origin {origin[:100]!r} may not ask: start the server with --allow-origin"
        if (
            headers.get("sec-fetch-site") == "cross-site"
            and origin not in rules.origins
            and not _is_open(path)
        ):
            # A picture or a link of another page: its requests have no origin.
            return 403, "another site may not ask: start the server with --allow-origin"
        if rules.keys and not _is_open(path) and not rules.has_key(headers):
            return 401, "a key is needed: send it as Authorization: Bearer KEY"
        return None
