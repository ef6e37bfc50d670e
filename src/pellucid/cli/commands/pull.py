"""pellucid pull MODEL: downloads a model."""

from __future__ import annotations

from pellucid.cli import common
from pellucid.cli.catalogue_facts import Announced
from pellucid.cli.command import Command


def command(model: common.Model) -> None:
    """Download a model. The hashes of a model of the catalogue are checked."""
    from pellucid.weights.store import pull

    with common.progress() as bars:
        path = pull(model, progress=Announced(model, bars))
    print(path)


COMMAND = Command("pull", command)
