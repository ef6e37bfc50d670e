"""Small models for the command line: with and without a chat template, without an end token, and an encoder."""

from __future__ import annotations

import json
import shutil

import pytest
from support.command import pellucid
from support.tiny import TINY, write_llama
from support.tokenizer_file import write_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama with a context of 128 tokens and a chat template."""
    folder = write_llama(tmp_path_factory.mktemp("models") / "tiny")
    write_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def mute(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "mute"
    shutil.copytree(tiny, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return str(folder)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that generates for many seconds, because no token ends a text."""
    folder = write_llama(tmp_path_factory.mktemp("models") / "endless", context=1 << 17)
    write_tokenizer(folder, eos_ids=())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    # Compile its kernels, so that Ctrl-C interrupts generation and not the compiler.
    assert pellucid("run", str(folder), "to", "--max-new-tokens", "1").code == 0
    return str(folder)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT with a vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    shutil.copytree(TINY["bert"], folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sentence", "another"]
    words += [f"word{i}" for i in range(size - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder)
