"""Each command with tiny models: its complete output. Slow tests run the real program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import PROGRAM, Command, pellucid
from support.systems import posix
from support.tiny import LLAMA_GGUF, write_llama_gguf

from pellucid import __version__
from pellucid.cli.command import Command as CommandDeclared
from pellucid.cli.command import CommandGroup, known_commands
from pellucid.testing import random_model

PROMPT = "to see that it rains"
GREEDY = ("--temperature", "0", "--max-new-tokens", "8")
COMPILING = "compiling kernels, once for this machine\n"
COMMANDS = [name for name, one in known_commands().items() if isinstance(one, CommandDeclared)]
GROUPS = {name: list(one.parts) for name, one in known_commands().items() if isinstance(one, CommandGroup)}


def test_version_and_help(command: Command) -> None:
    assert command("--version").answer == f"pellucid {__version__}\n"
    page = command("--help").answer
    listed = [line.split()[0] for line in page.partition("Commands:\n")[2].splitlines()]
    assert listed == [*COMMANDS, *GROUPS]
    assert command().answer == command("-h").answer == page


@pytest.mark.parametrize("name", [*COMMANDS, *(f"{name} {part}" for name, parts in GROUPS.items() for part in parts)])
def test_help_of_a_command(command: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = command(*name.split(), "--help").answer
    assert page.startswith(f"Usage: pellucid {name} [OPTIONS]")
    assert max(map(len, page.splitlines())) <= 80
    if name not in ("list", "ps"):
        assert "MODEL" in page
    if name in ("run", "chat", "embed", "pull", "plan", "bench"):
        assert "hf:owner/name[:Q4_K_M]" in page.replace("\n", "")


@pytest.mark.slow
def test_help_needs_no_models_and_no_kernels() -> None:
    code = "import sys; from pellucid.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([*PROGRAM[:1], "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "numba", "llvmlite", "huggingface_hub", "jinja2"} & set(done.stderr.split())


def test_run_prints_what_json_holds(command: Command, tiny: str) -> None:
    plain = command("run", tiny, PROMPT, *GREEDY, "--raw")
    document = command("run", tiny, PROMPT, *GREEDY, "--json").document
    assert plain.answer == document["text"] + "\n"
    assert set(document) == {
        *("text", "ids", "finish_reason", "stop_reason", "usage", "timings", "seed", "chain"),
        *("logprobs", "prompt_logprobs", "trace", "receipt", "probe_scores"),
    }
    assert document["chain"] == []
    assert document["logprobs"] is None
    assert document["usage"]["generated_tokens"] == 8
    assert (len(document["ids"]), document["finish_reason"], document["seed"]) == (8, "length", None)
    assert plain.err in ("", COMPILING)


def test_a_prompt_from_standard_input(command: Command, tiny: str) -> None:
    expected = command("run", tiny, PROMPT, *GREEDY).answer
    assert command("run", tiny, *GREEDY, given=PROMPT).answer == expected
    assert command("run", tiny, "-", *GREEDY, given=PROMPT).answer == expected


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_bytes_that_are_not_utf8_are_refused_wherever_they_come_in(
    command: Command, tiny: str, encoder: str, tmp_path: Path, errors: str
) -> None:
    words, read = ("text has the surrogate U+DCFF at character 1", "standard input: byte 1 is not UTF-8: convert it")
    assert read in command("run", tiny, *GREEDY, given=b"a\xffb", errors=errors).refusal
    assert words in command("run", tiny, b"a\xffb", *GREEDY).refusal
    assert read in command("tokenize", tiny, given=b"a\xffb", errors=errors).refusal
    assert words in command("embed", encoder, b"a\xffb").refusal
    assert "stop has the surrogate" in command("run", tiny, PROMPT, "--stop", b"\xff").refusal
    assert read in command("chat", tiny, *GREEDY, given=b"a\xffb", errors=errors).refusal
    (tmp_path / "text.txt").write_bytes(b"a\xffb")
    assert "byte 1 is not UTF-8" in command("eval", "perplexity", tiny, str(tmp_path / "text.txt")).refusal


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_bytes_that_are_not_utf8_in_the_real_program(tiny: str, errors: str) -> None:
    env, words = {"PYTHONIOENCODING": f"utf-8:{errors}"}, "text has the surrogate U+DCFF at character 1"
    assert "standard input: byte 1 is not" in pellucid("tokenize", tiny, given=b"a\xffb", env=env).refusal
    assert words in pellucid("run", tiny, b"a\xffb", *GREEDY, env=env).refusal


def test_seed_stop_and_length(command: Command, tiny: str) -> None:
    def text(*arguments: str) -> str:
        return str(command("run", tiny, PROMPT, "--json", *arguments).document["text"])

    drawn = ("--temperature", "1", "--max-new-tokens", "8", "--seed")
    assert text(*drawn, "7") == text(*drawn, "7") != text(*drawn, "8")
    seed = command("run", tiny, PROMPT, "--json", "--max-new-tokens", "8").document["seed"]
    assert seed >= 0
    whole = text(*GREEDY)
    stopped = text(*GREEDY, "--stop", "never there", "--stop", whole[3:5])
    assert stopped == whole[: whole.index(whole[3:5])]
    assert len(command("run", tiny, PROMPT, "--json", "--max-new-tokens", "1").document["ids"]) == 1
    full = command("run", tiny, PROMPT, "--json", "--temperature", "0", "--context", "16").document
    assert full["usage"]["prompt_tokens"] + len(full["ids"]) <= 16


def test_run_with_log_probabilities(command: Command, tiny: str) -> None:
    asked = ("--json", "--logprobs", "2", "--prompt-logprobs", "0")
    document = command("run", tiny, PROMPT, *GREEDY, *asked).document
    found, of_prompt = document["logprobs"], document["prompt_logprobs"]
    assert found["ids"] == document["ids"]
    assert found["ranks"] == [1] * 8
    for chosen, top, token in zip(found["chosen"], found["top"], found["ids"]):
        assert (top[0]["id"], top[0]["logprob"]) == (token, chosen)
        assert len(top) == 2
        assert top[1]["logprob"] <= chosen < 0
    assert len(of_prompt["ids"]) == document["usage"]["prompt_tokens"] - 1
    assert of_prompt["top"] == [[]] * len(of_prompt["ids"])
    assert "with --json only; add --json" in command("run", tiny, PROMPT, "--logprobs", "2").refusal


def test_sample_shows_each_step_as_a_table_and_as_data(command: Command, tiny: str) -> None:
    chain = ("--seed", "3", "--max-new-tokens", "3", "--repetition-penalty", "1.2", "--top-k", "9", "--top", "5")
    document = command("sample", tiny, PROMPT, *chain, "--json").document
    ran = command("run", tiny, PROMPT, *chain[:-2], "--json").document
    assert [token["token"] for token in document["trace"]] == document["ids"] == ran["ids"]
    for token in document["trace"]:
        assert [step["name"] for step in token["steps"]] == [step["name"] for step in ran["chain"]]
        steps = {step["name"]: step for step in token["steps"]}
        assert steps["top_k"]["left"] == 9
        assert steps["top_k"]["removed"] == 320 - 9
        assert steps["top_k"]["removed_mass"] == pytest.approx(steps["top_k"]["moved"])
        assert steps["temperature"]["entropy_after"] == steps["top_k"]["entropy_before"]
        assert 0 <= token["number"] < 1
        chosen = next(one for one in token["candidates"] if one["id"] == token["token"])
        assert chosen["final_probability"] == pytest.approx(token["final_probability"]) != 0
        assert 5 <= len(token["candidates"]) <= 6
    table = command("sample", tiny, PROMPT, *chain).answer
    for word in ("token 2: ", "removed", "penalties", "temperature", "top_k", "top_p", "█", "▸"):
        assert word in table
    assert "likeliest" in command("sample", tiny, PROMPT, "--temperature", "0").answer


def test_beams_as_text_as_a_tree_and_as_data(command: Command, tiny: str) -> None:
    search = ("--num-beams", "3", "--num-return-sequences", "2", "--max-new-tokens", "4")
    document = command("beams", tiny, PROMPT, *search, "--json").document
    assert [len(one["ids"]) for one in document["texts"]] == [4, 4]
    assert document["texts"][0]["score"] >= document["texts"][1]["score"]
    assert {node["state"] for node in document["tree"][1:]} <= {"extended", "finished", "pruned"}
    plain = command("beams", tiny, PROMPT, *search).answer
    assert len(plain.splitlines()) == 2
    assert "[4 tokens, length]" in plain
    tree = command("beams", tiny, PROMPT, *search, "--tree").answer
    assert tree.endswith(plain)
    assert "goes on" in tree
    for arguments, message in {
        ("--num-beams", "65"): "num_beams=65: must be a whole number from 1 to 64",
        ("--early-stopping", "maybe"): "early_stopping='maybe'",
        ("--stop", "x"): "beams have no stop",
        ("--top-p", "2"): "top_p=2.0",
    }.items():
        assert message in command("beams", tiny, PROMPT, *arguments).refusal


def test_perplexity_and_divergence_of_a_file(command: Command, tiny: str, encoder: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to see that it rains in the east, or in the west. " * 6)
    windows = ("--window", "32", "--stride", "16")
    document = command("eval", "perplexity", tiny, str(text), *windows, "--json").document
    assert (document["window"], document["stride"]) == (32, 16)
    assert document["perplexity"] > 1
    plain = command("eval", "perplexity", tiny, str(text), *windows).answer
    assert plain.startswith(f"perplexity {document['perplexity']:.4f} ± ")
    piped = command("eval", "perplexity", tiny, "-", *windows, given=text.read_text())
    assert piped.answer == plain
    divergence = command("eval", "kl", tiny, str(text), "--against", tiny, *windows, "--json").document
    assert 0 <= divergence["nats"]["mean"] < 0.1
    assert "the same most likely token" in command("eval", "kl", tiny, str(text), "--against", tiny).answer
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for arguments, message in {
        (tiny, str(tmp_path / "none")): "No such file or directory",
        (tiny, str(tmp_path)): "Is a directory",
        (tiny, str(tmp_path / "latin")): "byte 3 is not UTF-8",
        (tiny, str(text), "--window", "1"): "window=1: must be a whole number from 2 to 128",
        (tiny, str(text), "--stride", "999"): "stride=999",
        (encoder, str(text)): "makes sentence vectors",
    }.items():
        assert message in command("eval", "perplexity", *arguments).refusal
    assert "Missing" in command("eval", "kl", tiny, str(text)).refusal
    assert command("eval").code == 2


def test_the_chain_from_the_command_line(command: Command, tiny: str) -> None:
    made = command(
        *("run", tiny, PROMPT, "--json", "--max-new-tokens", "2", "--samplers", "top_k; min_p,temperature,logit_bias"),
        *("--logit-bias", "40=-inf,41=2.5", "--seed", "1"),
    ).document
    assert [step["name"] for step in made["chain"]] == ["top_k", "min_p", "temperature", "logit_bias"]
    assert made["chain"][-1]["logit_bias"] == [[40, None], [41, 2.5]]
    banned = command("run", tiny, PROMPT, "--json", "--banned", "e,7", *GREEDY).document
    assert banned["chain"] == [{"name": "banned", "banned": ["e", 7]}]
    assert "e" not in banned["text"]


def test_chat_answers_a_prompt_or_the_whole_standard_input(command: Command, tiny: str) -> None:
    answer = command("chat", tiny, "rain?", *GREEDY).answer
    assert len(answer) > 1
    assert command("chat", tiny, *GREEDY, given="rain?\n").answer == answer
    lines = command("chat", tiny, *GREEDY, given="rain?\n/reset\nsun?\n").answer
    assert lines == command("chat", tiny, "rain?\n/reset\nsun?", *GREEDY).answer != answer
    assert command("run", tiny, "--chat", "rain?", *GREEDY).answer == answer
    assert "text='': must be a text of at least 1 character" in command("chat", tiny, given="").refusal
    assert "the prompt is too long" in command("chat", tiny, "x" * 500).refusal


def test_embed(command: Command, encoder: str) -> None:
    document = command("embed", encoder, "a sentence", "another", "--json").document
    assert set(document) == {"texts", "vectors", "cosines"}
    assert document["texts"] == ["a sentence", "another"]
    (aa, ab), (ba, bb) = document["cosines"]
    assert (aa, bb, ab) == (1, 1, ba)
    table = command("embed", encoder, "a sentence", "another").answer
    assert f"1  1.0000  {ab:.4f}" in table
    assert "2  another" in table
    assert "cosine" not in command("embed", encoder, "a sentence").answer
    assert command("embed", encoder, "a " * 5000, "--truncate").code == 0


def test_plan(command: Command, tiny: str) -> None:
    rows = command("plan", tiny, "--json").document
    keys = {"stage", "operation", "shape", "weight_bytes", "multiply_adds", "reads", "writes", "barrier"}
    assert all(set(row) == keys for row in rows)
    assert [row["stage"] for row in rows][:1] == ["embed"]
    assert f"{len(rows)} operations" in command("plan", tiny).answer.splitlines()[-1]


def test_equal_blocks_of_a_plan_take_one_line(command: Command, tmp_path: Path) -> None:
    model = str(random_model("llama", tmp_path / "model.gguf", layers=3))
    short, long = command("plan", model).answer, command("plan", model, "--all").answer
    assert "blocks.1             like blocks.0" in short
    assert "blocks.1.attention\n" in long
    assert "blocks.2.attention\n" in short, "its feed-forward has the rows of outputs"
    measured = command("plan", model, "--measured").answer
    longer = command("plan", model, "--measured", "--all", "--prompt", "32").answer
    assert "\na step of 32 tokens" in longer
    assert "this machine reads " in longer
    assert len(longer.splitlines()) > len(measured.splitlines())


@pytest.mark.slow
def test_plan_of_a_shape_on_paper(command: Command) -> None:
    document = command("plan", "gpt2", "--json").document
    assert document["parameters"] == document["active_parameters"] == 124_439_808
    assert document["file_bytes"]["F16"] > document["file_bytes"]["Q4_K"]
    assert document["decode_tokens_per_second"] > 0
    shown = command("plan", "gpt3-175b").answer
    assert "174.60 billion parameters" in shown
    assert "blocks.1 ... 94       like blocks.0" in shown
    assert "(R, 12288) x (49152, 12288)ᵀ" in shown, "the last feed-forward computes the rows of outputs"
    refused = command("plan", "gpt2", "--measured")
    assert refused.code == 2
    assert "gpt2 is a shape on paper" in refused.err


def test_list_families(command: Command) -> None:
    rows = {row["family"]: row for row in command("list", "--families", "--json").document}
    assert rows["gpt_oss"]["gguf"] == ["gpt-oss"]
    assert "sinks" in rows["gpt_oss"]["parts"]
    assert "gated SiLU experts by softmax" in rows["olmoe"]["parts"]
    assert "ALiBi" in command("list", "--families").answer


def test_info(command: Command, tiny: str) -> None:
    document = command("info", tiny, "--json").document
    assert (document["family"], document["context"], document["blocks"]) == ("llama", 128, 2)
    assert (document["path"], document["chat template"]) == (tiny, "yes")
    lines = command("info", tiny).answer.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(document)


def test_list_pull_info_and_rm(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path))
    before = command("list", "--json").document
    keys = {"name", "bytes", "here", "licence", "publisher", "description", "origin", "sha256"}
    assert all(set(row) == keys for row in before)
    assert {row["name"] for row in before} >= {"smollm2", "gemma3", "minilm"}
    assert not any(row["here"] for row in before)

    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    path = write_llama_gguf(folder / "model.gguf", LLAMA_GGUF)
    manifest = {"source": "hf:me/mine", "files": {path.name: path.stat().st_size}}
    (folder / ".pellucid.json").write_text(json.dumps(manifest))

    (row,) = [row for row in command("list", "--json").document if row["name"] == "mine"]
    assert (row["here"], row["description"]) == (True, "hf:me/mine")
    (line,) = [line for line in command("list").answer.splitlines() if line.startswith("mine ")]
    assert "yes" in line
    assert command("pull", "mine").answer == command("pull", str(path)).answer == f"{path}\n"
    assert command("plan", "mine").code == 0
    shutil.copytree(folder, folder.with_name("other"))
    other = folder.with_name("other") / path.name
    assert command("pull", "mine", "other", str(path)).answer == f"{path}\n{other}\n{path}\n"
    assert "'third' is not in the store" in command("rm", "mine", "third").refusal
    assert folder.exists()  # none is removed
    assert command("rm", "mine", "other", "mine").answer == "removed mine\nremoved other\n"
    assert not folder.exists()
    assert "'mine' is not in the store" in command("rm", "mine").refusal


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_pipes_get_plain_text(tiny: str, encoder: str, env: dict[str, str]) -> None:
    for arguments in (("plan", tiny), ("list",), ("embed", encoder, "a", "b")) if not env else (("plan", tiny),):
        done = pellucid(*arguments, env=env)
        assert "\x1b" not in done.answer + done.err
        assert "\r" not in done.answer + done.err
        assert all(line == line.rstrip() for line in done.answer.splitlines())


@contextlib.contextmanager
def running(*arguments: str, given: str = "") -> Iterator[Any]:
    """Run the program; kill it and close its pipes at the end of the block."""
    with subprocess.Popen([*PROGRAM, *arguments], stdin=-1, stdout=-1, stderr=-1) as program:
        try:
            assert program.stdin is not None
            program.stdin.write(given.encode())
            program.stdin.close()
            yield program
        finally:
            program.kill()


@pytest.mark.slow
def test_the_answer_streams_and_a_closed_pipe_is_silent(endless: str) -> None:
    with running("run", endless, "--raw", PROMPT) as program:
        assert program.stdout.read(1)
        assert program.poll() is None  # the first piece has arrived, and more follow
        program.stdout.close()
        assert program.wait(60) == 141  # as cat, which SIGPIPE ends
        assert program.stderr.read() in (b"", COMPILING.encode())


@posix
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("run", "--raw"), ("chat",)])
def test_interrupted_without_a_terminal(endless: str, arguments: tuple[str, ...]) -> None:
    with running(*arguments, endless, given=PROMPT) as program:
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        program.stdout.read()
        assert program.wait(60) == 130
        assert program.stderr.read() in (b"", COMPILING.encode())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("list",), ("--help",), ("run", PROMPT)])
def test_a_full_disk(tiny: str, arguments: tuple[str, ...]) -> None:
    given = (arguments[0], tiny, *arguments[1:], *GREEDY) if arguments[0] == "run" else arguments
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([*PROGRAM, *given], stdout=full, stderr=-1, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "pellucid: No space left on device")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_closed_streams(tiny: str) -> None:
    run = " ".join([*PROGRAM, "run", "--raw", tiny, PROMPT.replace(" ", "_"), *GREEDY])
    for closed, code in ((">&-", 0), ("2>&-", 0), ("<&-", 0), (">&- 2>&- <&-", 0)):
        done = subprocess.run(["sh", "-c", f"{run} {closed}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.replace(COMPILING, "")) == (code, "")
