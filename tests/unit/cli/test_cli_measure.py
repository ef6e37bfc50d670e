"""bench, plan --measured and info --machine: output, refused arguments and interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import PROGRAM, Command, pellucid
from support.schedule import write_quantised_llama

from pellucid.cli.commands.bench import steps_to_profile
from pellucid.cli.commands.plan import shortened
from pellucid.measure.roofs import facts
from pellucid.measure.suite import PrefillWorkload, SuiteOptions
from pellucid.runtime.batch import StepLimits

QUICK = ("--prompt", "8", "--depth", "8", "--batch", "2", "--tokens", "4", "--rounds", "2")
MEASURING = ["measuring\n", "compiling kernels, once for this machine\nmeasuring\n"]


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with Q8_0 weights and without a tokenizer, for commands that only need the plan."""
    return str(write_quantised_llama(tmp_path_factory.mktemp("models") / "model.gguf", "Q8_0"))


def test_bench(command: Command, tiny: str) -> None:
    done = command("bench", tiny, *QUICK)
    lines = done.answer.splitlines()
    assert lines[0].endswith("activations of 8 bits, context 128, medians of 2")
    assert lines[2].split() == ["tokens/s", "±", "roof", "bound", "by", "share"]
    kinds = [line.split("  ")[0] for line in lines[3:6]]
    assert kinds == ["prefill of 8", "decode after 8", "decode after 8, 2 sequences"]
    assert all("memory" in line and line.endswith("%") for line in lines[3:6])
    assert "this machine reads" in done.out
    assert "the roofs do not count float products" in lines[-1]  # the weights are floating point
    assert done.err in MEASURING


def test_bench_as_json(command: Command, tiny: str) -> None:
    document = command("bench", tiny, *QUICK, "--json", "--profile").document
    assert set(document) == {
        *("model", "threads", "context", "precise", "read_bytes_per_second", "figures", "profiles"),
        *("int8_multiply_adds_per_second", "notes", "machine"),
    }
    assert min(document["read_bytes_per_second"], document["int8_multiply_adds_per_second"]) > 0
    prefill, decode, batch = document["figures"]
    assert (prefill["kind"], prefill["tokens"]) == ("prefill", 8)
    assert (decode["kind"], decode["depth"], decode["tokens"], decode["sequences"]) == ("decode", 8, 4, 1)
    assert batch["sequences"] == 2
    for figure in document["figures"]:
        assert {"what", "unit", "per_second", "spread", "roof_per_second", "bound", "share"} <= set(figure)
        assert len(figure["rounds"]) == 2
        assert min(figure["per_second"], figure["roof_per_second"], figure["share"]) > 0
    operations = len(command("plan", tiny, "--json").document)
    assert [profile["what"] for profile in document["profiles"]] == ["a step of 8 tokens", "a step of 1 token after 8"]
    for profile in document["profiles"]:
        assert sum(kind["count"] for kind in profile["operations"]) == operations
        assert all(kind["seconds"] >= 0 for kind in profile["operations"])
    assert document["machine"]["cpu"] == facts()["cpu"]


def test_bench_profile(command: Command, tiny: str) -> None:
    answer = command("bench", tiny, *QUICK, "--profile").answer
    _, prefill, decode = answer.split("\n\na step of ")[:1] + answer.split("\na step of ")[1:]
    assert prefill.startswith("8 tokens\n")
    assert decode.startswith("1 token after 8\n")
    for part in (prefill, decode):
        assert part.splitlines()[1].split() == ["stage", "operation", "count", "ms", "part", "reached", "share"]
        assert "feedforward.down" in part
        assert "100.0%" in part


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ((), ["128 tokens", "1 token after 16"]),
        (("--prompt", "0"), ["1 token after 16"]),
        (("--prompt", "0", "--depth", "100", "--depth", "100"), ["1 token after 100"]),
        (("--prompt", "3", "--prompt", "128", "--depth", "0"), ["3 tokens", "128 tokens"]),
        (("--prompt", "0", "--depth", "0", "--batch", "2"), []),
        (("--context", "1", "--depth", "100"), ["1 token"]),
    ],
)
def test_profiles_are_of_the_lengths_that_are_asked_for(
    command: Command, tiny: str, lengths: tuple[str, ...], steps: list[str]
) -> None:
    options = ("--rounds", "1", "--tokens", "4", "--profile", "--json", *lengths)
    document = command("bench", tiny, *options).document
    assert [profile["what"] for profile in document["profiles"]] == [f"a step of {step}" for step in steps]
    assert any("has no steps to show" in note for note in document["notes"]) == (not steps)


