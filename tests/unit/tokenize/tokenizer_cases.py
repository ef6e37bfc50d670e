"""Tokenizers to test: the real models', and tiny ones that the oracle trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.merges import PairRanks

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenize"
TINY = ("tiny_byte_level", "tiny_byte_fallback", "tiny_wordpiece")
REAL = ("smollm2", "gemma3", "minilm")
BOTH = [*TINY, *(pytest.param(name, marks=pytest.mark.model) for name in REAL)]


@cache
def tokenizer(name: str) -> Tokenizer:
    """By the name of its golden."""
    if name in TINY:
        return from_folder(GOLDENS / name)
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    return load_tokenizer(open_checkpoint(resolve(name)))


def from_folder(folder: Path) -> Tokenizer:
    return load_tokenizer(SimpleNamespace(kind="safetensors", path=folder, metadata={}, tensors={}))  # type: ignore[arg-type]


def from_fields(fields: dict[str, Any]) -> Tokenizer:
    """From GGUF fields, without the "tokenizer.ggml." in front."""
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return load_tokenizer(SimpleNamespace(kind="gguf", path=Path("m.gguf"), metadata=metadata, tensors={}))  # type: ignore[arg-type]


def golden(name: str) -> dict[str, Any]:
    path = GOLDENS / name / "golden.json" if name in TINY else GOLDENS / f"{name}.json"
    return json.loads(path.read_text())


def pair_ranks(order: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> PairRanks:
    """The table of merges in this order."""
    columns = zip(*((ids[left], ids[right], ids[left + right]) for left, right in order))
    return PairRanks(*(np.array(column, np.int32) for column in columns), size=len(ids))
