"""Tokenizers to test: the real models' tokenizers, and tiny tokenizers that the oracle trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pellucid.tokenize import Tokenizer, load_tokenizer
from pellucid.tokenize.merges import PairRanks
from pellucid.tokenize.stages.decode import byte_alphabet

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenize"
TINY = tuple(sorted(path.parent.name for path in GOLDENS.glob("*/tokenizer.json")))
MODELS = tuple(sorted(path.parent.name for path in GOLDENS.glob("*/tokenizer.model")))
REAL = ("smollm2", "gemma3", "minilm")
BOTH = [*TINY, *MODELS, *(pytest.param(name, marks=pytest.mark.model) for name in REAL)]
"""``TINY`` tokenizers have a tokenizer.json, ``MODELS`` a SentencePiece model."""

LETTERS = [*byte_alphabet()]
BYTE_LEVEL: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": [*LETTERS, "ab", "<|end|>"],
    "token_type": [*[1] * 257, 3],
    "merges": ["a b"],
    "eos_token_id": 257,
}
"""Fields of a GGUF file with a byte-level tokenizer that can merge "a b"."""


@cache
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer with the name of its golden."""
    if name not in REAL:
        return from_folder(GOLDENS / name)
    from pellucid.weights.open import open_checkpoint
    from pellucid.weights.store import resolve

    return load_tokenizer(open_checkpoint(resolve(name)))


def from_folder(folder: Path) -> Tokenizer:
    return load_tokenizer(SimpleNamespace(kind="safetensors", path=folder, metadata={}, tensors={}))  # type: ignore[arg-type]


def from_fields(fields: dict[str, Any]) -> Tokenizer:
    """A tokenizer from GGUF fields; their names lack the prefix "tokenizer.ggml."."""
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return load_tokenizer(SimpleNamespace(kind="gguf", path=Path("m.gguf"), metadata=metadata, tensors={}))  # type: ignore[arg-type]


@cache
def golden(name: str) -> dict[str, Any]:
    """The oracle's results for each text; offsets as pairs."""
    path = GOLDENS / f"{name}.json" if name in REAL else GOLDENS / name / "golden.json"
    said = json.loads(path.read_text())
    said["offsets"] = [packed and list(_unpacked(packed)) for packed in said["offsets"]]
    return said


def _unpacked(packed: Sequence[int | list[int]]) -> Iterator[tuple[int, int]]:
    """Unpack offsets: a pair; an end, if the start is the previous end; or 0, for the previous pair."""
    start = end = 0
    for one in packed:
        if one:
            start, end = one if isinstance(one, list) else (end, one)
        yield start, end


def pair_ranks(order: Sequence[tuple[str, str]], ids: Mapping[str, int]) -> PairRanks:
    """The table of merges in this order."""
    columns = zip(*((ids[left], ids[right], ids[left + right]) for left, right in order))
    return PairRanks(*(np.array(column, np.int32) for column in columns), size=len(ids))


def compiled_calls(patch: pytest.MonkeyPatch, ours: Tokenizer, *, at_once: bool = True) -> list[str]:
    """Load a tokenizer's kernels, and list the methods of its compiled encoder that are called from now on.

    ``at_once``: the compiled encoder is used from the next text on.
    """
    from pellucid.kernels.core.library import shared
    from pellucid.tokenize import text_encoder
    from pellucid.tokenize.compiled_encoder import STAGE_KERNELS, CompiledEncoder

    if ours.model.kernel is not None:
        shared().load([ours.model.kernel, *STAGE_KERNELS])
    if at_once:
        patch.setattr(text_encoder, "CHARACTERS_BEFORE_CACHED", 0)
    calls = list[str]()
    for name in ("lists", "encode", "spans"):
        method = getattr(CompiledEncoder, name)
        patch.setattr(CompiledEncoder, name, lambda *given, _m=method, _n=name: calls.append(_n) or _m(*given))
    return calls
