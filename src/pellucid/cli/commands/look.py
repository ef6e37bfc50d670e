"""pellucid look [MODEL]...: opens the page that shows the inside of a running model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.commands.serve import all_models, usual_memory
from pellucid.cli.load_options import LoadOptions

HOST, GRACE = "127.0.0.1", 1.0


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="The models; as for run. By default, all on this machine.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    port: Annotated[Any, common.count("The port to listen at; 0 for a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    *,
    loading: LoadOptions,
) -> None:
    """Open a page that shows the inside of a running model: tokens, attention, neurons, layers, sampling.

    Starts a server that only this machine can reach. Ctrl-C ends it. pellucid serve has the same page.
    """
    import webbrowser

    from pellucid.serve.guard import LOOPBACK, AccessRules
    from pellucid.serve.model_names import served_names
    from pellucid.serve.server import Settings, serve
    from pellucid.util.checks import whole

    whole("port", port, 0, 65535)
    sources = served_names(models or all_models(pull=False))

    def load(name: str) -> Any:
        return loading.load(sources[name], cap_context=True, before=lambda inputs: None)

    def ready(url: str) -> None:
        if browser and not webbrowser.open(url):
            typer.echo(f"no browser can be opened here: open {url}", err=True)

    rules = AccessRules(hosts=LOOPBACK)
    serve(
        list(sources),
        load,
        int(usual_memory()),
        rules,
        Settings(HOST, port, GRACE, first=bool(models)),
        ready,
    )


COMMAND = Command("look", command)
