"""pellucid rm MODEL: remove a model from the store."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.command import Command


def command(
    model: Annotated[str, common.argument("MODEL", "A name that `pellucid list` shows.")],
) -> None:
    """Remove a model from the store."""
    from pellucid.weights.store import remove

    remove(model)
    print(f"removed {model}")


COMMAND = Command("rm", command)
