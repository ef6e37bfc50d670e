"""Runs a command line. Each module of ``commands/`` is a command; commands are discovered, not listed.

Modules of this folder import no slow modules at their top, so that ``pellucid --help`` is fast. An error prints one
line on standard error and exits with code 2; Ctrl-C exits with code 130; a closed pipe ends it
with code 141 and no error. Standard input
and arguments must be UTF-8.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from pellucid.cli.command import (
    COMPLETING,
    Command,
    CommandEntry,
    CommandGroup,
    command_named,
    completed_command,
    expanded,
    known_commands,
)
from pellucid.cli.options import with_options
from pellucid.cli.other_words import COMMANDS, PARTS
from pellucid.cli.translation import TranslatingCommand, translated_command
from pellucid.errors import InvalidRequest, ModelNotFound, PellucidError, bounded, brief, reason, shown

# Depending on its version, Typer has its own copy of Click or uses the installed one. Both are found through Typer.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130
CLOSED_PIPE = 141
"""The shell's code for a program that SIGPIPE ended, as cat: output that nobody read completely is no success."""


def application(only: CommandEntry | None = None) -> typer.Typer:
    """The Typer application with one command, or with all commands but without their options."""
    app = typer.Typer(
        name="pellucid",
        add_completion=only is None or COMPLETING in os.environ,
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
            app.command(command.name, cls=TranslatingCommand if only else None)(run)
        elif isinstance(command, CommandGroup):
            kind = _with_default(command.default) if command.default else TyperGroup
            group = typer.Typer(help=command.help, cls=kind)
            for part, inner in command.parts.items():
                group.command(part, cls=TranslatingCommand if only else None)(declared(inner))
            app.add_typer(group, name=command.name)
    return app


def _with_default(name: str) -> type[TyperGroup]:

    class WithDefault(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] in PARTS:
                args = [PARTS[args[0]], *args[1:]]
            elif args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
                args = [name, *args]
            return super().parse_args(ctx, args)

    return WithDefault


def _without_options(command: Callable[..., None]) -> Callable[[], None]:
    """A function without options that stands for a command in the list of commands."""

    def stand_in() -> None: ...

    stand_in.__doc__ = command.__doc__
    return stand_in


def _root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    """Run language models on CPUs, fast, and inspect what they do.

    Commands and options of llama.cpp, Ollama, vLLM and transformers work too: --help of a command shows their names.
    """
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
        arguments = translated_command(arguments)
        name = completed_command() or next((argument for argument in arguments if argument != "--"), None)
        command = command_named(name) if name else None
        if name and command is None and not name.startswith("-") and COMPLETING not in os.environ:
            raise InvalidRequest(f"No such command {brief(name)}. {_hint(name)}See pellucid --help.")
        if isinstance(command, Command):
            arguments = list(command.current(arguments))
        code = application(command)(args=arguments, prog_name="pellucid", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ModelNotFound as error:
        return _print_error(_swapped(arguments) or str(error))
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
        return CLOSED_PIPE
    except MemoryError:
        return _print_error("the memory is full: free memory, or choose a smaller model or context")
    except OSError as error:  # for example a full disk behind standard output
        _drop_output()
        # A closed pipe is EINVAL on Windows.
        if sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None:
            return CLOSED_PIPE
        return _print_error(reason(error))


def _hint(name: str) -> str:
    """A sentence for an unknown command: the command for a model, or the commands of similar names."""
    from difflib import get_close_matches

    from pellucid.weights.catalogue import find

    if find(name) or os.path.lexists(name) or "/" in name or name.endswith(".gguf"):
        return f"pellucid run {shown(name)} runs a model. "
    if " " in name:
        return f"pellucid run MODEL {shown(name)} answers a prompt. "
    near = get_close_matches(name, [*known_commands(), *COMMANDS], 3, 0.6)
    names = dict.fromkeys(" ".join(COMMANDS.get(one, (one,))) for one in near)
    return f"Did you mean {' or '.join(names)}? " if names else ""


def _swapped(arguments: Sequence[str]) -> str:
    """The error for a prompt before the model, such as ``run Hi smollm2``; "" if no later word names a model."""
    from pellucid.weights.catalogue import find

    command, *words = (argument for argument in arguments if not argument.startswith("-"))
    model = next((word for word in words[1:] if find(word)), None)
    if model is None:
        return ""
    others = " ".join(shown(word) for word in words if word != model)
    return f"no model is called {brief(words[0])}, and the model comes first: pellucid {command} {model} {others}"


def _mend_streams() -> None:
    """Replace closed standard streams, and let open streams accept every character, so that no stream raises errors.

    Files and pipes have UTF-8. By default Python takes the code page of Windows for them, which has few characters.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nothing, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # it stays open
        elif isinstance(stream, io.TextIOWrapper):
            if sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
                stream.reconfigure(encoding="utf-8", errors=stream.errors)
            if name != "stderr":
                # Bytes that are not UTF-8 become surrogates, as in the arguments. Checks of text reject surrogates.
                stream.reconfigure(errors="surrogateescape" if name == "stdin" else "replace")


def _drop_output() -> None:
    """Discard further output after an error of standard output. Otherwise the flush at exit raises the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> int:
    print(f"pellucid: {bounded(message)}", file=sys.stderr)
    return 2
