"""Groups of options: a command has one option for each field. All commands that load a model share a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from support.command import Command
from typer.testing import CliRunner

from pellucid.cli.command import Command as CommandDeclared
from pellucid.cli.command import CommandGroup, known_commands
from pellucid.cli.load_options import LoadOptions
from pellucid.cli.option_groups import expanded
from pellucid.cli.serving_options import ServingOptions


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")] = 2
    height: Annotated[int, typer.Option(help="How high.")] = 3


def area(name: str, *, size: Size, unit: Annotated[str, typer.Option(help="Of a side.")] = "m") -> None:
    """Print an area."""
    print(name, size, unit)


def plain(name: str) -> None: ...


def commands() -> dict[str, Callable[..., Any]]:
    """All commands, by the words that name them."""
    found = {}
    for name, one in known_commands().items():
        if isinstance(one, CommandDeclared):
            found[name] = one.run
        elif isinstance(one, CommandGroup):
            found |= {f"{name} {part}": run for part, run in one.parts.items()}
    return found


def loading() -> dict[str, Callable[..., Any]]:
    """The commands with the options of loading."""
    return {name: run for name, run in commands().items() if "loading" in inspect.signature(run).parameters}


def test_a_group_stands_for_its_fields() -> None:
    made = expanded(area)
    assert list(inspect.signature(made).parameters) == ["name", "width", "height", "unit"]
    assert made.__doc__ == area.__doc__
    assert expanded(plain) is plain
    app = typer.Typer()
    app.command()(made)
    run = CliRunner().invoke(app, ["hall", "--height", "7", "--unit", "ft"])
    assert run.output == "hall Size(width=2, height=7) ft\n"


def test_commands_that_load_a_model_have_the_same_options(command: Command) -> None:
    """A command that loads a model has all options of the group. Other commands may have --precise only."""
    names = set(loading())
    assert {"run", "chat", "embed", "serve", "plan", "capacity", "bench model", "eval perplexity"} <= names
    group = {f"--{field.name.replace('_', '-')}" for field in fields(LoadOptions)}
    for name in commands():
        page = command(*name.split(), "--help").answer
        shown = {option for option in group if f"{option} " in page}
        assert shown == (group if name in names else shown & {"--precise"}), name


BAD = {
    "kv_cache": (["--kv-cache", "q4"], "kv_cache='q4'"),
    "threads": (["--threads", "0"], "threads=0"),
    "pin": (["--pin", "here"], "pin='here'"),
    "context": (["--context", "0"], "context=0"),
}


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("name", ["sample", "explain", "beams", "embed", "eval perplexity"])
def test_their_values_reach_the_loader(command: Command, tiny: str, name: str, field: str) -> None:
    options, said = BAD[field]
    assert said in command(*name.split(), tiny, __file__, *options).refusal


def test_former_names_of_options() -> None:
    """The names --grace and --receive are hidden, and work with a notice."""
    app = typer.Typer()

    def serve(*, serving: ServingOptions) -> None:
        settings = serving.settings(first=False, any_model=False)
        print(settings.shutdown_timeout, settings.read_timeout)

    app.command()(expanded(serve))
    assert CliRunner().invoke(app, []).output == "30.0 20.0\n"
    assert CliRunner().invoke(app, ["--shutdown-timeout", "0.5", "--read-timeout", "3"]).output == "0.5 3.0\n"
    run = CliRunner().invoke(app, ["--grace", "0.5", "--receive", "3"])
    assert run.stdout == "0.5 3.0\n"
    assert run.stderr == (
        "--grace is deprecated: use --shutdown-timeout\n--receive is deprecated: use --read-timeout\n"
    )
    page = CliRunner().invoke(app, ["--help"]).output
    assert "--grace" not in page
    assert "--receive" not in page
