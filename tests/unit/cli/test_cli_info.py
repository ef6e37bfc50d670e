"""`pellucid info`: the attention, the recurrent layers and the feed-forward of each kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.command import Command

from pellucid.testing import random_model


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


def test_recurrent_blocks(info: Any) -> None:
    facts = info("qwen3next")
    recurrent, attention = (
        int(facts[name].split("in ")[1].split()[0]) for name in ("recurrent", "attention")
    )
    assert recurrent + attention == facts["blocks"]
    assert attention > 0
