"""Control vectors on the command line: pellucid vector, --control-vector as in llama.cpp, and --vectors of a server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command import Command

from pellucid.cli.serving_options import Replicas
from pellucid.testing import random_model
from pellucid.trace import ControlVector, LinearProbe, RegisteredVectors

PROMPT = ("--raw", "to see", "--temperature", "0", "-n", "8", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model("llama", tmp_path_factory.mktemp("cli") / "llama.gguf", layers=3, context=256))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws = tmp_path_factory.mktemp("vectors"), np.random.default_rng(1)
    for name in ("calm", "french"):
        ControlVector({n: draws.normal(size=64).astype(np.float32) for n in (1, 2)}).save(folder / f"{name}.gguf")
    return folder


def test_a_vector_is_made_from_files_of_prompts(command: Command, model: str, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("rain is good\n\ntea is good\n")
    (tmp_path / "bad.txt").write_text("rain is bad\ntea is bad\n")
    more = ("--positive-file", str(tmp_path / "good.txt"), "--negative", str(tmp_path / "bad.txt"))
    out = tmp_path / "good.gguf"
    assert "2 directions from 2 pairs of prompts" in command("vector", model, str(out), *more).answer
    assert list(ControlVector.open(out).directions) == [1, 2]
    assert "1 directions" in command("vector", model, str(out), *more, "--layers", "2", "2", "--method", "pca").answer
    assert list(ControlVector.open(out).directions) == [2]
    for arguments, said in (
        ((str(tmp_path / "x.bin"), *more), "must end with .gguf or .safetensors"),
        ((str(out), *more, "--method", "umap"), "method='umap': must be mean or pca"),
        ((str(out), *more[:2], "--negative", str(tmp_path / "none.txt")), "No such file"),
    ):
        assert said in command("vector", model, *arguments).refusal


def test_options_of_llama_cpp(command: Command, model: str, files: Path) -> None:
    calm, french = str(files / "calm.gguf"), str(files / "french.gguf")
    plain = command("run", model, *PROMPT).answer
    scaled = command("run", model, *PROMPT, "--control-vector", f"{calm}:1.5").answer
    assert scaled != plain
    for same in (
        ("--control-vector-scaled", f"{calm}:1.5"),
        ("--control-vector", calm, "--control-vector-scaled", f"{calm}:0.5"),
        ("--control-vector", f"{calm}:1.5,{french}:0"),
        ("--control-vector", f"{calm}:1.5", "--control-vector-layer-range", "0", "9"),
    ):
        assert command("run", model, *PROMPT, *same).answer == scaled, same
    second = command("run", model, *PROMPT, "--control-vector", f"{calm}:1.5", "--control-vector-layer-range", "2", "2")
    assert second.answer not in (plain, scaled)
    chat = ("--chat-template", str(template(files)), "-n", "8", "--temperature", "0", "--ignore-eos", "Hi")
    assert command("chat", model, *chat, "--control-vector", calm).answer != command("chat", model, *chat).answer


def template(folder: Path) -> Path:
    path = folder / "chat.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    return path


def test_wrong_vectors(command: Command, model: str, files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    ControlVector({1: np.ones(3, np.float32)}).save(other)
    calm = str(files / "calm.gguf")
    for arguments, said in (
        (("--control-vector", str(tmp_path / "none.gguf")), "there is no file at"),
        (("--control-vector", model), "general.architecture: is 'llama', not 'controlvector'"),
        (("--control-vector", str(other)), "--control-vector: the vector has width 3, and the model has 64"),
        (("--control-vector", f"{calm}:1e9"), "scale=1000000000.0: must be"),
        (("--control-vector", calm, "--control-vector-layer-range", "7", "9"), "the vector has the layers [1, 2]"),
        (("--control-vector", calm, "--control-vector-layer-range", "7"), "requires 2 arguments"),
        (("--control-vector-layer-range", "1", "2"), "add --control-vector FILE"),
    ):
        assert said in command("run", model, *PROMPT, *arguments).refusal


def test_a_server_registers_a_folder(
    command: Command, model: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[RegisteredVectors] = []
    monkeypatch.setattr(Replicas, "serve", lambda *given: found.append(given[3]))
    serve = ("serve", model, "--cluster", "auto")
    (files / "chat.jinja").unlink(missing_ok=True)
    assert command(*serve, "--vectors", str(files)).code == 0
    assert command(*serve).code == 0
    assert [list(one.vectors) for one in found] == [["calm", "french"], []]
    assert "cannot be read" in command(*serve, "--vectors", str(tmp_path / "none")).refusal
    LinearProbe("joy", "blocks.1.residual", np.ones(64, np.float32)).save(tmp_path / "joy.safetensors")
    assert command(*serve, "--vectors", str(tmp_path), "--guard", "joy:0.5").code == 0
    assert found[-1].guards == {"joy": 0.5}
    for guard, said in (("joy", "must be NAME:LIMIT"), ("joy:x", "must be NAME:LIMIT"), ("sad:1", "probes are joy")):
        assert said in command(*serve, "--vectors", str(tmp_path), "--guard", guard).refusal
    assert "no probes are registered" in command(*serve, "--guard", "joy:1").refusal
    assert "--vectors FOLDER names vectors" in command(*serve, "--control-vector", "calm.gguf").refusal


def test_a_batch_takes_the_fields(command: Command, model: str, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "registered"
    folder.mkdir()
    (folder / "calm.gguf").write_bytes((files / "calm.gguf").read_bytes())
    LinearProbe("joy", "blocks.1.residual", np.ones(64, np.float32)).save(folder / "joy.safetensors")
    body = {"model": "m", "prompt": "to see", "max_tokens": 4, "steer": {"calm": 1.0}, "probes": ["joy"]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    run = ("batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--model", model)
    assert command(*run, "--vectors", str(folder)).code == 0
    (answer,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (choice,) = answer["response"]["body"]["choices"]
    assert [list(one["scores"]) for one in choice["probe_scores"]] == [["joy"]] * 4
    assert command(*run, "--vectors", str(folder)).code == 0  # nothing is left to do
    (folder / "calm.gguf").write_bytes((files / "french.gguf").read_bytes())
    assert "a run with other options" in command(*run, "--vectors", str(folder)).refusal
