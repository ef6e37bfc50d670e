"""A command of the command line: what a module of ``commands/`` declares, and how the commands are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pellucid.util.registry import discover, find

FOLDER = "pellucid.cli.commands"


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
    return discover(FOLDER, CommandEntry, lambda one: (one.name,))


def command_named(name: str) -> CommandEntry | None:
    """The command of a name, or None. To import all of them would take 15 ms."""
    return find(FOLDER, CommandEntry, lambda one: (one.name,), name)
