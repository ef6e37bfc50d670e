"""What is raised where a part of a model on another machine is gone."""

from __future__ import annotations

from pellucid.errors import PellucidError


class StageLost(PellucidError):
    """A stage of the model is gone, and with it what the cache had of all sequences: they must be read again."""
