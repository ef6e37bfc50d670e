"""Runs a command line. Each module of ``commands/`` is a command; commands are discovered, not listed.

Modules of this folder import no slow modules at their top, so that ``pellucid --help`` is fast. An error prints one
line on standard error and exits with code 2; Ctrl-C exits with code 130; a closed pipe prints no error. Standard input
and arguments must be UTF-8.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pellucid.cli import common
from pellucid.cli.command import Command, CommandEntry, CommandGroup, command_named, known_commands
from pellucid.cli.option_groups import expanded
from pellucid.cli.sampling_options import with_options
from pellucid.errors import PellucidError
from pellucid.errors.messages import bounded, reason

# Depending on its version, Typer has its own copy of Click or uses the installed one. Both are found through Typer.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130


def application(only: CommandEntry | None = None) -> typer.Typer:
    """The Typer application with one command, or with all commands but without their options."""
    app = typer.Typer(
        name="pellucid",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # otherwise Rich reads brackets in a help text as markup
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    declared = expanded if only else _without_options
    for command in (only,) if only else known_commands().values():
        if isinstance(command, Command):
            run = declared(command.run)
            if only and command.sampling:
                run = with_options(run)
            app.command(command.name, cls=StrictCommand)(run)
        elif isinstance(command, CommandGroup):
            kind = _with_default(command.default) if command.default else TyperGroup
            group = typer.Typer(help=command.help, cls=kind)
            for part, inner in command.parts.items():
                group.command(part, cls=StrictCommand)(declared(inner))
            app.add_typer(group, name=command.name)
    return app


class StrictCommand(TyperCommand):
    """A command that refuses empty values of options, except texts for the model (``common.MAY_BE_EMPTY``).

    An empty value is usually an unset variable of a script. Without this check it would count as no value, and for
    example a server would start without a key.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(str(parameter.name))
            values = value if isinstance(value, list) else [value]
            if (
                parameter.param_type_name == "option"
                and "" in values
                and parameter.name not in common.MAY_BE_EMPTY
            ):
                raise typer.BadParameter("it is empty: give a value, or leave the option out", ctx, parameter)
        return super().parse_args(ctx, args)


def _with_default(name: str) -> type[TyperGroup]:
    """A group of commands with the default command ``name``."""

    class WithDefault(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
                args = [name, *args]
            return super().parse_args(ctx, args)

    return WithDefault


def _without_options(command: Callable[..., None]) -> Callable[[], None]:
    """A function without options that stands for a command in the list of commands."""

    def stand_in() -> None: ...

    stand_in.__doc__ = command.__doc__
    return stand_in


def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Run language models on CPUs, fast, and inspect what they do."""
    if version:
        from pellucid import __version__

        print(f"pellucid {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` by default). Returns the exit code."""
    _mend_streams()
    warnings.showwarning = lambda message, *_: print(f"pellucid: {bounded(str(message))}", file=sys.stderr)
    code = _exit_code(sys.argv[1:] if arguments is None else arguments)
    if code == INTERRUPTED and sys.stderr.isatty():
        print(file=sys.stderr)  # so that the shell's prompt starts on a new line
    return code


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        name = next((argument for argument in arguments if argument != "--"), None)
        command = command_named(name) if name else None
        if isinstance(command, Command):
            arguments = list(command.current(arguments))
        code = application(command)(args=arguments, prog_name="pellucid", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PellucidError as error:
        return _print_error(str(error))
    except ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See {context.command_path} --help." if context else ""
        return _print_error(error.format_message().rstrip(".") + "." + hint)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_output()  # Click raises SystemExit when a pipe is closed
        return 0
    except MemoryError:
        return _print_error("the memory is full: free memory, or choose a smaller model or context")
    except OSError as error:  # for example a full disk behind standard output
        _drop_output()
        return _print_error(reason(error))


def _mend_streams() -> None:
    """Replace closed standard streams, and let open streams accept every character, so that no stream raises errors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nothing, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # it stays open
        elif isinstance(stream, io.TextIOWrapper) and name != "stderr":
            # Bytes that are not UTF-8 become surrogates, as in the arguments. Checks of text reject surrogates.
            stream.reconfigure(errors="surrogateescape" if name == "stdin" else "replace")


def _drop_output() -> None:
    """Discard further output after an error of standard output. Otherwise the flush at exit raises the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> int:
    print(f"pellucid: {bounded(message)}", file=sys.stderr)
    return 2
