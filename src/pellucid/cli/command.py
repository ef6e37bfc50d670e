"""A command of the command line: what a module of ``commands/`` declares, and how the commands are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pellucid.util.registry import discover


@dataclass(frozen=True)
class CommandEntry:
    """``pellucid NAME``: a command or a group of them."""

    name: str


@dataclass(frozen=True)
class Command(CommandEntry):
    """Typer reads the parameters and the docstring of the function ``run``."""

    run: Callable[..., None]
    sampling: bool = False
    """Whether it takes the options of a generation, as ``**sampling``."""


@dataclass(frozen=True)
class CommandGroup(CommandEntry):
    """``pellucid NAME PART``: several functions under one name. ``default`` is the part that may be left out."""

    help: str
    parts: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    default: str | None = None


def known_commands() -> Mapping[str, CommandEntry]:
    """Every command in the folder, in order of the modules.

    Raises:
        TypeError: two files declare one command.
    """
    return discover("pellucid.cli.commands", CommandEntry, lambda one: (one.name,))
