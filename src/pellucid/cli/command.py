"""A command of the command line, which a module of ``commands/`` declares, and how commands are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pellucid.util.registry import discover


@dataclass(frozen=True)
class Command:
    """``pellucid NAME``. Typer reads the parameters and the docstring of the function ``run``."""

    name: str
    run: Callable[..., None]
    sampling: bool = False
    """Whether it takes the options of a generation, as ``**sampling``."""


@dataclass(frozen=True)
class CommandGroup:
    """``pellucid NAME PART``: several functions under one name."""

    name: str
    help: str
    parts: Mapping[str, Callable[..., None]] = field(default_factory=dict)


def known_commands() -> Mapping[str, Command | CommandGroup]:
    """Every command by name, in order of the modules; groups come last.

    Raises:
        TypeError: two files declare the same command.
    """
    return {
        **discover("pellucid.cli.commands", Command, lambda one: (one.name,)),
        **discover("pellucid.cli.commands", CommandGroup, lambda one: (one.name,)),
    }
