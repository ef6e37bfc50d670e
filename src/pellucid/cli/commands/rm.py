"""pellucid rm MODEL: remove a model from the store."""

from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli.command import Command


def command(
    model: Annotated[
        str, typer.Argument(help="A name that `pellucid list` shows.", metavar="MODEL", show_default=False)
    ],
) -> None:
    """Remove a model from the store."""
    from pellucid.weights.store import remove

    remove(model)
    print(f"removed {model}")


COMMAND = Command("rm", command)
