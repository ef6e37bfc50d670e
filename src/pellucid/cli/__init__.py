"""The command line. A command is a module of this folder that has ``command``; nothing is listed twice.

Modules here import nothing heavy at their top, so that ``pellucid --help`` is quick. Errors are one line on
standard error and exit code 2; Ctrl-C is exit code 130; a closed pipe is silent.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

import typer

from pellucid.errors import PellucidError

# Typer brings its own copy of Click or uses the installed one, by version; its errors are found through its own.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130


def application() -> typer.Typer:
    """The commands that this folder holds."""
    app = typer.Typer(
        name="pellucid",
        help="Run language models on CPUs, fast, and see through them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for module in pkgutil.iter_modules(__path__):
        command = getattr(importlib.import_module(f"{__name__}.{module.name}"), "command", None)
        if command is not None:
            app.command(module.name.rstrip("_"))(command)
    return app


def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if version:
        from pellucid import __version__

        print(f"pellucid {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` by default). Returns the exit code."""
    try:
        code = application()(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PellucidError as error:
        return _refuse(str(error))
    except ClickException as error:
        return _refuse(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _refuse(message: str) -> int:
    print(f"pellucid: {' '.join(message.split())}", file=sys.stderr)
    return 2
