"""pellucid rm MODEL...: removes models from the store."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command


def command(
    models: Annotated[list[str] | None, common.argument("MODEL", "Names that `pellucid list` shows.")] = None,
    all_: Annotated[bool, common.flag("--all", "Remove all models that `pellucid pull` stored.")] = False,
) -> None:
    """Remove models from the store. If a model is not in the store, none is removed."""
    from pellucid.errors import InvalidRequest
    from pellucid.weights.store import installed, remove, stored

    if bool(models) == all_:
        raise InvalidRequest("rm takes names of models, or --all. See pellucid rm --help.")
    if all_:
        models = [model.name for model in installed()]

    for name in dict.fromkeys(stored(model, unfinished=True)[0] for model in models or ()):
        remove(name)
        print(f"removed {name}")


COMMAND = Command("rm", command)
