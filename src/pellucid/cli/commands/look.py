"""pellucid look [MODEL]...: opens the page that shows the inside of a running model."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from msgspec.structs import replace

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.commands.serve import all_models, usual_memory
from pellucid.cli.loading import Loading, load

HOST, GRACE = "127.0.0.1", 1.0


def command(
    models: Annotated[
        list[str] | None,
        common.argument("MODEL", "Models, as in `pellucid run`. Default: all models on this machine."),
    ] = None,
    port: Annotated[Any, common.count("Port to listen on; 0: any free port.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    *,
    loading: Loading,
) -> None:
    """Open a page that shows the inside of a running model: tokens, attention, neurons, layers, sampling.

    Starts a server that only this machine can reach. Ctrl-C ends the server. `pellucid serve` has the same page.
    """
    import webbrowser

    from pellucid.serve.guard import LOOPBACK, AccessRules
    from pellucid.serve.model_names import served_names
    from pellucid.serve.server import Settings, serve
    from pellucid.util.checks import whole

    whole("port", port, 0, 65535)
    sources = served_names(models or all_models(pull=False))

    # A model with a shorter context than --context keeps its own context.
    options = replace(loading, cap_context=True)

    def ready(url: str) -> None:
        if browser and not webbrowser.open(url):
            typer.echo(f"no browser can be opened here: open {url}", err=True)

    rules = AccessRules(hosts=LOOPBACK)
    serve(
        list(sources),
        lambda name: load(sources[name], options),
        int(usual_memory()),
        rules,
        Settings(HOST, port, GRACE, first=bool(models)),
        ready,
    )


COMMAND = Command("look", command)
