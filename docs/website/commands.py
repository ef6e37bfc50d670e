"""The command reference: a page for each command, from the help that the command prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from pellucid.cli.command import known_commands
from pellucid.cli.main import application

INTRODUCTION = """# Commands

`pellucid COMMAND --help` prints the same text. A mistake ends a command with one line that names the remedy, and with
exit code 2. Ctrl-C ends a command with exit code 130.
"""


@dataclass(frozen=True)
class Usage:
    """How to call a command, or one part of a command such as ``bench serve``.

    ``arguments`` and ``options`` map a form, such as "--port N", to its help.
    """

    name: str
    line: str
    help: str
    arguments: Mapping[str, str]
    options: Mapping[str, str]


def usages(name: str) -> list[Usage]:
    """The usage of a command, then of its parts, if it has parts."""
    # Typer has its own copy of Click, or uses the installed one: the types of both have the same names.
    whole: Any = typer.main.get_command(application(known_commands()[name]))
    context = whole.context_class(whole, info_name="pellucid")
    return list(_usages(whole.commands[name], name, context))


def _usages(command: Any, name: str, parent: Any) -> Iterator[Usage]:
    context = command.context_class(command, info_name=name, parent=parent)
    records: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for parameter in command.get_params(context):
        form, text = parameter.get_help_record(context)
        if form != "--help":
            records[parameter.param_type_name == "argument"][form] = text
    line = command.get_usage(context).removeprefix("Usage: ")
    yield Usage(context.command_path, line, command.help, records[True], records[False])
    for part, inner in getattr(command, "commands", {}).items():
        yield from _usages(inner, part, context)


def summary(name: str) -> str:
    """The first sentence of a command's help, as in the list of commands."""
    return escaped(usages(name)[0].help.partition("\n")[0])


def page(name: str, for_site: bool = True) -> str:
    """The page of a command. With ``for_site``, its options are directives of Sphinx, which other pages can link."""
    first, *parts = usages(name)
    text = [f"# pellucid {name}\n", *_described(first, "##", for_site)]
    for part in parts:
        text += [f"## {part.name}\n", *_described(part, "###", for_site)]
    return "\n".join(text)


def index() -> str:
    """The page that lists all commands."""
    rows = [f"| [{name}]({name}.md) | {summary(name)} |" for name in known_commands()]
    return "\n".join([INTRODUCTION, "| command | |", "|---|---|", *rows, ""])


def _described(usage: Usage, heading: str, for_site: bool) -> Iterator[str]:
    yield escaped(usage.help) + "\n"
    yield f"```text\n{usage.line}\n```\n"
    for title, records in (("Arguments", usage.arguments), ("Options", usage.options)):
        if records:
            yield f"{heading} {title}\n"
        if for_site and records:
            yield f"```{{program}} {usage.name}\n```\n"
        for form, text in records.items():
            form, text = form.replace(" / ", ", "), escaped(text)
            yield f"```{{option}} {form}\n{text}\n```\n" if for_site else f"- `{form}`: {text}"
        yield ""


def escaped(text: str) -> str:
    """Markdown that shows a help text as it is. Backticks mark code in both."""
    prose = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if number % 2 else re.sub(r"([\\*_<>\[\]{}$|])", r"\\\1", part) for number, part in enumerate(prose)
    )
