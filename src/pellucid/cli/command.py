"""Commands of the command line: the declarations in ``commands/``, and their discovery."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pellucid.util.registry import discover, find

FOLDER = "pellucid.cli.commands"


@dataclass(frozen=True)
class CommandEntry:
    """``pellucid NAME``: a command or a group of commands."""

    name: str


@dataclass(frozen=True)
class Command(CommandEntry):
    """A command. Typer reads the parameters and the docstring of the function ``run``."""

    run: Callable[..., None]
    sampling: bool = False
    """True if the command takes the generation options, as ``**sampling``."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Former names of options, "--old" → "--new". They still work, and print a warning."""

    def current(self, arguments: Sequence[str]) -> Iterator[str]:
        """Yield the arguments with the current names of options. Print a warning for each former name."""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if new := self.renamed.get(name):
                print(
                    f"pellucid: {name} is now {new}; the next minor version removes {name}", file=sys.stderr
                )
            yield f"{new}{equals}{value}" if new else argument


@dataclass(frozen=True)
class CommandGroup(CommandEntry):
    """``pellucid NAME PART``: several functions under one name. The part ``default`` runs if no part is named."""

    help: str
    parts: Mapping[str, Callable[..., None]] = field(default_factory=dict)
    default: str | None = None


def known_commands() -> Mapping[str, CommandEntry]:
    """All commands in ``commands/``, in order of the modules.

    Raises:
        TypeError: two files declare one command.
    """
    return discover(FOLDER, CommandEntry, lambda entry: (entry.name,))


def command_named(name: str) -> CommandEntry | None:
    """The command ``name``, or None. Imports only modules that mention the name, because all modules take 15 ms."""
    return find(FOLDER, CommandEntry, lambda entry: (entry.name,), name)
