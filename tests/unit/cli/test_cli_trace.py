"""pellucid points, explain, graph and neighbours: output as text, JSON and HTML, and refused arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import Command
from support.sources import source_model

from pellucid.testing import random_model

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model("llama", tmp_path_factory.mktemp("cli") / "llama.gguf", layers=3, context=256))


def test_points_are_listed_by_block(command: Command, model: str) -> None:
    shown = command("points", model)
    assert shown.code == 0
    assert "blocks.{0-2}.attention.q " in shown.out
    assert "project.logits" in shown.out
    every = command("points", model, "--all")
    assert "blocks.2.attention.q " in every.out
    some = command("points", model, "blocks.-1.*.q")
    assert [line.split()[0] for line in some.out.splitlines()[1:]] == ["blocks.2.attention.q"]


def test_points_of_an_encoder_decoder_are_listed_by_block(command: Command, tmp_path: Path) -> None:
    path = str(source_model("marian", tmp_path))
    names = [line.split()[0] for line in command("points", path).out.splitlines()[1:]]
    assert "encoder.blocks.{0-1}.attention.pattern" in names
    assert "blocks.{0-1}.cross.pattern" in names
    assert len(names) == len(set(names))
    some = command("points", path, "encoder.blocks.-1.residual").out.splitlines()
    assert [line.split()[0] for line in some[1:]] == ["encoder.blocks.1.residual"]


def test_points_as_json(command: Command, model: str) -> None:
    rows = json.loads(command("points", model, "--json").out)
    assert {"name", "shape", "dtype", "unit", "about"} == rows[0].keys()
    assert any(row["name"] == "blocks.1.attention.pattern" and row["unit"] == "probability" for row in rows)


def test_a_point_that_is_none(command: Command, model: str) -> None:
    refused = command("points", model, "blocks.0.atention.q")
    assert refused.code == 2
    assert "nearest are blocks.0.attention.q" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_an_explanation_in_every_form(command: Command, model: str, tmp_path: Path) -> None:
    shown = command("explain", model, "to see", "--temperature", "0")
    assert shown.code == 0
    for heading in (
        "tokens and embeddings",
        "positions",
        "prediction of each layer",
        "heads with the largest effect",
        "logits and",
    ):
        assert heading in shown.out
    found = json.loads(command("explain", model, "to see", "--temperature", "0", "--json").out)
    assert found["pieces"][0]["text"] == "t"
    assert found["attribution"]["total"] == pytest.approx(found["attribution"]["logit"])
    page = tmp_path / "page.html"
    written = command("explain", model, HOSTILE, "--html", str(page), "--max-new-tokens", "2")
    assert (written.code, written.out) == (0, "")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert HOSTILE not in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--top", "0"], "top=0"),
        (["--heads", "-1"], "heads=-1"),
        (["--html", "/nowhere/at/all.html"], "cannot be written"),
        (["--temperature", "x"], "temperature"),
    ],
)
def test_what_explain_refuses(command: Command, model: str, arguments: list[str], problem: str) -> None:
    refused = command("explain", model, "to see", *arguments)
    assert refused.code == 2
    assert problem in refused.err
    assert "Traceback" not in refused.err


def test_a_graph_in_every_form(command: Command, model: str, tmp_path: Path) -> None:
    shown = command("graph", model, "to see", "--nodes", "20")
    assert shown.code == 0
    assert "nodes with the highest influence" in shown.out
    assert "embedding" in shown.out
    found = json.loads(command("graph", model, "to see", "--nodes", "20", "--token", "a", "--json").out)
    assert [node["clerp"][:10] for node in found["nodes"] if node["feature_type"] == "logit"] == ['Output "a"']
    assert found["links"]
    for name in ("graph.json", "graph.html"):
        written = command("graph", model, HOSTILE, "--nodes", "20", "--out", str(tmp_path / name))
        assert (written.code, name in written.out) == (0, True)
    assert json.loads((tmp_path / "graph.json").read_text())["metadata"]["prompt_tokens"]
    page = (tmp_path / "graph.html").read_text()
    assert page.startswith("<!doctype html>")
    assert HOSTILE not in page


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "graph.txt"], "must end with .json or .html"),
        (["--nodes", "0"], "nodes=0"),
        (["--first", "99"], "first=99"),
        (["--token", "to see"], "the text is 6 tokens"),
        (["--transcoders", "nowhere"], "there is nothing at"),
        (["--node-share", "2"], "node-share=2.0: must be a number from 0 to 1"),
        (["--edge-share", "nan"], "edge-share=nan: must be a number from 0 to 1"),
    ],
)
def test_what_graph_refuses(command: Command, model: str, arguments: list[str], problem: str) -> None:
    refused = command("graph", model, "to see", *arguments)
    assert refused.code == 2
    assert problem in refused.err
    assert "Traceback" not in refused.err


def test_neighbours_and_similarity(command: Command, model: str) -> None:
    shown = command("neighbours", model, "a", "b", "--n", "3")
    assert shown.code == 0
    assert shown.out.splitlines()[0] == "a"
    found = json.loads(command("neighbours", model, "a", "b", "--n", "3", "--json").out)
    assert found["neighbours"]["a"][0]["text"] == "a"
    assert found["neighbours"]["a"][0]["cosine"] == pytest.approx(1)
    assert found["similarity"][0][1] == pytest.approx(found["similarity"][1][0])
    assert len(found["map"]) == 2
    refused = command("neighbours", model, "a", "--n", "0")
    assert refused.code == 2
    assert "n=0" in refused.err


def test_an_encoder_has_points_and_no_explanation(command: Command, tmp_path: Path) -> None:
    encoder = str(random_model("bert", tmp_path / "bert", kind="safetensors"))
    assert "pool" in command("points", encoder).out
    refused = command("explain", encoder, "a text")
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()) == 1
