"""A command of the command line: what a module of ``commands/`` declares, and how the commands are found."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pellucid.util.registry import declared, discover

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
    """The command that the module of its name declares (``list`` is in ``list_.py``), or None.

    The other commands are not imported, which would take 15 ms.
    """
    for stem in (name, f"{name}_"):
        if stem.isidentifier() and importlib.util.find_spec(f"{FOLDER}.{stem}"):
            module = importlib.import_module(f"{FOLDER}.{stem}")
            return next((one for one in declared(module, CommandEntry) if one.name == name), None)
    return None
