"""A random Llama that takes milliseconds, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_llm import CONTEXT
from support.tiny import write_llama
from support.tokenizer_file import write_tokenizer

import pellucid
from pellucid.llm import LLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_llama(tmp_path_factory.mktemp("models") / "tiny", context=CONTEXT)
    write_tokenizer(path)
    return path


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    llm = pellucid.load(folder, threads=2)
    yield llm
    llm.close()
