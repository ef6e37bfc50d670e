"""Runs the server until it is told to stop."""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import reason
from pellucid.serve.app import create_app
from pellucid.serve.guard import AccessRules
from pellucid.serve.model import ServedModel
from pellucid.serve.pool import ModelPool, Pull


@dataclass(frozen=True)
class Settings:
    """Where it listens, and how many seconds (``grace``) running requests have after SIGTERM.

    ``first``: the first model is loaded before anybody is answered. ``any_model``: it answers to every name.
    """

    host: str
    port: int
    grace: float
    first: bool = True
    any_model: bool = False


def serve(
    names: Sequence[str],
    load: Callable[[str], ServedModel],
    limit: int,
    rules: AccessRules,
    settings: Settings,
    ready: Callable[[str], object] = lambda url: None,
    pull: Pull | None = None,
) -> None:
    """Serve the models ``names`` until SIGTERM or Ctrl-C. ``ready`` is called with the address once it can be asked.

    ``pull`` downloads a model for a client, as ``ModelPool`` describes.

    Raises:
        InvalidRequest: the address is taken or not of this machine.
        PellucidError: the first model cannot be loaded.
    """
    listening = listen(settings)
    models = ModelPool(names, load, limit, any_name=settings.any_model, pull=pull)
    if settings.first:
        models.put(names[0], load(names[0]))
    run_app(create_app(models, rules), names, listening, settings, ready)


def run_app(
    app: Starlette,
    names: Sequence[str],
    listening: socket.socket,
    settings: Settings,
    ready: Callable[[str], object] = lambda url: None,
    begin: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Answer those who ask an application at a socket, until SIGTERM or Ctrl-C.

    ``begin`` is awaited first, in the event loop; what it raises is raised here.
    """
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        server_header=False,
    )
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"serving {', '.join(names)} at {url}", file=sys.stderr, flush=True)
    ready(url)  # it listens already: who asks now waits for the loop
    _Server(config, begin).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that begins with something else."""

    def __init__(self, config: uvicorn.Config, begin: Callable[[], Awaitable[object]] | None) -> None:
        super().__init__(config)
        self._begin = begin

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if self._begin:
            await self._begin()
        await super().serve(sockets)


def listen(settings: Settings) -> socket.socket:
    """A socket that listens. Raises InvalidRequest."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
        made.listen(1024)
    except OSError as error:
        made.close()
        raise InvalidRequest(
            f"cannot listen at {settings.host}, port {settings.port}: {reason(error)}: choose another --host or --port"
        ) from error
    return made
