"""Options of a server: its address, its access rules, and the limits of connections and times."""

from __future__ import annotations

import os
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
    return typer.Option(help=f"{help}; may be repeated. {more}".strip(), show_default=False)


@dataclass(frozen=True)
class ServingOptions:
    """The options. The environment may hold a key and an admin key, too."""

    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Annotated[Any, common.count("The port to listen at.")] = 8000
    key: Annotated[Texts, repeated("A key that requests must have", "Also PELLUCID_KEY.")] = None
    admin_key: Annotated[
        Texts, repeated("A key that may look at all requests that run", "Also PELLUCID_ADMIN_KEY.")
    ] = None
    allow_host: Annotated[Texts, repeated("A name of this server, as in its address")] = None
    allow_origin: Annotated[Texts, repeated("A web page's origin that may ask")] = None
    grace: Annotated[Any, common.number("Seconds that running requests have to end after SIGTERM.")] = 30.0
    connections: Annotated[Any, common.count("How many connections there may be at a time.")] = 1024
    receive: Annotated[
        Any, common.number("Seconds for the headers of a request to come, and then for its body.")
    ] = 20.0

    def rules(self) -> AccessRules:
        """Access rules: keys, hosts, origins."""
        from pellucid.serve.guard import LOOPBACK, AccessRules

        own = [*(self.key or []), *filter(None, [os.environ.get("PELLUCID_KEY")])]
        all_seeing = [*(self.admin_key or []), *filter(None, [os.environ.get("PELLUCID_ADMIN_KEY")])]
        named = self.allow_host or []
        allowed = [*LOOPBACK, *named] if self.host in LOOPBACK else named
        return AccessRules(own, allowed, self.allow_origin or [], all_seeing)

    def settings(self, *, first: bool, any_model: bool) -> Settings:
        """Settings of the server. ``first``: load the first model now. ``any_model``: it answers to every name.

        Raises:
            InvalidRequest: a number is out of range.
        """
        from pellucid.serve.server import Settings

        return Settings(
            self.host,
            whole("port", self.port, 0, 65535),
            real("grace", self.grace, 0.0, 3600.0),
            first=first,
            any_model=any_model,
            connections=whole("connections", self.connections, 1, 1 << 20),
            receive=real("receive", self.receive, 0.0, 3600.0, above=True),
        )
