"""pellucid ps: the models in the memory of a running server."""

from __future__ import annotations

from pellucid.cli import common
from pellucid.cli.command import Command
from pellucid.cli.server_client import DEFAULT_URL, Key, Url, loaded_models
from pellucid.errors.messages import one_line


def command(url: Url = DEFAULT_URL, key: Key = None, json: common.Json = False) -> None:
    """Show the models that a running server has in memory."""
    models = loaded_models(url, key)
    if json:
        common.print_json(models)
        return
    shown = common.table("name", "MB", "parameters", "context", right=("MB", "parameters", "context"))
    for model in models:
        details = model.get("details") or {}
        size, context = model.get("size", 0) / 1e6, model.get("context_length", 0)
        shown.add_row(
            one_line(str(model["name"])),
            f"{size:.0f}",
            str(details.get("parameter_size", "")),
            f"{context:,}",
        )
    common.show(shown)


COMMAND = Command("ps", command)
