"""pellucid pull MODEL: fetch a model."""

from __future__ import annotations

from pellucid.cli import common
from pellucid.cli.command import Command


def command(model: common.Model) -> None:
    """Fetch a model. Its hashes are checked if it is in the catalogue."""
    from pellucid.weights.store import pull

    with common.progress() as bars:
        path = pull(model, progress=bars)
    print(path)


COMMAND = Command("pull", command)
