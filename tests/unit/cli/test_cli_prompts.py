"""The prompt of run and chat: words, files and standard input; an answer of an instruct model, or a continued text."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command import PROGRAM, Command
from support.terminal import CTRL_D, terminal

from pellucid.cli.commands import run
from pellucid.llm import LLM

GREEDY = ("--temperature", "0", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def instruct(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model in a folder whose name says that it is an instruct model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-instruct"
    shutil.copytree(tiny, folder)
    return str(folder)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts of the generations that a command starts."""
    found, start = list[Any](), LLM.start

    def record(llm: LLM, prompt: Any, **options: Any) -> Any:
        found.append(prompt)
        return start(llm, prompt, **options)

    monkeypatch.setattr(LLM, "start", record)
    return found


def message(text: str, system: str | None = None) -> list[dict[str, str]]:
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": text}]


def test_an_instruct_model_answers_and_a_base_model_continues(
    command: Command, started: list[Any], instruct: str, tiny: str, mute: str
) -> None:
    for model, said in (
        (instruct, "is an instruct model, so it answers the prompt; --raw continues it as text\n"),
        (mute, "is a base model (it has no chat template), so it continues the prompt as text\n"),
        (
            tiny,
            "is a base model (its chat template ends turns with no end token of the file), so it continues the prompt "
            "as text; --chat uses its template\n",
        ),
    ):
        err = command("run", model, "rain?", *GREEDY).err
        assert err.endswith(said)
        assert err.count("pellucid: ") == 1
    assert started == [message("rain?"), "rain?", "rain?"]


def test_raw_and_chat_decide_and_say_nothing(command: Command, started: list[Any], instruct: str, tiny: str) -> None:
    for arguments in (("run", instruct, "--raw"), ("run", tiny, "--chat"), ("chat", tiny)):
        done = command(*arguments, "rain?", *GREEDY)
        assert (done.code, done.err) == (0, "")
    assert started == ["rain?", message("rain?"), message("rain?")]


def test_a_system_message(command: Command, started: list[Any], instruct: str, mute: str, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.")
    command("run", instruct, "rain?", "--system", f"@{tmp_path}/system.txt", *GREEDY)
    command("chat", instruct, "rain?", "--system", "Be brief.", *GREEDY)
    assert started == [message("rain?", "Be brief.")] * 2
    refused = command("run", mute, "rain?", "--system", "x").refusal
    assert refused.startswith("--system: the model is a base model (it has no chat template): leave --system out")
    assert command("run", instruct, "--raw", "rain?", "--system", "x").refusal.startswith("--system: --raw continues")


def test_a_template_of_the_user_is_used(command: Command, instruct: str, mute: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }} ~ ")
    given = command("run", mute, "rain?", "--chat-template", f"{tmp_path}/chat.jinja", *GREEDY)
    assert given.err == ""
    assert given.answer == command("run", mute, "--raw", "rain? ~ ", *GREEDY).answer
    assert "chat_template='nothing': cannot be read" in command("run", mute, "x", "--chat-template", "nothing").refusal


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        (("why", "is", "it", "so?"), "", "why is it so?"),
        (("why?",), "a file\n", "a file\n\nwhy?"),
        ((), "a file\n\n", "a file\n"),
        (("-", "why?"), "a file\n", "a file\n\nwhy?"),
        (("why?", "-"), "a file", "why?\n\na file"),
        (("Sum", "up", "@FILE"), "", "Sum up\n\nthe file"),
        (("@FILE",), "", "the file"),
        (("@FILE", "@FILE", "now"), "in\r\n", "in\n\nthe file\n\nthe file\n\nnow"),
        (("@@FILE", "a@b", "@"), "", "@FILE a@b @"),
    ],
)
def test_words_files_and_standard_input(
    command: Command,
    started: list[Any],
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    given: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("the file\n")
    assert command("run", tiny, "--raw", *GREEDY, "--", *words, given=given).code == 0
    assert command("chat", tiny, *GREEDY, "--", *words, given=given).code == 0
    assert started == [expected, message(expected)]


def test_files_that_cannot_be_read(command: Command, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for option in ((), ("--system",), ("--json-schema",), ("--grammar",)):
        words = (*option, "@nowhere") if option else ("@nowhere",)
        refused = command("run", tiny, *words, "hi").refusal
        assert refused == "nowhere: No such file or directory; a text that begins with @ begins with @@"
    assert "byte 3 is not UTF-8: convert the file first" in command("run", tiny, f"@{tmp_path}/latin").refusal


def test_a_schema_and_a_grammar_from_a_file(command: Command, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "grammar").write_text('root ::= "maybe"\n')
    run = ("run", tiny, "--raw", "rain?", "--temperature", "0")
    assert json.loads(command(*run, "--json-schema", f"@{tmp_path}/schema.json").answer) in ("yes", "no")
    assert command(*run, "--grammar", f"@{tmp_path}/grammar").answer == "maybe\n"


def test_the_summary_needs_a_terminal_or_verbose(command: Command, tiny: str) -> None:
    run = ("run", tiny, "--raw", "rain?", *GREEDY)
    assert command(*run).err == ""
    assert "+ 4 tokens, first after " in command(*run, "--verbose").err
    assert "+ 4 tokens, first after " in command("chat", *run[1:2], "rain?", *GREEDY, "--verbose").err


@pytest.mark.slow
def test_a_pipe_that_stays_open_is_explained(tiny: str) -> None:
    with subprocess.Popen([*PROGRAM, "run", tiny, "--raw", "why?", *GREEDY], stdin=-1, stdout=-1, stderr=-1) as program:
        assert program.stdin is not None
        assert program.stderr is not None
        said = b"pellucid: reading standard input until it ends; < /dev/null leaves it out\n"
        assert program.stderr.readline() == said
        out, err = program.communicate(b"rain\n", timeout=60)
        assert (program.returncode, err) == (0, b"")
    direct = subprocess.run(
        [*PROGRAM, "run", tiny, "--raw", "rain\n\nwhy?", *GREEDY], stdin=-3, capture_output=True, check=True
    )
    assert out == direct.stdout


def test_a_quick_pipe_needs_no_explanation(command: Command, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "NOTICE_AFTER", 60)
    assert command("run", tiny, "--raw", *GREEDY, given="rain?").err == ""


@pytest.mark.slow
def test_without_a_prompt_an_instruct_model_converses_in_a_terminal(instruct: str, mute: str, tiny: str) -> None:
    with terminal("run", instruct, *GREEDY) as t:
        t.wait("/help lists the commands.")
        t.wait("> ")
        t.line("rain?")
        t.wait("> ")
        t.type(CTRL_D)
        assert t.end() == 0
    for arguments, said in (
        ((mute,), "no prompt, and this is a base model (it has no chat template): give a text, - to read it"),
        ((tiny,), "or --chat for a conversation"),
        ((instruct, "--raw"), "no prompt, and --raw continues a text: give a text, - to read it"),
    ):
        with terminal("run", *arguments, columns=400) as t:
            assert t.end() == 2
            assert said in t.text
