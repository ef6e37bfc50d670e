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

from pellucid.cli.command import Command as CommandDeclared
from pellucid.cli.command import CommandGroup, expanded, known_commands
from pellucid.cli.commands import run
from pellucid.cli.common import MAY_BE_EMPTY
from pellucid.cli.main import application
from pellucid.cli.options import DRAFT, ENCODER, SERVER, SHARED
from pellucid.cli.serving_options import Replicas
from pellucid.load_options import LoadOptions
from pellucid.serve.guard import AccessRules


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


def options_with_values() -> list[tuple[str, str]]:
    """Every option of every command that takes a value, as the words of the command and the option."""
    found = []

    def walk(command: Any, words: str) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{words} {name}")
        for parameter in () if hasattr(command, "commands") else command.params:
            if parameter.param_type_name == "option" and not parameter.is_flag and parameter.nargs == 1:
                found.extend((words, option) for option in parameter.opts if option.startswith("--"))

    for name, entry in known_commands().items():
        root: Any = typer.main.get_command(application(entry))
        walk(root.commands[name] if name in getattr(root, "commands", {}) else root, name)
    return found


def test_no_option_takes_an_empty_value_for_no_value(command: Command) -> None:
    """An empty key would open the server, and an empty name of a model would be the model of the requests."""
    options = options_with_values()
    assert {("serve", "--key"), ("serve", "--admin-key"), ("serve", "--host"), ("bench serve", "--key")} <= {*options}
    assert {option.strip("-") for _, option in options} >= set(MAY_BE_EMPTY)
    for words, option in options:
        if option.strip("-") in MAY_BE_EMPTY:
            continue
        for given in ((option, ""), (f"{option}=",), (option, "x", option, "")):
            said = command(*words.split(), *given).refusal
            assert said.startswith(f"Invalid value for '{option}': it is empty: "), (words, said)


def test_an_empty_system_message_is_a_message(tiny: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    started: list[Any] = []
    monkeypatch.setattr(run, "talk", lambda llm, start, options: started.append(start))
    monkeypatch.setattr(run, "prompt_text", lambda words: None)
    for given in ((), ("--system", "")):
        assert command("chat", tiny, *given).code == 0
    assert started == [[], [{"role": "system", "content": ""}]]


SERVE = ("serve", "smollm2", "--cluster", "auto")


@pytest.mark.parametrize("value", ["", " ", "\n"])
@pytest.mark.parametrize(
    ("variable", "arguments"),
    [
        ("PELLUCID_KEY", SERVE),
        ("PELLUCID_ADMIN_KEY", SERVE),
        ("PELLUCID_CLUSTER_SECRET", SERVE),
        ("PELLUCID_KEY", ("bench", "serve", "http://127.0.0.1:1")),
    ],
)
def test_an_empty_secret_in_the_environment_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv(variable, value)
    assert command(*arguments).refusal == f"{variable} is empty: set it to a secret, or unset it"


def test_keys_hosts_and_origins_that_no_request_can_send(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, said in (
        (("--key", " "), "a key of the server is empty"),
        (("--admin-key", "secret "), "a key of the server begins or ends with white space"),
        (("--allow-host", "http://a.example"), "allow_host='http://a.example': must be a name"),
        (("--allow-host", "a.example:80"), "allow_host='a.example:80': must be a name"),
        (("--allow-origin", "*"), "allow_origin='*': must be a scheme and a host"),
        (("--allow-origin", "https://a.example/"), "allow_origin='https://a.example/': must be"),
    ):
        refusal = command(*SERVE, *arguments).refusal
        assert said in refusal
        assert "secret" not in refusal, "a message shows no key"
    monkeypatch.setenv("PELLUCID_KEY", "from a file\n")
    assert "begins or ends with white space" in command(*SERVE).refusal


def test_access_rules_reach_the_server(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[AccessRules] = []
    monkeypatch.setattr(Replicas, "serve", lambda *given: found.append(given[-3]))
    monkeypatch.setenv("PELLUCID_KEY", "b")
    more = ("--key", "a", "--allow-host", "Models.example", "--allow-host", "fd00::1", "--allow-origin", "null")
    assert command(*SERVE, *more).code == 0
    (rules,) = found
    assert (list(rules.keys), list(rules.origins)) == (["a", "b"], ["null"])
    assert {"Models.example", "fd00::1", "localhost"} <= {*rules.hosts}


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
    grouped = {**SHARED, **ENCODER, **DRAFT, **SERVER}
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
    """The first model has all of them. A draft, dictionaries and a chat template are for the first model alone."""
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
        "activations": 16,
        "cache_memory": 0.5,
        "draft": "small.gguf",
        "task": "embed",
        "adapter": "separation",
    }
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    more: tuple[str, ...] = ("--dictionaries", "a=b", "--dictionaries", "c")
    more += ("--pull", "--chat-template", str(template), "--cluster", "auto")
    assert command("serve", *files, "--precise", "--cluster", "auto").code == 0
    assert {options.precise for _, options in served.values()} == {True}
    assert command("serve", *files, *flags, *more).code == 0
    expected: Any = {**options, "pulls": True, "cap_context": True, "dictionaries": ["a=b", "c"]}
    assert {*expected, "precise", "chat_template"} == set(LoadOptions.__struct_fields__)
    first = LoadOptions(**expected, chat_template="{{ messages }}")
    other = LoadOptions(**{**expected, "draft": None, "dictionaries": None})
    assert served == {"a": (files[0], first), "b": (files[1], other)}


BAD = {
    "kv_cache": (["--kv-cache", "q4"], "kv_cache='q4'"),
    "threads": (["--threads", "0"], "threads=0"),
    "pin": (["--pin", "here"], "pin='here'"),
    "context": (["--context", "0"], "context=0"),
    "task": (["--task", "sing"], "task='sing'"),
    "adapter": (["--adapter", "sing"], "adapter='sing': the file has no adapter of this name (known: none)"),
}


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("name", ["sample", "explain", "beams", "embed", "eval perplexity"])
def test_their_values_reach_the_loader(command: Command, tiny: str, name: str, field: str) -> None:
    options, said = BAD[field]
    if field in ("task", "adapter") and name != "embed":
        return  # the command makes text
    assert said in command(*name.split(), tiny, __file__, *options).refusal


def test_former_names_of_server_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names --grace and --receive are hidden, and work with a warning."""
    times = []
    monkeypatch.setattr(
        Replicas, "serve", lambda *given: times.append((given[-2].shutdown_timeout, given[-2].read_timeout))
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
