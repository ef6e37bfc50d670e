"""Output files: checked before the work, replaced whole, left alone by a run that fails; and what `batch` writes."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command import Command

from pellucid.cli.command import known_commands
from pellucid.cli.main import application
from pellucid.cli.output_file import OutputFile
from pellucid.errors import InvalidRequest

INPUTS = {"batch IN", "eval perplexity FILE", "eval kl FILE", "plan --machines", "capacity --machines"}
INPUTS |= {f"{name} --chat-template" for name in ("serve", "run", "chat")}
INPUTS |= {"verify-run FILE", "verify-run --signed-by", "serve --receipt-key"}
INPUTS |= {"embed --file", "decide --state", "decide --questions", "vector --positive", "vector --negative"}
INPUTS |= {"graph --transcoders"}
OUTPUTS = {
    "batch OUT": ("batch", "requests.jsonl", "PATH", "--model", "tiny"),
    "explain --html": ("explain", "tiny", "a prompt", "--html", "PATH"),
    "run --receipt": ("run", "tiny", "a prompt", "--receipt", "PATH"),
    "embed --out": ("embed", "tiny", "--file", "texts.txt", "--out", "PATH"),
    "graph --out": ("graph", "tiny", "a prompt", "--out", "PATH"),
    "vector OUT": ("vector", "tiny", "PATH", "--positive", "texts.txt", "--negative", "texts.txt"),
}
ENDINGS = {"vector OUT": ".gguf", "graph --out": ".json"}
"""Command lines with each output. The model is missing, so an error of the output must come first."""


def files_of_commands() -> set[str]:
    """Every option and argument of every command that names a file."""
    found = set[str]()

    def walk(command: Any, words: list[str]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*words, name])
        for parameter in command.params:
            if parameter.metavar in ("FILE", "IN", "OUT") or "Path" in type(parameter.type).__name__:
                is_option = parameter.param_type_name == "option"
                found.add(" ".join([*words, parameter.opts[0] if is_option else parameter.metavar]))

    for name, entry in known_commands().items():
        root: Any = typer.main.get_command(application(entry))
        walk(root.commands[name] if name in getattr(root, "commands", {}) else root, [name])
    return found


def test_every_file_of_a_command_is_an_input_or_a_tested_output() -> None:
    assert files_of_commands() == INPUTS | set(OUTPUTS)


@pytest.fixture
def run_to(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line of OUTPUTS with a path."""
    monkeypatch.chdir(tmp_path)
    line = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 2}}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "texts.txt").write_text("a text\n")

    def run(output: str, path: Path | str, *more: str, model: str = "tiny") -> Any:
        words = {"PATH": str(path), "tiny": model}
        return command(*(words.get(word, word) for word in OUTPUTS[output]), *more)

    return run


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    run_to: Any, tmp_path: Path, output: str
) -> None:
    ending = ENDINGS.get(output, ".npy")
    assert "no model is called 'tiny'" in run_to(output, f"new{ending}").refusal, "the work comes after the check"
    assert not (tmp_path / f"new{ending}").exists()
    folder = tmp_path / f"folder{ending}"
    folder.mkdir()
    for path in (tmp_path / "nowhere" / f"a{ending}", folder, Path(f"/proc/self/a{ending}")):
        refusal = run_to(output, path).refusal
        assert str(path) in refusal
        assert "cannot be written" in refusal or "cannot be read: Is a directory" in refusal
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == [folder.name, "requests.jsonl", "texts.txt"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_run_that_fails_leaves_the_earlier_file(run_to: Any, tmp_path: Path, output: str) -> None:
    earlier = tmp_path / f"earlier{ENDINGS.get(output, '.npy')}"
    earlier.write_text("")
    run_to(output, earlier).refusal  # noqa: B018
    assert earlier.read_text() == ""
    earlier.write_text("mine")
    run_to(output, earlier).refusal  # noqa: B018
    assert earlier.read_text() == "mine"


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "a.html", tmp_path / "link.html"
    link.symlink_to(path)
    made = OutputFile("html", link)
    assert list(tmp_path.iterdir()) == [link]
    made.write("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    path.chmod(0o640)
    made.write("newer")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("newer", 0o640)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidRequest, match=r"html='.*link\.html': cannot be written: No space left"):
        made.write("newest")
    assert path.read_text() == "newer"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_device_is_written_directly(tmp_path: Path) -> None:
    OutputFile("html", Path(os.devnull)).write("text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_the_page_of_a_model_is_not_the_model(command: Command, tmp_path: Path) -> None:
    model, link = tmp_path / "model.gguf", tmp_path / "link.html"
    model.write_bytes(b"GGUF")
    link.hardlink_to(model)
    for path in (model, link):
        assert "is the same file as" in command("explain", str(model), "a", "--html", str(path)).refusal
    assert model.read_bytes() == b"GGUF"


def test_a_page_on_standard_output(command: Command, tiny: str) -> None:
    page = command("explain", tiny, "to see", "--html", "-").answer
    assert page.startswith("<!doctype html>")
    assert "both write to standard output" in command("explain", tiny, "a", "--html", "-", "--json").refusal


def lines(*prompts: str, **body: Any) -> str:
    requests = [
        {
            "custom_id": f"r{number}",
            "url": "/v1/completions",
            "body": {"model": "m", "prompt": prompt, "max_tokens": 3, "temperature": 0, **body},
        }
        for number, prompt in enumerate(prompts)
    ]
    return "".join(json.dumps(one) + "\n" for one in requests)


def test_a_batch_of_standard_streams(command: Command, tiny: str, tmp_path: Path) -> None:
    given = lines("to see", "", "that it rains")
    done = command("batch", "-", "-", "--model", tiny, given=given)
    found = [json.loads(line) for line in done.answer.splitlines()]
    assert [one["custom_id"] for one in found] == ["r0", "r1", "r2"]
    assert [one["response"]["status_code"] for one in found] == [200, 400, 200]
    assert done.err.splitlines()[-1] == "3 of 3 requests answered, 1 of them with an error"
    target = tmp_path / "out.jsonl"
    assert command("batch", "-", str(target), "--model", tiny, given=given).code == 0
    for one, other in zip(map(json.loads, target.read_text().splitlines()), found, strict=True):
        for answer in (one, other):  # another second may have begun
            answer["response"]["body"].pop("created", None)
        assert one == other
    assert "standard input, line 1: is not JSON" in command("batch", "-", "-", given="{\n").refusal


def test_the_errors_of_earlier_runs_are_counted(command: Command, tiny: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines("to see", "", "that"))
    run = ("batch", str(source), str(target), "--model", tiny)
    said = f"3 of 3 requests answered, 1 of them with an error: {target}\n"
    assert command(*run).answer == said
    written = target.read_text()
    assert command(*run).answer == said
    target.write_text("".join(written.splitlines(keepends=True)[:2]))
    assert command(*run).answer == said

    def timeless(text: str) -> str:
        return re.sub(r'"created": \d+', "", text)

    assert timeless(target.read_text()) == timeless(written)


def test_a_batch_does_not_mix_models_or_options(command: Command, tiny: str, mute: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines("to see", "that"))
    run = ("batch", str(source), str(target), "--model")
    assert command(*run, tiny).code == 0
    written = target.read_text()
    for half in (written, written.splitlines(keepends=True)[0]):  # complete, and interrupted
        target.write_text(half)
        assert "out.jsonl, line 1: was answered by a run with another model:" in command(*run, mute).refusal
        other = command(*run, tiny, "--precise").refusal
        assert "out.jsonl, line 1: was answered by a run with other options:" in other
        assert target.read_text() == half
    assert command(*run, tiny, "--threads", "1").code == 0
    again, before = (re.sub(r'"created": \d+', "", text) for text in (target.read_text(), written))
    assert again == before
