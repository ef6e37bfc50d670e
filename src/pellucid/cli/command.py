"""Commands of the command line: the declarations in ``commands/``, their discovery, groups of options, and completion
in a shell."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_args

from pellucid.errors import PellucidError
from pellucid.util.registry import discover, find

# Groups of options that several commands share.
#
# A group is a parameter of a command that stands for several options. Its type is a dataclass whose fields are the
# options, or ``Annotated[Kind, OptionGroup(options)]``.


@dataclass(frozen=True)
class OptionGroup:
    """Options for the fields of a class: an annotation (type and ``typer.Option``) for each field's name."""

    options: Mapping[str, Any]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command's function with its groups replaced by their options, as Typer needs it."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, options = _group(parameter.annotation)
        if kind is None:
            parameters.append(parameter)
        else:
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += [option.replace(kind=parameter.kind) for option in options]

    def call(**values: Any) -> None:
        grouped = {
            name: kind(**{option: values.pop(option) for option in options}) for name, (kind, options) in groups.items()
        }
        command(**values, **grouped)

    return with_parameters(call, command, parameters) if groups else command


def _group(annotation: Any) -> tuple[Any, list[inspect.Parameter]]:
    """The class of a group and its options. The class is None for a parameter that is a single option."""
    if is_dataclass(annotation):
        return annotation, list(inspect.signature(annotation, eval_str=True).parameters.values())  # type: ignore[arg-type]
    kind, *details = get_args(annotation) or (None,)
    for detail in details:
        if isinstance(detail, OptionGroup):
            fields = inspect.signature(kind).parameters
            return kind, [fields[name].replace(annotation=shown) for name, shown in detail.options.items()]
    return None, []


def with_parameters(
    call: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Give ``call`` the docstring of a command and these parameters."""
    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


# Completion in a shell: commands, options, models. Typer writes the scripts (``pellucid --install-completion``).

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
    from pellucid.weights.catalogue import catalogue
    from pellucid.weights.store import installed

    try:
        here = [model.name for model in installed()]
    except PellucidError:  # a message would disturb the line that is completed
        here = []
    return [name for name in dict.fromkeys([*here, *catalogue()]) if name.startswith(incomplete)]


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
                print(f"pellucid: {name} is now {new}; the next minor version removes {name}", file=sys.stderr)
            yield f"{new}{equals}{value}" if new else argument


def command(
    name: str, *, sampling: bool = False, renamed: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Command]:
    """Declares a function as the command ``pellucid NAME``. The arguments are those of `Command`."""
    return lambda run: Command(name, run, sampling, renamed or {})


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
