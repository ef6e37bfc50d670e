"""The error for a lost stage of a model on several machines."""

from __future__ import annotations

from pellucid.errors import PellucidError


class StageLost(PellucidError):
    """A stage of the model is gone, and its part of the cache with it: all sequences must be prefilled again."""
