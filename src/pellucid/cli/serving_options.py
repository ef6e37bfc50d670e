"""Options of a server: its address, its access rules, and the limits of connections and times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from pellucid.cli import common
from pellucid.util.checks import real, whole

if TYPE_CHECKING:
    from pellucid.serve.guard import AccessRules
    from pellucid.serve.server import Settings


Texts: TypeAlias = list[str] | None


def repeated(help: str, more: str = "") -> Any:
    """An option that may be given several times."""
    return typer.Option(help=f"{help}; may be repeated. {more}".strip())


@dataclass(frozen=True)
class ServingOptions:
    """Options of a server. The environment variables PELLUCID_KEY and PELLUCID_ADMIN_KEY may hold further keys."""

    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")
    ] = "127.0.0.1"
    port: Annotated[Any, common.count("Port to listen on; 0: any free port.")] = 8000
    key: Annotated[Texts, repeated("API key that requests need", "Also PELLUCID_KEY.")] = None
    admin_key: Annotated[
        Texts, repeated("Key that may see the running requests of all clients", "Also PELLUCID_ADMIN_KEY.")
    ] = None
    allow_host: Annotated[Texts, repeated("Host name that requests may use for this server")] = None
    allow_origin: Annotated[Texts, repeated("Origin of web pages that may send requests")] = None
    shutdown_timeout: Annotated[
        Any, common.number("Seconds that running requests may take after SIGTERM.")
    ] = 30.0
    connections: Annotated[Any, common.count("Maximum open connections.")] = 1024
    read_timeout: Annotated[
        Any,
        common.number(
            "Maximum seconds until the headers of a request have arrived, and then until its body has arrived."
        ),
    ] = 20.0

    def rules(self) -> AccessRules:
        """Access rules: keys, hosts, origins.

        Raises:
            InvalidRequest: a key is empty, or a key, host or origin is one that no request can send.
        """
        from pellucid.serve.guard import LOOPBACK, AccessRules

        own = [*(self.key or []), *filter(None, [common.secret("PELLUCID_KEY")])]
        all_seeing = [*(self.admin_key or []), *filter(None, [common.secret("PELLUCID_ADMIN_KEY")])]
        named = self.allow_host or []
        allowed = [*LOOPBACK, *named] if self.host in LOOPBACK else named
        return AccessRules(own, allowed, self.allow_origin or [], all_seeing)

    def settings(self, *, first: bool, any_model: bool) -> Settings:
        """Settings of the server. ``first``: load the first model at the start.

        ``any_model``: the first model also answers requests with an unknown model name.

        Raises:
            InvalidRequest: a number is out of range.
        """
        from pellucid.serve.server import Settings

        return Settings(
            self.host,
            whole("port", self.port, 0, 65535),
            real("shutdown_timeout", self.shutdown_timeout, 0.0, 3600.0),
            first=first,
            any_model=any_model,
            connections=whole("connections", self.connections, 1, 1 << 20),
            read_timeout=real("read_timeout", self.read_timeout, 0.0, 3600.0, above=True),
        )
