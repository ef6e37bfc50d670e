"""Completion in a shell: commands, options, models. Typer writes the scripts (``pellucid --install-completion``)."""

from __future__ import annotations

import os

COMPLETING = "_PELLUCID_COMPLETE"
"""Typer's scripts set this variable to ask for completions."""


def completed_command() -> str | None:
    """The command of the line that a shell completes. None if no shell asks, or the line has no command yet."""
    if COMPLETING not in os.environ:
        return None
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    return words[1] if len(words) > 1 else None


def model_names(incomplete: str) -> list[str]:
    """Names of the models of this machine and of the catalogue that begin with ``incomplete``.

    If no name fits, the shell completes names of files.
    """
    from pellucid.errors import PellucidError
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    try:
        here = [model.name for model in installed()]
    except PellucidError:  # a message would disturb the line that is completed
        here = []
    return [name for name in dict.fromkeys([*here, *catalogue()]) if name.startswith(incomplete)]
