"""pellucid rm MODEL...: removes models from the store."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command


def command(
    models: Annotated[list[str], common.argument("MODEL", "Names that `pellucid list` shows.")],
) -> None:
    """Remove models from the store. If a model is not in the store, none is removed."""
    from pellucid.weights.store import remove, stored

    for name in dict.fromkeys(stored(model, unfinished=True)[0] for model in models):
        remove(name)
        print(f"removed {name}")


COMMAND = Command("rm", command)
