"""The names of other engines' options and commands (``cli/other_words.py``), and their translation."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cli.command import Command, CommandGroup, command_named, known_commands
from pellucid.cli.main import application
from pellucid.cli.other_words import COMMANDS, OPTIONS, PARTS, PROGRAMS, REFUSED_COMMANDS
from pellucid.cli.translation import TranslatingCommand, translated_command
from pellucid.errors import InvalidRequest

DOCUMENT = Path(__file__).parents[3] / "docs" / "commands.md"


def built(name: str) -> TranslatingCommand:
    """The Typer command "run" or "bench model"."""
    first, *part = name.split()
    group: Any = typer.main.get_command(application(command_named(first)))
    found = group.commands[first]
    for one in part:
        found = found.commands[one]
    assert isinstance(found, TranslatingCommand)
    return found


RUN, CHAT, SERVE, BENCH, LOAD = map(built, ("run", "chat", "serve", "bench model", "bench serve"))
NAMES = [
    name if isinstance(one, Command) else f"{name} {part}"
    for name, one in known_commands().items()
    for part in (one.parts if isinstance(one, CommandGroup) else [""])
]

TRANSLATIONS = [
    (RUN, "m hi", "-- m hi"),
    (RUN, "-m m -p hi", "-- m hi"),
    (RUN, "hi -m m", "-- m hi"),
    (RUN, "-p hi", ""),  # the model is missing, as Typer says
    (RUN, "--model=m --prompt=hi", "-- m hi"),
    (RUN, "--model_name_or_path m hi", "-- m hi"),
    (RUN, "-hf a/b:Q8_0 hi", "-- hf:a/b:Q8_0 hi"),
    (RUN, "m -f f.txt more", "-- m @f.txt more"),
    (RUN, "m hi -n 5 -c 64 -t 2", "--max-new-tokens 5 --context 64 --threads 2 -- m hi"),
    (RUN, "m hi -s 1 --temp 0", "--seed 1 --temperature 0 -- m hi"),
    (RUN, "m hi -n -1 -c 0 -s -1", "-- m hi"),
    (RUN, "m hi --max_new_tokens 5 --top_p=0.5", "--max-new-tokens 5 --top-p=0.5 -- m hi"),
    (RUN, "m hi --repeat_penalty=1.1", "--repetition-penalty 1.1 -- m hi"),
    (RUN, "m hi -no-cnv", "--raw -- m hi"),
    (RUN, "m hi -cnv -sysf s.txt", "--chat --system @s.txt -- m hi"),
    (RUN, "m hi -j {} ", "--json-schema {} -- m hi"),
    (RUN, "m hi -jf s.json --grammar-file g", "--json-schema @s.json --grammar @g -- m hi"),
    (RUN, "m hi --do-sample", "-- m hi"),
    (RUN, "m --do-sample hi", "-- m hi"),
    (RUN, "m hi --do-sample false --format text", "--temperature 0 -- m hi"),
    (RUN, "m hi -ngl 0 --device cpu --dtype auto -st --tensor-parallel-size 1", "-- m hi"),
    (RUN, "m -- -p --top_k", "-- m -p --top_k"),
    (RUN, "m --stop --top_k", "--stop --top_k -- m"),  # the value of an option stays
    (RUN, "m --stop --stop", "--stop --stop -- m"),
    (RUN, "m hi --stop", "--stop"),  # its value is missing, as Typer says
    (RUN, "m hi -o temperature 0.5 -o num_ctx 64", "--temperature=0.5 --context 64 -- m hi"),
    (built("embed"), "-m m -i f.txt", "--file f.txt -- m"),
    (BENCH, "-m m -npp 8 -ntg 4 -npl 1", "--prompt 8 --tokens 4 --batch 1 -- m"),
    (RUN, "m hi -s brief", "--system brief -- m hi"),
    (RUN, "m hi -v --schema {}", "--verbose --json-schema {} -- m hi"),
    (RUN, "--help=all", "--help"),
    (built("embed"), "m -c text", "-- m text"),
    (built("embed"), "m -c 64 text", "--context 64 -- m text"),
    (built("embed"), "m --prompt-name query --truncate-dim 8 a", "--prompt query --dimensions 8 -- m a"),
    (built("rerank"), "m --query q --top-k 2 a b", "--top 2 -- m q a b"),
    (CHAT, "m max_new_tokens=5 do_sample=False hi", "--max-new-tokens=5 --temperature 0 -- m hi"),
    (CHAT, "m 1+1=2 color=red", "-- m 1+1=2 color=red"),
    (CHAT, "temp=0", "-- temp=0"),
    (RUN, "m temperature=0", "-- m temperature=0"),
    (SERVE, "--model m --served-model-name n --api-key k --max-model-len 9", "--alias n --key k --context 9 -- m"),
    (SERVE, "-m a b", "-- a b"),
    (BENCH, "-m m -p 512 -n 128 -r 3 -o json", "--prompt 512 --tokens 128 --rounds 3 --json -- m"),
    (LOAD, "--base-url u --num-prompts 4 --request-rate inf --model m", "--requests 4 --model m -- u"),
    (built("tokenize"), "-m m -p hi", "-- m hi"),
    (built("embed"), "m -p a b", "-- m a b"),
    (built("embed"), "m --prompt query a -f c.txt", "--prompt query --file c.txt -- m a"),
    (built("batch"), "-i in -o out --model m", "--model m -- in out"),
    (built("eval perplexity"), "-m m -f f", "-- m f"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "given", "expected"), TRANSLATIONS)
def test_a_translation(command: TranslatingCommand, given: str, expected: str, capsys: Any) -> None:
    assert command.translated(given.split()) == expected.split()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-ngl 99", "-ngl 99: the model runs on the CPU, with the cores of --threads"),
        ("--n-gpu-layers=99", "--n-gpu-layers 99: the model runs on the CPU"),
        ("-fa on", "-fa on: attention needs no switch"),
        ("-fa", "-fa: attention needs no switch"),
        ("--gpu_memory_utilization 0.9", "--gpu-memory-utilization 0.9: no GPU is used; --cache-memory limits"),
        ("--dtype bfloat16", "--dtype bfloat16: the weights keep the types of the file; --precise computes"),
    ],
)
def test_an_option_without_effect_is_explained_in_a_line(words: str, said: str, capsys: Any) -> None:
    assert RUN.translated(["m", *words.split(), "hi"]) == ["--", "m", "hi"]
    err = capsys.readouterr().err
    assert err.startswith(f"pellucid: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (SERVE, "m --quantization awq", "--quantization awq: the weights keep the types of the file: choose another"),
        (RUN, "m hi --lora a.gguf", "--lora: merge the adapter into the model first"),
        (RUN, "m hi --format yaml", "--format yaml: the formats are json and text; --json-schema SCHEMA takes"),
        (RUN, "m hi --task summarization", "--task summarization: pellucid run and chat make text"),
        (RUN, "m hi --revision v2", "--revision v2: the hub's revision is main"),
        (RUN, "m hi --output o.txt", "--output o.txt: the result goes to standard output: write > FILE"),
        (built("embed"), "m a -o o.txt", "-o o.txt: the result goes to standard output"),
        (RUN, "m hi --do-sample=perhaps", "--do-sample perhaps: the values are true, false"),
        (RUN, "m hi -ctkv q8_0", "No such option: -ctkv. Did you mean -ctv or -ctk"),
        (RUN, "m hi --temprature 0", "No such option: --temprature. Did you mean --temperature"),
        (RUN, "m hi --nonsense_option 5", "No such option: --nonsense-option. See pellucid run --help."),
        (built("embed"), "m a --n-prompt 5", "No such option: --n-prompt."),  # bench has it
        (RUN, "m hi -t poem", "-t poem: there are no stored templates"),
        (RUN, "m hi -c", "-c: nothing is stored between commands"),
        (RUN, "m -p", "-p: a value is missing: -p TEXT"),
        (RUN, "m hi -no-cnv=1", "-no-cnv=1: -no-cnv takes no value: leave it out"),
    ],
)
def test_an_option_that_would_change_the_result_is_refused(command: TranslatingCommand, words: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        command.translated(words.split())
    assert str(caught.value).startswith(said)


def test_no_name_is_lost() -> None:
    """Each name of each option has a meaning in at least one command, and targets and words exist."""
    commands = [built(name) for name in NAMES]
    for one in OPTIONS:
        for name in one.names.split():
            values = (None, "word", "5")
            assert any(command.option(name, value) is one for command in commands for value in values), name
        for target in filter(None, one.to.split(",")):
            assert any(command.target(one)[0] == target.split()[0] for command in commands), target
        assert bool(one.to) + bool(one.why) + bool(one.words) >= 1, one.names
        assert not (one.refused and not one.why), one.names


def test_an_own_option_is_never_replaced() -> None:
    for name in NAMES:
        command = built(name)
        for option, param in command.own.items():
            value = [] if param.is_flag else ["1"]
            assert command.translated([option, *value]) == [option, *value], (name, option)


@pytest.mark.parametrize("name", NAMES)
def test_no_option_is_swallowed(name: str, capsys: Any) -> None:
    """A foreign option changes the command, is accepted by its table, or says why. Wrong values do not, either."""
    command = built(name)
    command.option = cache(command.option)  # type: ignore[method-assign]  # each unknown option looks at all names
    usual = ["x"] * len(command.slots)
    without = command.translated(usual)
    for option in {option for one in OPTIONS for option in one.names.split()} - {*command.own}:
        accepted = {value for one in OPTIONS if option in one.names.split() for value, w in one.words.items() if not w}
        for value in ("", "o.txt", "5"):
            try:
                words = command.translated([*usual, f"{option}={value}" if value else option])
            except InvalidRequest as refused:
                said = str(refused)
            else:
                said = capsys.readouterr().err.removeprefix("pellucid: ")
                if words != without or value in accepted:
                    continue
            assert re.search(r"(: |No such option).*\w{2}", said), (option, value, said)


@given(st.lists(st.text("ab-=_ ", max_size=6), max_size=4))
def test_words_after_the_dashes_stay(words: list[str]) -> None:
    assert RUN.translated(["--", "m", *words]) == ["--", "m", *words]


COMMAND_LINES = [
    ("ls", "list"),
    ("show m", "info m"),
    ("server -m m", "serve -m m"),
    ("perplexity -m m", "eval perplexity -m m"),
    ("complete -q hi", "run --raw -q hi"),
    ("run-batch -i a", "batch -i a"),
    ("help", "--help"),
    ("help run", "run --help"),
    ("help ls", "list --help"),
    ("-m m -p hi", "run -m m -p hi"),
    ("-p hi --model=m", "run -p hi --model=m"),
    ("-hf a/b", "run -hf a/b"),
    ("--model_path m", "run --model_path m"),
    ("--version", "--version"),
    ("-v", "--version"),
    ("--nope", "--nope"),
    ("-h -m m", "-h -m m"),
    ("two words -m m", "two words -m m"),  # two words of a shell are no prompt
    ("models list", "list"),
    ("llama-server --version", "--version"),
    ("hf cache ls", "list"),
    ("ollama run m hi", "run m hi"),
    ("llama-cli -m m", "run -m m"),
    ("cache rm m", "rm m"),
    ("embed-multi m", "embed m"),
    ("run ls", "run ls"),
    ("", ""),
]


@pytest.mark.parametrize(("given", "expected"), COMMAND_LINES)
def test_a_command_of_another_engine(given: str, expected: str) -> None:
    assert translated_command(given.split()) == expected.split()


@pytest.mark.parametrize("name", REFUSED_COMMANDS)
def test_a_command_without_a_counterpart_says_what_to_do(command: Any, name: str) -> None:
    assert command(*name.split(), "x").refusal == f"there is no {name}: {REFUSED_COMMANDS[name]}"


def test_own_commands_have_their_own_names() -> None:
    others = {*COMMANDS, *REFUSED_COMMANDS, "help"}
    assert not others & set(known_commands())
    for words in COMMANDS.values():
        assert words[0] in known_commands() or words == ("--version",)
    assert set(PARTS.values()) <= {"model"}


def test_an_unknown_command_suggests_one(command: Any) -> None:
    assert "Did you mean serve? See pellucid --help." in command("servee").refusal
    assert "Did you mean list?" in command("lst").refusal
    assert "pellucid run smollm2 runs a model." in command("smollm2", "hi").refusal
    assert "pellucid run ./x.gguf runs a model." in command("./x.gguf").refusal
    assert command("nope").refusal == "No such command 'nope'. See pellucid --help."


def test_a_prompt_before_the_model_is_shown_in_order(command: Any) -> None:
    said = command("run", "Hi", "smollm2", "--seed", "1").refusal
    assert said.startswith("no model is called 'Hi', and the model comes first: pellucid run smollm2 Hi")
    assert translated_command(["two words", "-m", "m"]) == ["run", "two words", "-m", "m"]
    assert "pellucid run MODEL two words answers a prompt." in command("two words").refusal


def test_help_shows_the_other_names(command: Any) -> None:
    page = " ".join(command("run", "--help").answer.split()).replace("- ", "-")
    assert "[also -n, --n-predict, --predict, --max-tokens, --num-predict]" in page
    assert "[also -p, --prompt, -q, --quick, -f, --file, --content," in page


def test_the_document_lists_every_name() -> None:
    text = DOCUMENT.read_text()
    listed = set(re.findall(r"`([^`]+)`", text))
    words = {word for entry in listed for word in entry.split()}
    for one in OPTIONS:
        for name in one.names.split():
            assert name in words, name
    for name in (*COMMANDS, *REFUSED_COMMANDS, *PROGRAMS):
        assert name in words | listed, name
