"""pellucid pull MODEL...: downloads models."""

from __future__ import annotations

from typing import Annotated

from pellucid.cli import common
from pellucid.cli.catalogue_facts import Announced
from pellucid.cli.command import Command


def command(models: Annotated[list[str], common.MODEL]) -> None:
    """Download models. The hashes of a model of the catalogue are checked."""
    from pellucid.weights.store import pull

    for model in models:
        with common.progress() as bars:
            path = pull(model, progress=Announced(model, bars))
        print(path)


COMMAND = Command("pull", command)