def test_a_profile_is_of_the_last_step_of_a_prompt() -> None:
    runner = SimpleNamespace(limits=StepLimits(512, tokens=48))
    llm: Any = SimpleNamespace(spec=SimpleNamespace(generates=True), runner=runner, context=512)
    wishes, workloads = SuiteOptions((100, 96), (0,)), [PrefillWorkload(100), PrefillWorkload(96)]
    assert steps_to_profile(llm, wishes, workloads) == [(4, 96), (48, 48)]


def test_bench_says_what_it_cuts(command: Command, tiny: str) -> None:
    notes = command("bench", tiny, "--rounds", "1", "--json").document["notes"]
    assert "prompt: cut to 128 tokens, the maximum for this context" in notes
    assert "16 sequences of 80 tokens need a context of 2,048: left out" in notes


def test_bench_of_an_encoder(command: Command, encoder: str) -> None:
    document = command("bench", encoder, "--rounds", "1", "--json", "--profile").document
    assert [figure["kind"] for figure in document["figures"]] == ["embed"] * 3
    assert [figure["unit"] for figure in document["figures"]] == ["sentences"] * 3
    assert [figure["sentences"] for figure in document["figures"]] == [1, 16, 1]
    assert len(document["profiles"]) == 2
    table = command("bench", encoder, "--rounds", "1", "--prompt", "8", "--batch", "0").answer
    assert "sentences/s" in table
    assert "a sentence of 8" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "0"), "rounds=0: must be a whole number from 1 to 1,000"),
        (("--rounds", "x"), "rounds='x'"),
        (("--tokens", "0"), "tokens=0"),
        (("--tokens", "128"), "tokens=128: must be a whole number from 1 to 127; the context is 128"),
        (("--prompt", "129"), "prompt=129: must be a whole number from 0 to 128"),
        (("--prompt", "-1"), "prompt=-1"),
        (("--prompt", "1.5"), "prompt='1.5'"),
        (("--prompt", "8", "--prompt", "x"), "prompt='x'"),
        (("--depth", "65"), "depth=65: must be a whole number from 0 to 64"),
        (("--batch", "65"), "batch=65: must be a whole number from 0 to 64"),
        (("--batch", "4"), "batch=4: 4 sequences of 80 tokens need a context of 512; the context is 128"),
        (("--prompt", "0", "--depth", "0", "--batch", "0"), "nothing is left to measure"),
        (("--threads", "0"), "threads=0"),
        (("--context", "129"), "context=129"),
        (("--kv-cache", "f12"), "kv_cache="),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bench_refuses_before_anything_is_compiled(
    command: Command,
    tiny: str,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    assert message in command("bench", tiny, *arguments).refusal
    assert not (tmp_path / "home" / "kernels").exists()


def test_refusals_of_other_commands(command: Command, tiny: str, encoder: str) -> None:
    assert "depth needs a model that generates text" in command("bench", encoder, "--depth", "4").refusal
    assert "rounds=0" in command("bench", "nothing", "--rounds", "0").refusal
    assert "no model is called 'smolm2'. Did you mean smollm2?" in command("bench", "smolm2").refusal
    for name, value in (("prompt", "8"), ("threads", "1"), ("context", "8")):
        refusal = command("plan", tiny, f"--{name}", value).refusal
        assert refusal == f"--{name} has an effect with --measured only: add --measured"
    assert "prompt=129" in command("plan", tiny, "--measured", "--prompt", "129").refusal
    assert "prompt=0" in command("plan", tiny, "--measured", "--prompt", "0").refusal


def test_a_measured_plan(command: Command, tiny: str) -> None:
    plain = command("plan", tiny).answer.splitlines()
    measured = command("plan", tiny, "--measured").answer.splitlines()
    assert measured[0].split() == [*plain[0].split(), "µs", "reached", "share"]
    for before, after in zip(plain[1:-1], measured[1:]):
        assert after.split()[0] == before.split()[0]
        assert [word for word in before.split() if word not in after.split()] == []
    assert measured[-2] == "a step of 1 token after 16"
    assert measured[-1].startswith("this machine reads")


def test_a_measured_plan_as_json(command: Command, tiny: str, encoder: str) -> None:
    for model, what in ((tiny, "a step of 1 token after 16"), (encoder, "a step of 32 tokens")):
        plain = command("plan", model, "--json").document
        document = command("plan", model, "--measured", "--json").document
        assert document["what"] == what
        assert document["seconds"] == pytest.approx(sum(op["seconds"] for op in document["operations"]))
        for before, after in zip(plain, document["operations"], strict=True):
            assert after == {**before, "seconds": after["seconds"], "share_of_roof": after["share_of_roof"]}


def test_the_lines_of_a_plan_stand_for_every_operation(command: Command, integers: str) -> None:
    from pellucid import pipeline
    from pellucid.model.read import read_model
    from pellucid.plan.bind import layouts
    from pellucid.weights.open import open_checkpoint

    checkpoint = open_checkpoint(Path(integers))
    read = read_model(checkpoint)
    operations = pipeline.build_plan(read.spec, layouts(checkpoint, read)).operations
    checkpoint.close()
    for whole in (False, True):
        lines = shortened(operations, whole)
        assert [i for line in lines for i in line.indices] == list(range(len(operations)))
        assert any(line.alike for line in lines) == (not whole and len(read.spec.blocks) > 2)


def test_info_of_the_machine(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    document = command("info", "--machine", "--json").document
    assert document == json.loads(json.dumps(facts()))
    assert {"cpu", "cores", "threads", "memory", "instructions", "possible", "features", "kernels"} <= set(document)
    assert {"kernels compiled", "pellucid", "python", "numpy", "numba", "llvmlite"} <= set(document)
    lines = command("info", "--machine").answer.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(document)
    monkeypatch.setenv("PELLUCID_ISA", "portable")
    assert command("info", "--machine", "--json").document["instructions"].startswith("portable (")
    monkeypatch.setenv("PELLUCID_ISA", "abacus")
    assert "PELLUCID_ISA=abacus: this machine has " in command("info", "--machine").refusal


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["bench", "plan"])
def test_interrupted(endless: str, name: str) -> None:
    extra = {"bench": ("--rounds", "1000"), "plan": ("--measured", "--prompt", "256")}[name]
    with subprocess.Popen([*PROGRAM, name, endless, *extra], stdout=-1, stderr=-1) as program:
        try:
            assert program.stderr is not None
            assert program.stdout is not None
            said = b""
            while not said.endswith(b"measuring\n"):
                said += program.stderr.read(1)
            program.send_signal(signal.SIGINT)
            assert program.wait(60) == 130
            assert program.stdout.read() == b""
            assert program.stderr.read() == b""
        finally:
            program.kill()


@pytest.mark.slow
def test_pipes_get_plain_text(tiny: str) -> None:
    for arguments in (("bench", tiny, *QUICK, "--profile"), ("plan", tiny, "--measured")):
        done = pellucid(*arguments)
        assert "\x1b" not in done.answer + done.err
        assert done.err in MEASURING
        assert all(line == line.rstrip() for line in done.out.splitlines())
