"""Groups of options: a command has one option for each field. All commands that load a model share a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from support.command import Command
from typer.testing import CliRunner

from pellucid.cli.cluster_options import Replicas
from pellucid.cli.command import Command as CommandDeclared
from pellucid.cli.command import CommandGroup, known_commands
from pellucid.cli.loading import DRAFT, SERVER, SHARED
from pellucid.cli.option_groups import expanded
from pellucid.load_options import LoadOptions


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
    group = {f"--{name.replace('_', '-')}" for name in SHARED}
    for name in commands():
        page = command(*name.split(), "--help").answer
        shown = {option for option in group if f"{option} " in page}
        assert shown == (group if name in names else shown & {"--precise"}), name


def test_a_former_name_of_an_option_works_and_warns(command: Command, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    files = str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")
    for arguments in (("--together", "0"), ("--together=0",)):
        refused = command("batch", *files, *arguments)
        assert (refused.code, "concurrency=0: must be a whole number from 1" in refused.err) == (2, True)
        assert "--together is now --concurrency" in refused.err
    assert "now" not in command("batch", *files, "--concurrency", "0").err
    assert "--together" not in command("batch", "--help").answer


OTHERWISE = {
    "chat_template": "--chat-template",  # serve reads the file
    "pulls": "--pull",  # of serve; other commands always pull
    "cap_context": None,  # commands with several models cap the context, commands with one refuse a longer one
}
"""Fields of LoadOptions that are not in a group of options: the option that sets them, or None."""


def test_every_load_option_has_an_option_on_the_command_line(command: Command) -> None:
    grouped = {**SHARED, **DRAFT, **SERVER}
    assert not grouped.keys() & OTHERWISE.keys()
    assert {*grouped, *OTHERWISE} == set(LoadOptions.__struct_fields__)
    page = command("serve", "--help").answer
    for name in grouped:
        assert f"--{name.replace('_', '-')} " in page
    for option in filter(None, OTHERWISE.values()):
        assert f"{option} " in page


def test_every_load_option_reaches_the_models_of_a_server(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first model has all of them. A draft and a chat template are for the first model alone."""
    served: dict[str, tuple[str, LoadOptions]] = {}
    monkeypatch.setattr(Replicas, "serve", lambda self, models, *_: served.update(models))
    template, files = tmp_path / "chat.jinja", [str(tmp_path / name) for name in ("a.gguf", "b.gguf")]
    template.write_text("{{ messages }}")
    for file in files:
        Path(file).touch()
    options = {
        "context": 100,
        "threads": 2,
        "pin": "none",
        "kv_cache": "q8_0",
        "cache_memory": 0.5,
        "draft": "small.gguf",
    }
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more = ("--precise", "--pull", "--chat-template", str(template), "--cluster", "auto")
    assert command("serve", *files, *flags, *more).code == 0
    expected: Any = {**options, "precise": True, "pulls": True, "cap_context": True}
    assert {*expected, "chat_template"} == set(LoadOptions.__struct_fields__)
    first = LoadOptions(**expected, chat_template="{{ messages }}")
    other = LoadOptions(**{**expected, "draft": None})
    assert served == {"a": (files[0], first), "b": (files[1], other)}


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


def test_former_names_of_server_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names --grace and --receive are hidden, and work with a warning."""
    times = []
    monkeypatch.setattr(
        Replicas,
        "serve",
        lambda *given: times.append((given[-1].shutdown_timeout, given[-1].read_timeout)),
    )
    serve = ("serve", "smollm2", "--cluster", "auto")
    assert command(*serve).err == ""
    assert command(*serve, "--shutdown-timeout", "0.5", "--read-timeout", "3").err == ""
    run = command(*serve, "--grace", "0.5", "--receive=3")
    assert times == [(30.0, 20.0), (0.5, 3.0), (0.5, 3.0)]
    assert "--grace is now --shutdown-timeout" in run.err
    assert "--receive is now --read-timeout" in run.err
    page = command("serve", "--help").answer
    assert "--grace" not in page
    assert "--receive" not in page
