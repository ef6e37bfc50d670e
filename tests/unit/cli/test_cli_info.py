"""`pellucid info`: the layers of each kind of model; and the origin of a model of the catalogue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.decisions import decision_folder
from support.marked_options import marked_model
from support.option_models import option_model

from pellucid.cli.commands.models import Announced
from pellucid.cli.common import Bars
from pellucid.testing import random_model
from pellucid.weights import catalogue
from pellucid.weights.catalogue import CatalogueFile, CatalogueModel
from pellucid.weights.sources.source import CHECKING


@pytest.fixture
def info(command: Command, tmp_path: Path) -> Any:
    """The facts of a random model of an architecture."""

    def info(architecture: str, **options: Any) -> dict[str, Any]:
        path = random_model(architecture, tmp_path / f"{architecture}.gguf", **options)
        return dict(command("info", str(path), "--json").document)

    return info


def test_a_dense_model(info: Any) -> None:
    facts = info("llama", layers=2, width=64, heads=4, kv_heads=2)
    assert facts["attention"] == "4 heads of 16, 2 for keys and values"
    assert "blocks" not in facts["feed-forward"]
    assert not {"recurrent", "residual", "per layer", "embedding"} & set(facts)
    assert (facts["blocks"], facts["width"], facts["family"]) == (2, 64, "llama")


def test_windows(info: Any) -> None:
    assert "some see only" in info("gemma3")["attention"]
    assert "their own chunk of" in info("llama4")["attention"]


def test_experts(info: Any) -> None:
    assert info("olmoe")["feed-forward"] == "2 of 8 experts of 32, gated SiLU"
    assert info("llama4")["feed-forward"].endswith(", and a shared one of 32")


def test_decision_heads(command: Command, tmp_path: Path) -> None:
    facts = dict(command("info", str(marked_model(tmp_path / "m.gguf")), "--json").document)
    assert facts["feed-forward"] == "96, gated GELU"
    assert facts["decision"] == "the last 2 blocks, feed-forward 128, ReLU"
    for kind in ("kev", "clef"):
        facts = dict(command("info", str(option_model(tmp_path / f"{kind}.gguf", kind)), "--json").document)
        assert facts["decision"] == "a head of its own scores options"
    facts = dict(command("info", str(decision_folder(tmp_path / "headed", "headed")), "--json").document)
    assert facts["decision"] == "a head of its own scores labels"


def test_recurrent_blocks(info: Any) -> None:
    facts = info("qwen3next")
    recurrent, attention = (int(facts[name].split("in ")[1].split()[0]) for name in ("recurrent", "attention"))
    assert recurrent + attention == facts["blocks"]
    assert attention > 0


PUBLISHER, ORIGIN = "A. Publisher", "The PyPI package pandas-x has nothing to do with pandas."


@pytest.fixture
def only_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """The only model of the catalogue, which is not in the store yet."""
    path = Path(random_model("llama", tmp_path / "origin.gguf", layers=1))
    data = path.read_bytes()
    file = CatalogueFile("tiny.gguf", len(data), hashlib.sha256(data).hexdigest(), ((f"local:{path}",),))
    model = CatalogueModel("tiny", "A test", "CC0", ("teeny",), (file,), PUBLISHER, ORIGIN)
    monkeypatch.setattr(catalogue, "catalogue", lambda: {"tiny": model})
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    return model


def test_a_model_is_described_before_its_download(command: Command, only_tiny: CatalogueModel, tmp_path: Path) -> None:
    """Its publisher, licence, size and hash, and what its package is."""
    known = {
        "publisher": PUBLISHER,
        "licence": "CC0",
        "download": f"{only_tiny.bytes / 1e6:.1f} MB",
        "sha256": only_tiny.weights.sha256,
        "origin": ORIGIN,
    }
    before = command("info", "teeny", "--json").document
    assert before == {"name": "tiny", "description": "A test", **known, "here": "no: pellucid pull tiny"}
    assert not (tmp_path / "home").exists(), "nothing is downloaded"
    (row,) = command("list", "--json").document
    assert (row["publisher"], row["origin"], row["sha256"]) == (PUBLISHER, ORIGIN, only_tiny.weights.sha256)
    assert row["here"] is False
    page = command("list").answer
    assert PUBLISHER in page
    assert ORIGIN in page
    assert "Nothing of a package is installed or run" in page
    pulled = command("pull", "tiny")
    assert pulled.code == 0
    assert pulled.err == "", "a local file needs no announcement"
    after = command("info", "tiny", "--json").document
    assert {name: after[name] for name in known} == known
    assert after["family"] == "llama"


def test_a_download_announces_what_it_fetches(capsys: pytest.CaptureFixture[str], only_tiny: CatalogueModel) -> None:
    bars = Bars()
    announced = Announced("teeny", bars)
    announced.update(0, None, f"{CHECKING}tiny")
    assert PUBLISHER not in capsys.readouterr().err
    for done in (0, 10):
        announced.update(done, 20, "pandas-x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split(maxsplit=1) == ["model", "tiny, A test"]
    assert lines[1:] == [
        f"publisher  {PUBLISHER}",
        "licence    CC0",
        f"download   {only_tiny.bytes / 1e6:.1f} MB",
        f"sha256     {only_tiny.weights.sha256}",
        f"origin     {ORIGIN}",
        "fetching pandas-x",
    ]
    other = Announced("something else", bars)
    other.update(0, None, "x")
    assert capsys.readouterr().err == "fetching x\n"
