"""Random models and their replicas. All tests in this folder need pellucid[cluster]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("zmq", reason="pip install 'pellucid[cluster]'")
pytest.importorskip("msgpack", reason="pip install 'pellucid[cluster]'")

import pellucid
from pellucid.llm import LLM
from pellucid.testing import random_model


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "llama.gguf"
    random_model("llama", path, layers=2, context=2048)
    return path


@pytest.fixture(scope="session")
def three_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "three.gguf"
    random_model("llama", path, layers=3)
    return path


@pytest.fixture(scope="session")
def alone(llama_file: Path) -> Iterator[LLM]:
    """The same model in this process: the expected results."""
    with pellucid.load(llama_file, threads=2) as llm:
        yield llm
